// A clock that the test advances. (node:test has mock timers too, but not in every supported Node.)

const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, Date: globalThis.Date };

export const START = 1_800_000_000_000;

let now = START;
let count = 0;
let timers = new Map();

export const clock = {
  /** Replace the global timers and `Date.now`. */
  install() {
    now = START;
    timers = new Map();
    globalThis.setTimeout = (action, delay = 0) => {
      timers.set((count += 1), { due: now + Math.max(0, delay), action });
      return count;
    };
    globalThis.clearTimeout = (timer) => timers.delete(timer);
    globalThis.Date = class extends real.Date {
      static now() {
        return now;
      }
    };
  },

  uninstall() {
    Object.assign(globalThis, real);
  },

  /** Advance by that many milliseconds and fire the timers in order. */
  tick(duration) {
    const end = now + duration;
    for (;;) {
      let next = null;
      for (const [timer, { due }] of timers) {
        if (due <= end && (next === null || due < timers.get(next).due)) next = timer;
      }
      if (next === null) break;
      const { due, action } = timers.get(next);
      timers.delete(next);
      now = Math.max(now, due);
      action();
    }
    now = Math.max(now, end);
  },

  /** Advance without firing timers, as in a frozen page: they will be late. */
  freeze(duration) {
    now += duration;
  },

  /** The number of pending timers. */
  get pending() {
    return timers.size;
  },
};
