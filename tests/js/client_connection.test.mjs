// How the connection is kept: reconnects, close codes, heartbeats, waking up.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock, START } from './clock.mjs';
import { FakeWebSocket, newest, putInPage, record } from './fake_browser.mjs';

let client;
let random;

function start() {
  client.connect(7, { url: 'ws://server.test/ws' });
  return newest();
}

function enter(socket = newest()) {
  return socket.open().event('authenticated', { user_id: 7, connection_id: 'c', last_event_id: 'E:0' });
}

/** Milliseconds until the client dials again, or null when it does not within `limit`. */
function waitForDial(limit = 60_000) {
  const before = FakeWebSocket.made.length;
  for (let waited = 0; waited <= limit; waited += 10) {
    if (FakeWebSocket.made.length > before) return waited;
    clock.tick(10);
  }
  return null;
}

beforeEach(() => {
  clock.install();
  FakeWebSocket.made = [];
  random = 0.999_999;
  client = new ChatwsClient({ WebSocket: FakeWebSocket, random: () => random });
});

afterEach(() => {
  client.disconnect();
  const left = clock.pending;
  clock.uninstall();
  assert.equal(left, 0, 'timers are left behind');
});

describe('reconnecting', () => {
  test('doubles the longest wait up to 30 s, and never ends', () => {
    start();
    const waits = [];
    for (let i = 0; i < 60; i++) {
      newest().end();
      waits.push(waitForDial());
    }
    assert.deepEqual(waits.slice(0, 8), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    assert.ok(waits.slice(8).every((wait) => wait === 30_000));
  });

  test('waits any part of that: full jitter', () => {
    start();
    random = 0;
    newest().end();
    assert.ok(waitForDial() <= 10);
    random = 0.5;
    newest().end();
    assert.equal(waitForDial(), 500);
  });

  test('starts with short waits again after a connection that held, not after one that opened', () => {
    start();
    for (let i = 0; i < 5; i++) {
      newest().end();
      waitForDial();
    }
    enter();
    clock.tick(9_000);
    newest().end();
    assert.equal(waitForDial(), 16_000, 'it held 9 s');
    enter();
    clock.tick(10_000);
    newest().end();
    assert.equal(waitForDial(), 500, 'it held 10 s');
  });

  test('is told once per outage', () => {
    const seen = record(client, 'authenticated', 'recovered');
    start();
    enter();
    newest().end(4012, 'restart');
    waitForDial();
    newest().end();
    waitForDial();
    newest().end();
    waitForDial();
    enter();
    const names = seen.map(([event]) => event);
    assert.deepEqual(names, ['connected', 'disconnected', 'error', 'error', 'connected', 'resync']);
    assert.deepEqual(seen[1][1], { code: 4012, reason: 'restart', will_reconnect: true });
    assert.equal(seen[2][1].code, 'connection_failed');
  });

  test('is told when the very first attempt fails', () => {
    const seen = record(client);
    start().end();
    assert.deepEqual(seen.at(-1), ['disconnected', { code: 1006, reason: '', will_reconnect: true }]);
  });

  for (const code of [1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 4000, 4001, 4012, 4408, 4500, 4899, 5000]) {
    test(`follows the close code ${code}`, () => {
      enter(start());
      newest().end(code);
      assert.equal(waitForDial(), 500);
    });
  }

  for (const code of [4429, 4503]) {
    test(`is patient after ${code}`, () => {
      enter(start());
      random = 0;
      newest().end(code);
      assert.equal(waitForDial(), 5_000);
      enter();
      random = 0.999_999;
      newest().end(code);
      assert.equal(waitForDial(), 30_000);
    });
  }

  for (const code of [4900, 4901, 4903, 4909, 4999]) {
    test(`ends at the close code ${code}`, (t) => {
      const page = putInPage(t);
      const seen = record(client, 'authenticated', 'connected');
      enter(start());
      newest().end(code, 'go away');
      assert.equal(waitForDial(), null);
      page.online();
      page.show('visible');
      assert.equal(waitForDial(), null);
      assert.equal(page.listeners.count, 0);
      assert.deepEqual(seen, [
        ['disconnected', { code, reason: 'go away', will_reconnect: false }],
        ['reconnect_failed', { code, reason: 'go away' }],
      ]);
      start();
      enter();
      assert.equal(client.connected, true, 'the page may try again');
      client.disconnect();
    });
  }

  test('can be refused in the middle of an outage', () => {
    enter(start());
    const seen = record(client, 'error');
    newest().end(4000);
    waitForDial();
    newest().open().event('error', { code: 'auth_failed', request: { type: 'auth' } }).end(4901);
    assert.deepEqual(seen.map(([event]) => event), ['disconnected', 'reconnect_failed']);
  });

  test('gives up on an attempt that never opens, and on a server that never answers `auth`', () => {
    const first = start();
    clock.tick(20_000);
    assert.equal(first.closedWith, 4000);
    assert.equal(waitForDial(), 500);
    const second = newest().open();
    clock.tick(20_000);
    assert.equal(second.closedWith, 4000);
    assert.equal(waitForDial(), 1_000);
  });

  test('a page may connect elsewhere in a `disconnected` handler', () => {
    enter(start());
    client.on('disconnected', () => client.connect(7, { url: 'ws://other.test/ws' }));
    newest().end();
    assert.equal(newest().url, 'ws://other.test/ws');
    assert.equal(FakeWebSocket.made.length, 2);
    assert.equal(waitForDial(10_000), null, 'the wait for the first server is over');
    client.off('disconnected');
  });

  test('an old socket has no say any more', () => {
    const old = enter(start());
    const late = { close: old.onclose, message: old.onmessage };
    old.end();
    waitForDial();
    const seen = record(client);
    late.close({ code: 4901, reason: '' });
    late.message({ data: '{"event":"typing","data":{}}' });
    enter();
    assert.deepEqual(seen.map(([event]) => event), ['authenticated', 'connected', 'resync']);
  });
});

describe('waking up', () => {
  test('dials at once when the browser is online again', (t) => {
    const page = putInPage(t);
    enter(start());
    newest().end();
    page.online();
    assert.equal(FakeWebSocket.made.length, 2);
    enter();
    assert.equal(waitForDial(10_000), null, 'the timer that waited is gone');
    client.disconnect();
  });

  test('dials at once when the tab becomes visible, not when it is hidden', (t) => {
    const page = putInPage(t);
    enter(start());
    newest().end();
    page.show('hidden');
    assert.equal(FakeWebSocket.made.length, 1);
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 2);
    client.disconnect();
  });

  test('does not dial twice', (t) => {
    const page = putInPage(t);
    start();
    page.online();
    page.show('visible');
    assert.equal(FakeWebSocket.made.length, 1);
    client.disconnect();
  });

  test('makes an open connection prove itself within 5 s', (t) => {
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
    assert.equal(waitForDial(), 500);
    client.disconnect();
  });
});

describe('the heartbeat', () => {
  test('goes out every 30 s and says when the person last did something', (t) => {
    const page = putInPage(t);
    const socket = enter(start());
    clock.tick(29_999);
    assert.deepEqual(socket.of('ping'), []);
    clock.tick(1);
    socket.pong();
    assert.deepEqual(socket.of('ping').length, 1);
    clock.tick(12_000);
    page.touch();
    for (let i = 0; i < 3; i++) {
      clock.tick(18_000);
      socket.pong();
      clock.tick(12_000);
    }
    const pings = socket.of('ping');
    assert.equal(pings.length, 4);
    assert.deepEqual(Object.keys(pings[1]), ['type', 'last_activity']);
    assert.equal(pings[1].last_activity, START + 42_000);
    client.disconnect();
  });

  test('drops a connection that gives no sign of life for 10 s after it', () => {
    const seen = record(client, 'authenticated', 'connected');
    const socket = enter(start());
    clock.tick(30_000);
    clock.tick(9_999);
    assert.equal(client.connected, true);
    clock.tick(1);
    assert.equal(client.connected, false);
    assert.equal(socket.closedWith, 4000);
    assert.deepEqual(seen, [
      ['disconnected', { code: 1006, reason: 'no answer to a ping', will_reconnect: true }],
    ]);
    assert.equal(waitForDial(), 500);
  });

  test('takes any frame for a sign of life', () => {
    const socket = enter(start());
    clock.tick(30_000);
    clock.tick(5_000);
    socket.event('typing', {});
    clock.tick(20_000);
    assert.equal(client.connected, true);
  });

  test('does not drop a connection because the tab was frozen while the answer came', () => {
    const socket = enter(start());
    clock.tick(30_000);
    clock.freeze(3_600_000); // the timers fire an hour late
    clock.tick(0);
    assert.equal(client.connected, true);
    assert.ok(socket.of('ping').length > 1, 'it has asked again');
    socket.pong();
    clock.tick(10_000);
    assert.equal(client.connected, true);
  });

  test('drops it when the frozen tab finds no answer either', () => {
    enter(start());
    clock.tick(30_000);
    clock.freeze(3_600_000);
    clock.tick(0);
    assert.equal(client.connected, true);
    clock.tick(10_000);
    assert.equal(client.connected, false);
  });

  test('drops it also in a tab whose timers are always late', () => {
    enter(start());
    clock.tick(30_000);
    for (let hour = 1; hour <= 2; hour++) {
      clock.freeze(3_600_000);
      clock.tick(0);
    }
    assert.equal(client.connected, false);
  });

  test('ends with the connection', () => {
    const socket = enter(start());
    socket.end();
    waitForDial();
    newest().open();
    clock.tick(15_000);
    assert.deepEqual(newest().of('ping'), []);
    assert.deepEqual(socket.of('ping'), []);
  });
});
