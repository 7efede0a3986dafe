// What websocket-client.js needs of a browser, small and scripted by the test.

import assert from 'node:assert/strict';

/** A WebSocket whose other end is the test. Every one made is in `FakeWebSocket.made`, the newest last. */
export class FakeWebSocket {
  static made = [];

  constructor(url) {
    this.url = url;
    this.readyState = 0;
    this.sent = [];
    this.closedWith = undefined;
    this.onopen = this.onmessage = this.onerror = this.onclose = null;
    FakeWebSocket.made.push(this);
  }

  // what the client calls

  send(text) {
    assert.equal(this.readyState, 1, 'sent on a socket that is not open');
    this.sent.push(JSON.parse(text));
  }

  close(code = 1005) {
    assert.ok(code === 1005 || code === 1000 || (code >= 3000 && code <= 4999), `browsers refuse the code ${code}`);
    this.closedWith ??= code;
    this.readyState = 2;
  }

  // what the test calls

  open() {
    this.readyState = 1;
    this.onopen?.({});
    return this;
  }

  /** The server says this. */
  say(message) {
    this.onmessage?.({ data: typeof message === 'string' ? message : JSON.stringify(message) });
    return this;
  }

  event(event, data, id) {
    return this.say(id === undefined ? { event, data } : { event, data, id });
  }

  pong() {
    return this.say({ type: 'pong' });
  }

  /** The connection ends; a code of 1006 comes with an error before it, as in browsers. */
  end(code = 1006, reason = '') {
    this.readyState = 3;
    if (code === 1006) this.onerror?.({});
    this.onclose?.({ code, reason });
    return this;
  }

  /** The messages of one type that the client has sent. */
  of(type) {
    return this.sent.filter((message) => message.type === type);
  }
}

/** The newest socket. */
export function newest() {
  return FakeWebSocket.made.at(-1);
}

/** Note each event that a client emits as [name, data], less the names in `except`. */
export function record(client, ...except) {
  const seen = [];
  client.on('*', (data, { event }) => {
    if (!except.includes(event)) seen.push([event, data]);
  });
  return seen;
}

/** A `window`, a `document` and a `location` for the test `t`. @returns what dispatches events on them */
export function putInPage(t, href = 'https://shop.example/inbox') {
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  const listeners = { count: 0 };
  for (const target of [window, document]) {
    for (const [name, step] of [['addEventListener', 1], ['removeEventListener', -1]]) {
      const real = target[name];
      target[name] = function (...rest) {
        listeners.count += step;
        return real.apply(this, rest);
      };
    }
  }
  Object.assign(globalThis, { window, document, location: new URL(href) });
  t.after(() => {
    for (const name of ['window', 'document', 'location']) delete globalThis[name];
  });
  return {
    listeners,
    online: () => window.dispatchEvent(new Event('online')),
    show: (visibilityState) => {
      document.visibilityState = visibilityState;
      document.dispatchEvent(new Event('visibilitychange'));
    },
    touch: () => document.dispatchEvent(new Event('pointerdown')),
  };
}
