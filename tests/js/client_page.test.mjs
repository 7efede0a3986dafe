// Tests of what the page and its browser do to a connection: sleep, bfcache, hidden tabs, policies, several clients.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { endClient, FakeWebSocket, makeClient, newest, putInPage, record, waitForConnect } from './fake_browser.mjs';

let client;

function start() {
  client.connect(7, { url: 'wss://server.test/ws' });
  return newest();
}

function enter(socket = newest()) {
  return socket.open().event('authenticated', { user_id: 7, connection_id: 'c', last_event_id: 'E:0' });
}

beforeEach(() => {
  client = makeClient({ random: () => 0.999_999 });
});

afterEach(() => endClient(client));

describe('a page that wakes up', () => {
  test('the client connects at once when the browser is online again', (t) => {
    const page = putInPage(t);
    enter(start());
    newest().end();
    page.online();
    assert.equal(FakeWebSocket.made.length, 2);
    enter();
    assert.equal(waitForConnect(10_000), null, 'no pending reconnect');
    client.disconnect();
  });

  test('the client connects at once when the tab becomes visible, not when it is hidden', (t) => {
    const page = putInPage(t);
    enter(start());
    newest().end();
    page.show('hidden');
    assert.equal(FakeWebSocket.made.length, 1);
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 2);
    client.disconnect();
  });

  test('the client does not connect twice', (t) => {
    const page = putInPage(t);
    start();
    page.online();
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 1);
    client.disconnect();
  });

  test('the client pings an open connection and aborts it after 5 s without a frame', (t) => {
    const page = putInPage(t);
    const socket = enter(start());
    page.show('visible');
    assert.equal(socket.of('ping').length, 1);
    socket.pong();
    clock.tick(6_000);
    assert.equal(client.connected, true);
    page.online();
    assert.equal(socket.of('ping').length, 2);
    clock.tick(5_000);
    assert.equal(client.connected, false);
    assert.equal(waitForConnect(), 500);
    client.disconnect();
  });

  for (const opened of [false, true]) {
    test(`the client starts an attempt of more than 3 s again${opened ? ', also if it waits for auth' : ''}`, (t) => {
      const page = putInPage(t);
      const seen = record(client);
      const socket = start();
      if (opened) socket.open();
      clock.tick(3_000);
      page.online();
      assert.equal(FakeWebSocket.made.length, 1, 'not older than 3 s');
      clock.tick(1);
      page.online();
      assert.equal(FakeWebSocket.made.length, 2);
      assert.equal(socket.closedWith, 4000);
      enter();
      assert.deepEqual(seen.map(([event]) => event), ['disconnected', 'authenticated', 'connected']);
      client.disconnect();
    });
  }

  for (const readyState of [2, 3]) {
    test(`the client drops a socket in the state ${readyState} at once`, (t) => {
      const page = putInPage(t);
      const seen = record(client, 'authenticated', 'connected');
      const socket = enter(start());
      socket.readyState = readyState; // the close event comes late
      page.show('visible');
      assert.equal(FakeWebSocket.made.length, 2);
      assert.deepEqual(seen.map(([event]) => event), ['disconnected']);
      socket.end();
      enter();
      assert.equal(client.connected, true);
      client.disconnect();
    });
  }

  test('the client checks the connection as soon as a timer is late, without an event of the page', () => {
    const socket = enter(start());
    clock.freeze(600_000); // a laptop that slept with the page visible
    clock.tick(0);
    assert.equal(socket.of('ping').length, 1);
    clock.tick(5_000);
    assert.equal(client.connected, false);
  });

  test('the page may connect to another URL in a `disconnected` handler of a wake', (t) => {
    const page = putInPage(t);
    client.on('disconnected', () => client.connect(7, { url: 'ws://other.test/ws' }));
    start();
    clock.tick(4_000);
    page.online();
    assert.deepEqual(FakeWebSocket.made.map(({ url }) => new URL(url).host), ['server.test', 'other.test']);
    client.off('disconnected');
    client.disconnect();
  });
});

describe('a page that the browser puts aside', () => {
  test('the client closes without an event and recovers when the user returns', (t) => {
    const page = putInPage(t);
    client.subscribe(5);
    enter(start()).event('subscribed', { conversation_id: 5, last_event_id: 'E:3' });
    const seen = record(client);
    const socket = newest();
    page.hide();
    assert.equal(socket.closedWith, 1000);
    socket.end(1000);
    clock.freeze(600_000);
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 1, 'nothing runs in the meantime');
    assert.deepEqual(seen, []);
    page.comeBack();
    const recovered = { recovered: true, replayed: 0, last_event_id: 'E:3' };
    newest().open().event('authenticated', { user_id: 7, ...recovered });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5, last_event_id: 'E:3' }]);
    assert.deepEqual(seen.map(([event]) => event), ['authenticated', 'connected', 'recovered']);
    client.disconnect();
  });

  test('the client drops an attempt and a pending reconnect, and starts once', (t) => {
    const page = putInPage(t);
    start();
    page.hide();
    assert.equal(waitForConnect(), null);
    page.comeBack();
    newest().end();
    page.hide();
    assert.equal(waitForConnect(), null, 'no reconnect in a page that is aside');
    page.comeBack();
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 3);
    client.disconnect();
  });

  test('the client connects again after `pagehide` without `pageshow` when the page is visible', (t) => {
    const page = putInPage(t);
    enter(start());
    page.hide();
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 2);
    client.disconnect();
  });

  test('`pageshow` while the page loads changes nothing', (t) => {
    const page = putInPage(t);
    start();
    clock.tick(4_000);
    page.comeBack(false);
    assert.equal(FakeWebSocket.made.length, 1);
    client.disconnect();
  });

  test('a client that was disconnected stays so', (t) => {
    const page = putInPage(t);
    enter(start());
    client.disconnect();
    page.hide();
    page.comeBack();
    assert.equal(FakeWebSocket.made.length, 1);
  });
});

describe('a hidden page', () => {
  test('the client pings once a minute, and every 30 s again when it is visible', (t) => {
    const page = putInPage(t);
    page.show('hidden');
    const socket = enter(start());
    const pings = [];
    for (let second = 1; second <= 240; second++) {
      clock.tick(1_000);
      if (socket.of('ping').length > pings.length) {
        pings.push(second);
        socket.pong();
      }
      if (second === 150) page.show('visible');
    }
    assert.deepEqual(pings, [60, 120, 151, 180, 210, 240]);
    assert.equal(client.connected, true);
    client.disconnect();
  });

  test('timers that run once a minute do not break the connection', (t) => {
    const page = putInPage(t);
    const seen = record(client, 'authenticated', 'connected');
    page.show('hidden');
    const socket = enter(start());
    for (let minute = 1; minute <= 60; minute++) {
      clock.freeze(60_000); // frames arrive at once, timers wait
      clock.tick(0);
      if (socket.of('ping').length) socket.pong();
    }
    assert.deepEqual(seen, []);
    assert.ok(socket.of('ping').length >= 30);
    client.disconnect();
  });
});

describe('too many connections of the user (4909)', () => {
  test('the client tries again when the page becomes visible, every 30 s at most', (t) => {
    const page = putInPage(t);
    const seen = record(client, 'authenticated', 'connected', 'resync');
    enter(start()).end(4909, 'too many');
    assert.deepEqual(seen, [
      ['disconnected', { code: 4909, reason: 'too many', will_reconnect: false, never_connected: false }],
      ['reconnect_failed', { code: 4909, reason: 'too many' }],
    ]);
    assert.equal(waitForConnect(), null, 'not by itself');
    page.online();
    page.show('hidden');
    assert.equal(FakeWebSocket.made.length, 1);
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 2);
    newest().open().end(4909);
    clock.tick(10_000);
    page.show('visible');
    page.show('visible');
    assert.equal(waitForConnect(), 20_000);
    enter();
    assert.equal(client.connected, true);
    client.disconnect();
    assert.equal(page.listeners.count, 0);
  });

  test('the client does not try in a page that is hidden again', (t) => {
    const page = putInPage(t);
    start().open().end(4909);
    page.show('visible');
    page.show('hidden');
    assert.equal(waitForConnect(), null);
    client.disconnect();
    assert.equal(page.listeners.count, 0);
  });

  for (const [what, action] of [
    ['disconnect', () => client.disconnect()],
    ['connect', () => start()],
  ]) {
    test(`\`${what}\` ends the waiting`, (t) => {
      const page = putInPage(t);
      start().open().end(4909);
      page.show('visible');
      action();
      const count = FakeWebSocket.made.length;
      assert.equal(waitForConnect(4_000), null);
      assert.equal(FakeWebSocket.made.length, count);
      client.disconnect();
      assert.equal(page.listeners.count, 0);
    });
  }
});

describe('a Content-Security-Policy', () => {
  const VIOLATION = { disposition: 'enforce', effectiveDirective: 'connect-src', blockedURI: 'wss://server.test/ws' };

  test('the client names the source to add, once, and does not ask for the origin', (t) => {
    const page = putInPage(t);
    const seen = record(client, 'disconnected');
    const asked = t.mock.method(globalThis, 'fetch', async () => ({ json: async () => ({}) }));
    start();
    for (let times = 0; times < 2; times++) {
      page.violate(VIOLATION);
      newest().end();
      waitForConnect();
    }
    const errors = seen.map(([, data]) => data).filter(({ code }) => code === 'blocked_by_policy');
    assert.deepEqual(errors, [
      {
        code: 'blocked_by_policy',
        message:
          "the page's Content-Security-Policy blocks the WebSocket: add wss://server.test to its directive connect-src",
        source: 'wss://server.test',
      },
    ]);
    assert.equal(asked.mock.callCount(), 0);
    client.disconnect();
  });

  for (const other of [
    { disposition: 'report' },
    { effectiveDirective: 'img-src' },
    { blockedURI: 'wss://server.test.other/ws' },
    { blockedURI: 'https://server.test/ws' },
    { blockedURI: 'inline' },
  ]) {
    test(`the client ignores the violation ${JSON.stringify(other)}`, (t) => {
      const page = putInPage(t);
      const seen = record(client);
      start();
      page.violate({ ...VIOLATION, ...other });
      assert.deepEqual(seen, []);
      client.disconnect();
    });
  }
});

describe('`disconnected` in a blocked network', () => {
  test('`never_connected` is true until the first success since `connect`', () => {
    const seen = record(client, 'error');
    start().end();
    waitForConnect();
    enter();
    newest().end();
    client.connect(8, { url: 'wss://server.test/ws' });
    newest().end();
    const values = seen.filter(([event]) => event === 'disconnected').map(([, data]) => data.never_connected);
    assert.deepEqual(values, [true, false, true]);
  });
});

describe('several clients and handlers in one page', () => {
  test('a signal removes the handler, also of `*`, and only this one', () => {
    const calls = [];
    const leaving = new AbortController();
    client.on('typing', () => calls.push('stays'));
    client.on('typing', () => calls.push('leaves'), { signal: leaving.signal });
    client.on('*', (data, { event }) => event === 'typing' && calls.push('star'), { signal: leaving.signal });
    enter(start()).event('typing', {});
    leaving.abort();
    newest().event('typing', {});
    assert.deepEqual(calls, ['stays', 'leaves', 'star', 'stays']);
  });

  test('a handler with an aborted signal is not added', () => {
    const calls = [];
    client.on('typing', () => calls.push('late'), { signal: AbortSignal.abort() });
    enter(start()).event('typing', {});
    assert.deepEqual(calls, []);
  });

  test('a script that runs again with a signal for each visit has one handler', () => {
    const calls = [];
    for (let visit = 1; visit <= 3; visit++) {
      const leaving = new AbortController();
      client.on('typing', () => calls.push(visit), { signal: leaving.signal });
      if (visit < 3) leaving.abort();
    }
    enter(start()).event('typing', {});
    assert.deepEqual(calls, [3]);
  });

  test('the signal of an earlier registration does not remove a later one', () => {
    const calls = [];
    const handler = () => calls.push('called');
    const earlier = new AbortController();
    client.on('typing', handler, { signal: earlier.signal }).off('typing', handler).on('typing', handler);
    earlier.abort();
    enter(start()).event('typing', {});
    assert.deepEqual(calls, ['called']);
  });

  test('two clients share nothing', (t) => {
    const page = putInPage(t);
    const other = new ChatwsClient({ WebSocket: FakeWebSocket, random: () => 0.5 });
    const seen = [record(client), record(other)];
    const agent = enter(start());
    other.connect(null, { url: 'wss://server.test/ws', token: 'contact' });
    other.subscribe(5);
    const contact = newest().open().event('authenticated', { contact_id: 7, role: 'contact', last_event_id: 'E:0' });
    contact.event('new_message', { conversation_id: 5 }, 'E:1');
    agent.event('new_message', { conversation_id: 6 }, 'E:1');
    assert.deepEqual(agent.of('subscribe'), []);
    const messages = seen.map((list) => list.filter(([event]) => event === 'new_message').map(([, data]) => data));
    assert.deepEqual(messages, [[{ conversation_id: 6 }], [{ conversation_id: 5 }]]);
    client.disconnect();
    assert.equal(other.connected, true);
    other.disconnect();
    assert.equal(page.listeners.count, 0);
  });
});
