// What pages call, and what they are told.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { FakeWebSocket, newest, putInPage, record } from './fake_browser.mjs';

const URL = 'ws://server.test/ws';
let client;

function connect(options = {}, userId = 123) {
  client.connect(userId, { url: URL, ...options });
  return newest();
}

/** Connected, authenticated, at the place `at` of the log. */
function enter(options, at = 'E:0') {
  const socket = connect(options);
  return socket.open().event('authenticated', { user_id: 123, connection_id: 'c', last_event_id: at });
}

beforeEach(() => {
  clock.install();
  FakeWebSocket.made = [];
  client = new ChatwsClient({ WebSocket: FakeWebSocket, random: () => 0.5 });
});

afterEach(() => {
  client.disconnect();
  const left = clock.pending;
  clock.uninstall();
  assert.equal(left, 0, 'timers are left behind');
});

describe('connect', () => {
  test('authenticates as soon as the socket is open', () => {
    const socket = connect();
    assert.equal(socket.url, URL);
    assert.deepEqual(socket.sent, []);
    socket.open();
    assert.deepEqual(socket.sent, [{ type: 'auth', user_id: 123 }]);
  });

  test('is connected from `authenticated` on, not from open on', () => {
    const seen = record(client);
    const socket = connect().open();
    assert.equal(client.connected, false);
    const data = { user_id: 123, connection_id: 'c', last_event_id: 'E:0' };
    socket.event('authenticated', data);
    assert.equal(client.connected, true);
    assert.equal(client.isConnected, true);
    assert.deepEqual(seen, [['authenticated', data], ['connected', data]]);
  });

  test('sends a token as it is', () => {
    assert.deepEqual(connect({ token: 'abc' }).open().sent, [{ type: 'auth', user_id: 123, token: 'abc' }]);
  });

  test('leaves out the user id when the token says it', () => {
    client.connect(null, { url: URL, token: 'abc' });
    assert.deepEqual(newest().open().sent, [{ type: 'auth', token: 'abc' }]);
  });

  test('asks a token function before each connection, and dials when it has answered', async () => {
    let count = 0;
    client.connect(123, { url: URL, token: async () => `ticket-${++count}` });
    assert.equal(FakeWebSocket.made.length, 0);
    await settled();
    assert.equal(newest().open().sent[0].token, 'ticket-1');
    newest().end();
    clock.tick(500);
    await settled();
    assert.equal(newest().open().sent[0].token, 'ticket-2');
  });

  test('tells when the token cannot be had, and tries again', async () => {
    const seen = record(client);
    let broken = true;
    client.connect(123, {
      url: URL,
      token: () => {
        if (broken) throw new Error('no session');
        return 'abc';
      },
    });
    await settled();
    assert.equal(seen[0][0], 'error');
    assert.equal(seen[0][1].code, 'token_failed');
    assert.match(seen[0][1].message, /no session/);
    broken = false;
    clock.tick(30_000);
    await settled();
    assert.equal(newest().open().sent[0].token, 'abc');
  });

  test('gives up on a token function that never answers, and asks again', async () => {
    let asked = 0;
    client.connect(123, { url: URL, token: () => new Promise(() => (asked += 1)) });
    await settled();
    clock.tick(20_000);
    clock.tick(500);
    await settled();
    assert.equal(asked, 2);
  });

  test('again for the same user changes nothing but the token', () => {
    const socket = enter();
    client.connect('123', { url: URL, token: 'new' });
    assert.equal(FakeWebSocket.made.length, 1);
    socket.end();
    clock.tick(30_000);
    assert.equal(newest().open().sent[0].token, 'new');
  });

  test('as another user closes the old connection and starts with nothing', () => {
    client.subscribe(5);
    const first = enter(undefined, 'E:7');
    client.connect(124, { url: URL });
    assert.equal(first.closedWith, 1000);
    newest().open().event('authenticated', { user_id: 124, last_event_id: 'E:7' });
    assert.deepEqual(newest().sent, [{ type: 'auth', user_id: 124 }]);
  });

  test('without a user and without a token is an error and no connection', () => {
    const seen = record(client);
    for (const nobody of [undefined, null, '', {}, NaN, -1, 1.5, true]) client.connect(nobody, { url: URL });
    assert.equal(FakeWebSocket.made.length, 0);
    assert.deepEqual(new Set(seen.map(([event, data]) => `${event} ${data.code}`)), new Set(['error bad_message']));
    assert.equal(seen.length, 8);
  });

  test('refuses a URL that is none', () => {
    assert.throws(() => client.connect(123, { url: 'http://[' }), TypeError);
  });

  test('tells about a WebSocket that cannot be made, and tries again', () => {
    const seen = record(client);
    let broken = true;
    const Sometimes = function (url) {
      if (broken) throw new Error('insecure');
      return new FakeWebSocket(url);
    };
    client = new ChatwsClient({ WebSocket: Sometimes, random: () => 0.5 });
    client.on('error', (data) => seen.push(data.code));
    client.connect(1, { url: URL });
    assert.deepEqual(seen, ['connection_failed']);
    broken = false;
    clock.tick(500);
    assert.equal(FakeWebSocket.made.length, 1);
  });
});

describe('the URL by default', () => {
  for (const [page, url] of [
    ['https://shop.example/inbox', 'wss://shop.example/ws'],
    ['https://shop.example:8443/inbox', 'wss://shop.example:8443/ws'],
    ['https://localhost/inbox', 'wss://localhost/ws'],
    ['http://shop.example/inbox', 'ws://shop.example/ws'],
    ['http://shop.example:81/inbox', 'ws://shop.example:81/ws'],
    ['http://localhost/inbox', 'ws://localhost:8080'],
    ['http://localhost:8000/inbox', 'ws://localhost:8080'],
    ['http://127.0.0.1:3000/', 'ws://127.0.0.1:8080'],
    ['http://[::1]/', 'ws://[::1]:8080'],
    ['file:///home/ana/inbox.html', 'ws://localhost:8080'],
  ]) {
    test(`on ${page} is ${url}`, (t) => {
      putInPage(t, page);
      client.connect(1);
      assert.equal(newest().url, url);
      client.disconnect();
    });
  }

  test('can be another, relative to the page or written with http', (t) => {
    putInPage(t, 'https://shop.example/inbox/');
    client.connect(1, { url: '/chat/ws' });
    assert.equal(newest().url, 'wss://shop.example/chat/ws');
    client.connect(1, { url: 'http://127.0.0.1:9000/ws' });
    assert.equal(newest().url, 'ws://127.0.0.1:9000/ws');
    client.disconnect();
  });
});

describe('subscribe', () => {
  test('before connect is remembered', () => {
    client.subscribe(5);
    assert.deepEqual(enter().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('when connected goes out at once', () => {
    const socket = enter();
    assert.equal(client.subscribe('abc'), true);
    assert.deepEqual(socket.of('subscribe'), [{ type: 'subscribe', conversation_id: 'abc' }]);
  });

  test('twice is once, however the id is written', () => {
    const socket = enter();
    client.subscribe(5);
    client.subscribe('5');
    assert.equal(socket.of('subscribe').length, 1);
  });

  test('in the `connected` handler, where old pages do it, is once too', () => {
    client.subscribe(5);
    client.on('connected', () => client.subscribe(5));
    assert.equal(enter().of('subscribe').length, 1);
  });

  test('of what is no id is an error and changes nothing', () => {
    const seen = record(client);
    const none = [undefined, null, '', 1.5, -1, {}, 'x'.repeat(129)];
    for (const wrong of none) assert.equal(client.subscribe(wrong), false);
    assert.equal(seen.length, 7);
    assert.deepEqual(enter().of('subscribe'), []);
  });

  test('is asked again on the next connection', () => {
    client.subscribe(5);
    enter().end();
    clock.tick(30_000);
    newest().open();
    assert.deepEqual(newest().of('subscribe'), [], 'not before it is authenticated');
    newest().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('refused is told and not asked again', () => {
    const seen = record(client);
    client.subscribe(5);
    client.subscribe(6);
    const refusal = { code: 'forbidden', message: 'no', request: { type: 'subscribe', conversation_id: 5 } };
    const socket = enter().event('error', refusal);
    assert.deepEqual(seen.at(-1), ['error', refusal]);
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 6 }]);
  });

  test('refused can be tried again by the page', () => {
    const socket = enter();
    client.subscribe(5);
    socket.event('error', { code: 'forbidden', request: { type: 'subscribe', conversation_id: 5 } });
    client.subscribe(5);
    assert.equal(socket.of('subscribe').length, 2);
  });

  test('that cannot be decided now is asked again later', () => {
    const socket = enter();
    client.subscribe(5);
    socket.event('error', { code: 'unavailable', request: { type: 'subscribe', conversation_id: 5 } });
    clock.tick(4_999);
    assert.equal(socket.of('subscribe').length, 1);
    clock.tick(5_001);
    assert.equal(socket.of('subscribe').length, 2);
  });

  test('that was too fast is asked again later, though the server does not say which it was', () => {
    const socket = enter();
    client.subscribe(5);
    client.subscribe(6);
    socket.event('error', { code: 'rate_limited', request: { type: 'subscribe' } });
    clock.tick(4_000);
    assert.deepEqual(socket.of('subscribe').map((one) => one.conversation_id), [5, 6, 5, 6]);
  });

  test('of two hundred stays below the rate limit of the server', () => {
    for (let id = 1; id <= 200; id++) client.subscribe(id);
    const socket = enter();
    assert.equal(socket.of('subscribe').length, 50);
    for (let second = 1; second <= 15; second++) {
      for (let part = 0; part < 10; part++) clock.tick(100);
      const count = socket.of('subscribe').length;
      assert.ok(count <= 50 + 10 * second, `${count} after ${second} s`);
    }
    const asked = socket.of('subscribe').map((one) => one.conversation_id);
    assert.deepEqual(asked, [...Array(200).keys()].map((i) => i + 1));
  });
});

describe('unsubscribe', () => {
  test('reaches the server and is not asked for again', () => {
    client.subscribe(5);
    const socket = enter();
    client.unsubscribe('5');
    assert.deepEqual(socket.of('unsubscribe'), [{ type: 'unsubscribe', conversation_id: '5' }]);
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), []);
  });

  test('while there is no connection only forgets', () => {
    client.subscribe(5);
    client.unsubscribe(5);
    assert.deepEqual(enter().sent, [{ type: 'auth', user_id: 123 }]);
  });

  test('by a backend is for good', () => {
    const seen = record(client);
    client.subscribe(5);
    const socket = enter();
    socket.event('subscribed', { conversation_id: 5, last_event_id: 'E:0' });
    socket.event('unsubscribed', { conversation_id: 5 });
    assert.deepEqual(seen.at(-1), ['unsubscribed', { conversation_id: 5 }]);
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), []);
  });

  test('ends a subscribe that the server then never answers', () => {
    const socket = enter();
    client.subscribe(5);
    client.unsubscribe(5);
    client.subscribe(5);
    socket.event('unsubscribed', { conversation_id: 5 });
    socket.event('subscribed', { conversation_id: 5, last_event_id: 'E:2' });
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123, recovered: true, replayed: 0, last_event_id: 'E:2' });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5, last_event_id: 'E:2' }]);
  });

  test('and a subscribe right behind it leaves it subscribed', () => {
    const socket = enter();
    client.subscribe(5);
    client.unsubscribe(5);
    client.subscribe(5);
    assert.deepEqual(socket.sent.slice(1).map((one) => one.type), ['subscribe', 'unsubscribe', 'subscribe']);
    socket.event('subscribed', { conversation_id: 5, last_event_id: 'E:1' });
    socket.event('unsubscribed', { conversation_id: 5 });
    socket.event('subscribed', { conversation_id: 5, last_event_id: 'E:2' });
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123, recovered: true, replayed: 0, last_event_id: 'E:2' });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5, last_event_id: 'E:2' }]);
  });
});

describe('sending', () => {
  test('typing goes to the server', () => {
    const socket = enter();
    client.subscribe(5);
    assert.equal(client.sendTyping(5, true), true);
    assert.equal(client.sendTyping(5, false), true);
    assert.equal(client.sendTyping(5), true);
    assert.deepEqual(socket.of('typing').map((one) => one.is_typing), [true, false, true]);
    assert.deepEqual(socket.of('typing')[0], { type: 'typing', conversation_id: 5, is_typing: true });
  });

  test('any object goes as it is', () => {
    const socket = enter();
    assert.equal(client.send({ type: 'activity', activity_type: 'visibility_change' }), true);
    assert.deepEqual(socket.sent.at(-1), { type: 'activity', activity_type: 'visibility_change' });
  });

  test('without a connection is false, and nothing is sent later', () => {
    assert.equal(client.send({ type: 'presence' }), false);
    assert.equal(client.sendTyping(5, true), false);
    const socket = connect().open();
    assert.equal(client.send({ type: 'presence' }), false, 'not authenticated yet');
    socket.event('authenticated', { user_id: 123 });
    assert.deepEqual(socket.sent, [{ type: 'auth', user_id: 123 }]);
    socket.readyState = 2;
    assert.equal(client.send({ type: 'presence' }), false, 'closing');
  });
});

describe('renew', () => {
  test('shows a fresh ticket on the open connection, once more without a `connected`', async () => {
    const socket = enter({ token: 'old' });
    const seen = record(client);
    assert.equal(await client.renew('new'), true);
    assert.deepEqual(socket.sent.at(-1), { type: 'auth', user_id: 123, token: 'new' });
    socket.event('authenticated', { user_id: 123, last_event_id: 'E:9' });
    assert.deepEqual(seen.map(([event]) => event), ['authenticated']);
    socket.end();
    clock.tick(30_000);
    assert.deepEqual(newest().open().sent, [{ type: 'auth', user_id: 123, token: 'new', last_event_id: 'E:0' }]);
  });

  test('asks the token function again', async () => {
    let count = 0;
    connect({ token: () => `ticket-${++count}` });
    await settled();
    const socket = newest().open().event('authenticated', { user_id: 123 });
    await client.renew();
    assert.equal(socket.sent.at(-1).token, 'ticket-2');
  });

  test('without a connection is kept for the next', async () => {
    assert.equal(await client.renew('later'), false);
  });

  test('that fails is told', async () => {
    enter();
    const seen = record(client);
    assert.equal(await client.renew(() => Promise.reject(new Error('logged out'))), false);
    assert.equal(seen[0][1].code, 'token_failed');
    assert.equal(client.connected, true);
  });
});

describe('handlers', () => {
  test('get the data of each event of the server by its name, with name and id', () => {
    const calls = [];
    client.on('new_message', (...given) => calls.push(given));
    const data = { conversation_id: 5, message: { id: 1, content: 'hi' } };
    const socket = enter();
    socket.event('new_message', data, 'E:1');
    socket.event('typing', { conversation_id: 5, user_id: 1, is_typing: true });
    assert.deepEqual(calls, [[data, { event: 'new_message', id: 'E:1' }]]);
  });

  test('can be several, each once, and can be taken off', () => {
    const calls = [];
    const one = () => calls.push('one');
    const two = () => calls.push('two');
    assert.equal(client.on('typing', one).on('typing', two).on('typing', one), client);
    const socket = enter();
    socket.event('typing', {});
    client.off('typing', one);
    socket.event('typing', {});
    client.off('typing');
    socket.event('typing', {});
    assert.deepEqual(calls, ['one', 'two', 'two']);
  });

  test('taken off by an earlier one are not called', () => {
    const calls = [];
    const late = () => calls.push('late');
    client.on('typing', () => client.off('typing', late));
    client.on('typing', late);
    enter().event('typing', {});
    assert.deepEqual(calls, []);
  });

  test('that throw are reported and stop neither the others nor the client', (t) => {
    const reported = t.mock.method(console, 'error', () => {});
    const errors = [];
    const calls = [];
    client.on('error', (data) => errors.push(data));
    client.on('new_message', () => {
      throw new Error('of the page');
    });
    client.on('new_message', (data, { id }) => calls.push(id));
    const socket = enter();
    socket.event('new_message', {}, 'E:1').event('new_message', {}, 'E:2');
    assert.deepEqual(calls, ['E:1', 'E:2']);
    assert.equal(reported.mock.callCount(), 2);
    const told = errors.map((data) => [data.code, data.error.message]);
    assert.deepEqual(told, Array(2).fill(['handler_failed', 'of the page']));
    assert.equal(client.connected, true);
  });

  test('of `error` that throw do not go round in circles', (t) => {
    t.mock.method(console, 'error', () => {});
    const angry = () => {
      throw new Error('again');
    };
    client.on('error', angry).on('*', angry);
    enter().event('error', { code: 'bad_message' });
    assert.equal(client.connected, true);
  });

  test('must be functions', () => {
    assert.throws(() => client.on('typing', undefined), TypeError);
  });

  test('hear of a frame that is no JSON, and of nothing else that is none of theirs', () => {
    const socket = enter();
    const seen = record(client);
    for (const frame of ['{', '[]', '1', 'null', '{}', '{"event":5}']) socket.say(frame);
    assert.deepEqual(seen.map(([event, data]) => [event, data.code]), [['error', 'bad_frame']]);
    assert.equal(client.connected, true);
  });
});

describe('disconnect', () => {
  test('closes with 1000, tells so at once, and stays away', () => {
    const socket = enter();
    const seen = record(client);
    client.disconnect();
    assert.equal(socket.closedWith, 1000);
    assert.equal(client.connected, false);
    assert.deepEqual(seen, [['disconnected', { code: 1000, reason: '', will_reconnect: false }]]);
    socket.end(1000);
    client.disconnect();
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 1);
    assert.equal(seen.length, 1);
  });

  test('while it waits to reconnect ends the waiting', () => {
    enter().end();
    client.disconnect();
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 1);
  });

  test('in a handler of `authenticated` is obeyed', () => {
    const seen = record(client, 'authenticated');
    client.on('authenticated', () => client.disconnect());
    enter();
    assert.deepEqual(seen.map(([event]) => event), ['disconnected']);
  });

  test('then connect as the same user comes back with the subscriptions', () => {
    client.subscribe(5);
    enter();
    client.disconnect();
    enter();
    assert.equal(newest().of('subscribe').length, 1);
  });

  test('leaves no listener on the page', (t) => {
    const page = putInPage(t);
    enter();
    assert.ok(page.listeners.count > 0);
    client.disconnect();
    assert.equal(page.listeners.count, 0);
  });
});

/** When all promises that can be settled are. */
async function settled() {
  for (let i = 0; i < 10; i++) await Promise.resolve();
}
