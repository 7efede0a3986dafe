// The parts of a browser that websocket-client.js uses, controlled by the test.

import assert from 'node:assert/strict';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';

/** A WebSocket whose server is the test. `FakeWebSocket.made` lists all instances, the newest last. */
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

  // Called by the client

  send(text) {
    assert.equal(this.readyState, 1, 'sent on a socket that is not open');
    this.sent.push(JSON.parse(text));
  }

  close(code = 1005) {
    assert.ok(code === 1005 || code === 1000 || (code >= 3000 && code <= 4999), `browsers reject the code ${code}`);
    this.closedWith ??= code;
    this.readyState = 2;
  }

  // Called by the test

  open() {
    this.readyState = 1;
    this.onopen?.({});
    return this;
  }

  /** Receive a frame from the server. */
  receive(message) {
    this.onmessage?.({ data: typeof message === 'string' ? message : JSON.stringify(message) });
    return this;
  }

  event(event, data, id) {
    return this.receive(id === undefined ? { event, data } : { event, data, id });
  }

  pong() {
    return this.receive({ type: 'pong' });
  }

  /** Close the connection. With code 1006 an error event comes first, as in browsers. */
  end(code = 1006, reason = '') {
    this.readyState = 3;
    if (code === 1006) this.onerror?.({});
    this.onclose?.({ code, reason });
    return this;
  }

  /** Return the messages of one type that the client has sent. */
  of(type) {
    return this.sent.filter((message) => message.type === type);
  }
}

/** Return the newest socket. */
export function newest() {
  return FakeWebSocket.made.at(-1);
}

/** Return a client on a fake clock and fake sockets. Call it before each test, and `endClient` after it. */
export function makeClient(options = {}) {
  clock.install();
  FakeWebSocket.made = [];
  return new ChatwsClient({ WebSocket: FakeWebSocket, ...options });
}

/** Disconnect the client of a test, and fail the test if a timer remains. */
export function endClient(client) {
  client.disconnect();
  const pending = clock.pending;
  clock.uninstall();
  assert.equal(pending, 0, 'no timer remains');
}

/** Return the milliseconds until a client connects again, or null if it does not within `limit`. */
export function waitForConnect(limit = 60_000) {
  const before = FakeWebSocket.made.length;
  for (let waited = 0; waited <= limit; waited += 10) {
    if (FakeWebSocket.made.length > before) return waited;
    clock.tick(10);
  }
  return null;
}

/** Record each event of a client as [name, data], without the names in `except`. */
export function record(client, ...except) {
  const seen = [];
  client.on('*', (data, { event }) => {
    if (!except.includes(event)) seen.push([event, data]);
  });
  return seen;
}

/** Define `window`, `document` and `location` for the test `t`. @returns functions that dispatch their events */
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
  const realFetch = globalThis.fetch;
  const fetch = async () => {
    throw new TypeError('no server');
  };
  Object.assign(globalThis, { window, document, location: new URL(href), fetch });
  t.after(() => {
    for (const name of ['window', 'document', 'location']) delete globalThis[name];
    globalThis.fetch = realFetch;
  });
  return {
    listeners,
    online: () => window.dispatchEvent(new Event('online')),
    show: (visibilityState) => {
      document.visibilityState = visibilityState;
      document.dispatchEvent(new Event('visibilitychange'));
    },
    touch: () => document.dispatchEvent(new Event('pointerdown')),
    hide: () => window.dispatchEvent(new Event('pagehide')),
    comeBack: (persisted = true) => window.dispatchEvent(Object.assign(new Event('pageshow'), { persisted })),
    violate: (violation) => document.dispatchEvent(Object.assign(new Event('securitypolicyviolation'), violation)),
  };
}
