// Tests of reconnects, close codes and the heartbeat.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { clock, START } from './clock.mjs';
import { endClient, FakeWebSocket, makeClient, newest, putInPage, record, waitForConnect } from './fake_browser.mjs';

let client;
let random;

function start() {
  client.connect(7, { url: 'ws://server.test/ws' });
  return newest();
}

function enter(socket = newest()) {
  return socket.open().event('authenticated', { user_id: 7, connection_id: 'c', last_event_id: 'E:0' });
}

beforeEach(() => {
  random = 0.999_999;
  client = makeClient({ random: () => random });
});

afterEach(() => endClient(client));

describe('reconnecting', () => {
  test('the client doubles the longest delay up to 30 s, without a limit of attempts', () => {
    start();
    const waits = [];
    for (let i = 0; i < 60; i++) {
      newest().end();
      waits.push(waitForConnect());
    }
    assert.deepEqual(waits.slice(0, 8), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
    assert.ok(waits.slice(8).every((wait) => wait === 30_000));
  });

  test('the client waits a random part of the longest delay', () => {
    start();
    random = 0;
    newest().end();
    assert.ok(waitForConnect() <= 10);
    random = 0.5;
    newest().end();
    assert.equal(waitForConnect(), 500);
  });

  test('a stable connection resets the delay, a short one does not', () => {
    start();
    for (let i = 0; i < 5; i++) {
      newest().end();
      waitForConnect();
    }
    enter();
    clock.tick(9_000);
    newest().end();
    assert.equal(waitForConnect(), 16_000, 'it was open for 9 s');
    enter();
    clock.tick(10_000);
    newest().end();
    assert.equal(waitForConnect(), 500, 'it was open for 10 s');
  });

  test('the client emits `disconnected` once per outage', () => {
    const seen = record(client, 'authenticated', 'recovered');
    start();
    enter();
    newest().end(4012, 'restart');
    waitForConnect();
    newest().end();
    waitForConnect();
    newest().end();
    waitForConnect();
    enter();
    const names = seen.map(([event]) => event);
    assert.deepEqual(names, ['connected', 'disconnected', 'error', 'error', 'connected', 'resync']);
    assert.deepEqual(seen[1][1], { code: 4012, reason: 'restart', will_reconnect: true, never_connected: false });
    assert.equal(seen[2][1].code, 'connection_failed');
  });

  test('the client emits `disconnected` when the first attempt fails', () => {
    const seen = record(client);
    start().end();
    const data = { code: 1006, reason: '', will_reconnect: true, never_connected: true };
    assert.deepEqual(seen.at(-1), ['disconnected', data]);
  });

  for (const code of [1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009, 1011, 4000, 4001, 4012, 4408, 4500, 4899, 5000]) {
    test(`the client reconnects after the close code ${code}`, () => {
      enter(start());
      newest().end(code);
      assert.equal(waitForConnect(), 500);
    });
  }

  for (const code of [4429, 4503]) {
    test(`the client waits at least 5 s after the close code ${code}`, () => {
      enter(start());
      random = 0;
      newest().end(code);
      assert.equal(waitForConnect(), 5_000);
      enter();
      random = 0.999_999;
      newest().end(code);
      assert.equal(waitForConnect(), 30_000);
    });
  }

  for (const code of [4900, 4901, 4903, 4999]) {
    test(`the client does not reconnect after the close code ${code}`, (t) => {
      const page = putInPage(t);
      const seen = record(client, 'authenticated', 'connected');
      enter(start());
      newest().end(code, 'banned');
      assert.equal(waitForConnect(), null);
      page.online();
      page.show('visible');
      assert.equal(waitForConnect(), null);
      assert.equal(page.listeners.count, 0);
      assert.deepEqual(seen, [
        ['disconnected', { code, reason: 'banned', will_reconnect: false, never_connected: false }],
        ['reconnect_failed', { code, reason: 'banned' }],
      ]);
      start();
      enter();
      assert.equal(client.connected, true, 'the page may try again');
      client.disconnect();
    });
  }

  test('the client stops when the server rejects it during an outage', () => {
    enter(start());
    const seen = record(client, 'error');
    newest().end(4000);
    waitForConnect();
    newest().open().event('error', { code: 'auth_failed', request: { type: 'auth' } }).end(4901);
    assert.deepEqual(seen.map(([event]) => event), ['disconnected', 'reconnect_failed']);
  });

  test('the client aborts attempts that do not open, the first after 5 s and later ones after at most 20 s', () => {
    random = 0;
    start();
    for (const limit of [5_000, 10_000, 20_000, 20_000, 20_000]) {
      const socket = newest();
      clock.tick(limit - 1);
      assert.equal(socket.closedWith, undefined);
      clock.tick(1);
      assert.equal(socket.closedWith, 4000);
      clock.tick(0);
      assert.notEqual(newest(), socket, 'a proxy may choose another server at once');
    }
  });

  test('the client aborts an attempt that does not authenticate within 20 s', () => {
    const socket = start().open();
    clock.tick(19_999);
    assert.equal(socket.closedWith, undefined);
    clock.tick(1);
    assert.equal(socket.closedWith, 4000);
    assert.equal(waitForConnect(), 500);
  });

  test('the client with a list of URLs begins with a random one and takes the next one after each close', () => {
    random = 0.5;
    client.connect(7, { url: ['ws://a.test/ws', 'ws://b.test/ws', 'wss://c.test/ws'] });
    const tried = [];
    for (const end of [() => newest().end(), () => enter().end(4012), () => clock.tick(10_000), () => enter().end()]) {
      tried.push(newest().url);
      end();
      waitForConnect();
    }
    const urls = ['b', 'c', 'a', 'b'].map((host) => `${host === 'c' ? 'wss' : 'ws'}://${host}.test/ws?client=js`);
    assert.deepEqual(tried, urls);
    const count = FakeWebSocket.made.length;
    client.connect(7, { url: ['ws://a.test/ws', 'ws://b.test/ws', 'wss://c.test/ws'] });
    assert.equal(FakeWebSocket.made.length, count, 'the same list changes nothing');
  });

  test('the page may connect to another URL in a `disconnected` handler', () => {
    enter(start());
    client.on('disconnected', () => client.connect(7, { url: 'ws://other.test/ws' }));
    newest().end();
    assert.equal(newest().url, 'ws://other.test/ws?client=js');
    assert.equal(FakeWebSocket.made.length, 2);
    assert.equal(waitForConnect(4_000), null, 'no reconnect to the first server');
    client.off('disconnected');
  });

  test('the client ignores events of an old socket', () => {
    const old = enter(start());
    const late = { close: old.onclose, message: old.onmessage };
    old.end();
    waitForConnect();
    const seen = record(client);
    late.close({ code: 4901, reason: '' });
    late.message({ data: '{"event":"typing","data":{}}' });
    enter();
    assert.deepEqual(seen.map(([event]) => event), ['authenticated', 'connected', 'resync']);
  });
});

describe('the heartbeat', () => {
  test('the client pings every 30 s with the last activity of the user', (t) => {
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

  test('the client aborts a connection without a frame for 10 s after a ping', () => {
    const seen = record(client, 'authenticated', 'connected');
    const socket = enter(start());
    clock.tick(30_000);
    clock.tick(9_999);
    assert.equal(client.connected, true);
    clock.tick(1);
    assert.equal(client.connected, false);
    assert.equal(socket.closedWith, 4000);
    assert.deepEqual(seen, [
      ['disconnected', { code: 1006, reason: 'no answer to a ping', will_reconnect: true, never_connected: false }],
    ]);
    assert.equal(waitForConnect(), 500);
  });

  test('the client accepts any frame as an answer to a ping', () => {
    const socket = enter(start());
    clock.tick(30_000);
    clock.tick(5_000);
    socket.event('typing', {});
    clock.tick(20_000);
    assert.equal(client.connected, true);
  });

  test('the client pings once more in a tab that was frozen', () => {
    const socket = enter(start());
    clock.tick(30_000);
    clock.freeze(3_600_000); // the timers fire an hour late
    clock.tick(0);
    assert.equal(client.connected, true);
    assert.ok(socket.of('ping').length > 1, 'it has pinged again');
    socket.pong();
    clock.tick(10_000);
    assert.equal(client.connected, true);
  });

  test('the client aborts the connection of a frozen tab without an answer', () => {
    enter(start());
    clock.tick(30_000);
    clock.freeze(3_600_000);
    clock.tick(0);
    assert.equal(client.connected, true);
    clock.tick(10_000);
    assert.equal(client.connected, false);
  });

  test('the client aborts the connection in a tab whose timers are always late', () => {
    enter(start());
    clock.tick(30_000);
    for (let hour = 1; hour <= 2; hour++) {
      clock.freeze(3_600_000);
      clock.tick(0);
    }
    assert.equal(client.connected, false);
  });

  test('the heartbeat ends with the connection', () => {
    const socket = enter(start());
    socket.end();
    waitForConnect();
    newest().open();
    clock.tick(15_000);
    assert.deepEqual(newest().of('ping'), []);
    assert.deepEqual(socket.of('ping'), []);
  });
});
