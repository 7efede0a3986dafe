// Time that passes when the test says so. (node:test has such timers too, but not in every Node that we test with.)

const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout, Date: globalThis.Date };

export const START = 1_800_000_000_000;

let now = START;
let count = 0;
let timers = new Map();

export const clock = {
  /** From here on timers and `Date.now` are ours. */
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

  /** Let so many milliseconds pass, and each timer fire in its turn. */
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

  /** So many milliseconds pass while the page is frozen: the timers will be late. */
  freeze(duration) {
    now += duration;
  },

  /** How many timers wait. */
  get pending() {
    return timers.size;
  },
};
