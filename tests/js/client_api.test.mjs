// Tests of the client's public methods and events.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { endClient, FakeWebSocket, makeClient, newest, putInPage, record } from './fake_browser.mjs';

const ADDRESS = 'ws://server.test/ws';
let client;

function connect(options = {}, userId = 123) {
  client.connect(userId, { url: ADDRESS, ...options });
  return newest();
}

/** Connect and authenticate, at the position `at` of the history. */
function enter(options, at = 'E:0') {
  const socket = connect(options);
  return socket.open().event('authenticated', { user_id: 123, connection_id: 'c', last_event_id: at });
}

beforeEach(() => {
  client = makeClient({ random: () => 0.5 });
});

afterEach(() => endClient(client));

describe('connect', () => {
  test('the client authenticates when the socket opens', () => {
    const socket = connect();
    assert.equal(socket.url, `${ADDRESS}?client=js`);
    assert.deepEqual(socket.sent, []);
    socket.open();
    assert.deepEqual(socket.sent, [{ type: 'auth', user_id: 123 }]);
  });

  test('the client is connected after `authenticated`, not after open', () => {
    const seen = record(client);
    const socket = connect().open();
    assert.equal(client.connected, false);
    const data = { user_id: 123, connection_id: 'c', last_event_id: 'E:0' };
    socket.event('authenticated', data);
    assert.equal(client.connected, true);
    assert.equal(client.isConnected, true);
    assert.deepEqual(seen, [['authenticated', data], ['connected', data]]);
  });

  test('the client sends a constant token unchanged', () => {
    assert.deepEqual(connect({ token: 'abc' }).open().sent, [{ type: 'auth', user_id: 123, token: 'abc' }]);
  });

  test('the client omits a null user id', () => {
    client.connect(null, { url: ADDRESS, token: 'abc' });
    assert.deepEqual(newest().open().sent, [{ type: 'auth', token: 'abc' }]);
  });

  test('the client calls the token function before each connection', async () => {
    let count = 0;
    client.connect(123, { url: ADDRESS, token: async () => `token-${++count}` });
    assert.equal(FakeWebSocket.made.length, 0);
    await settled();
    assert.equal(newest().open().sent[0].token, 'token-1');
    newest().end();
    clock.tick(500);
    await settled();
    assert.equal(newest().open().sent[0].token, 'token-2');
  });

  const wrong = [
    [false, /returned false/],
    ['', /returned an empty text/],
    [undefined, /returned undefined/],
    [null, /returned null/],
    [true, /returned true/],
    [7, /type number/],
    [{ token: 'abc' }, /type object/],
    [['abc'], /type object/],
    [new Error('no session'), /no session/],
  ];
  for (const [value, sentence] of wrong) {
    for (const isLate of [false, true]) {
      const title = `the client retries after the token ${String(value) || '""'}${isLate ? ', late' : ''}`;
      test(title, async () => {
        const seen = record(client);
        let calls = 0;
        let result = value;
        const source = () => {
          calls += 1;
          if (result instanceof Error) throw result;
          return result;
        };
        client.connect(123, { url: ADDRESS, token: isLate ? async () => source() : source });
        await settled();
        assert.equal(calls, 1);
        assert.deepEqual(seen.map(([event, data]) => data.code ?? event), ['token_failed', 1006]);
        assert.match(seen[0][1].message, sentence);
        for (let times = 2; times <= 9; times++) {
          clock.tick(15_000); // the longest delay with this `random`
          await settled();
          assert.equal(calls, times);
        }
        assert.equal(seen.length, 10, 'one error for each call, and one `disconnected`');
        assert.equal(FakeWebSocket.made.length, 0, 'no connection without a token');
        result = 'abc';
        clock.tick(15_000);
        await settled();
        assert.deepEqual(newest().open().sent, [{ type: 'auth', user_id: 123, token: 'abc' }]);
      });
    }
  }

  test('the client doubles the delay between token attempts', async () => {
    const calls = [];
    client.connect(123, { url: ADDRESS, token: () => void calls.push(Date.now()) });
    for (let step = 0; step < 1400; step++) {
      await settled();
      clock.tick(50);
    }
    const waits = calls.slice(1).map((at, i) => at - calls[i]);
    assert.deepEqual(waits, [250, 500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
  });

  test('the client aborts a token function that never returns, and retries', async () => {
    const seen = record(client);
    let calls = 0;
    client.connect(123, { url: ADDRESS, token: () => new Promise(() => (calls += 1)) });
    await settled();
    clock.tick(20_000);
    assert.equal(seen[0][1].code, 'token_failed');
    assert.match(seen[0][1].message, /did not return within 20 s/);
    clock.tick(500);
    await settled();
    assert.equal(calls, 2);
  });

  for (const token of [false, '', undefined, null, true, 7, { token: 'abc' }]) {
    test(`the client rejects the constant ${JSON.stringify(token) ?? token} as a token, once`, () => {
      const seen = record(client);
      for (const user of [123, null]) client.connect(user, { url: ADDRESS, token });
      assert.deepEqual(seen.map(([event, data]) => `${event} ${data.code}`), Array(2).fill('error token_failed'));
      assert.match(seen[0][1].message, /pass connect\(\) a function/);
      clock.tick(600_000);
      assert.equal(FakeWebSocket.made.length, 0);
      assert.equal(seen.length, 2);
    });
  }

  test('the client reports a rejected constant token once and does not reconnect', () => {
    const seen = record(client, 'authenticated', 'connected', 'resync');
    const socket = connect({ token: 'abc' }).open();
    socket.event('authenticated', { user_id: 123, last_event_id: 'E:0' });
    socket.end(4000, 'the token has expired');
    clock.tick(500);
    newest().open().event('error', { code: 'auth_failed', request: { type: 'auth' } });
    newest().end(4901, 'the token has expired');
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 2);
    assert.deepEqual(
      seen.map(([event, { code }]) => [event, code]),
      [['disconnected', 4000], ['error', 'auth_failed'], ['error', 'token_failed'], ['reconnect_failed', 4901]],
    );
    assert.match(seen[2][1].message, /the token has expired.*pass connect\(\) a function/);
  });

  test('the page may connect with a new token in the `error` handler', () => {
    const seen = record(client, 'error');
    client.on('error', () => client.connect(123, { url: ADDRESS, token: 'fresh' }));
    connect({ token: 'stale' }).open().end(4901);
    assert.equal(newest().open().sent[0].token, 'fresh');
    assert.deepEqual(seen, []);
    client.off('error');
  });

  test('the client reports no `token_failed` for a rejected token of a function, or without a token', async () => {
    const seen = record(client);
    client.connect(123, { url: ADDRESS, token: () => 'abc' });
    await settled();
    newest().open().end(4901);
    connect().open().end(4901);
    assert.ok(seen.every(([event]) => event !== 'error'));
  });

  test('a second call for the same user only replaces the token', () => {
    const socket = enter();
    client.connect('123', { url: ADDRESS, token: 'new' });
    assert.equal(FakeWebSocket.made.length, 1);
    socket.end();
    clock.tick(30_000);
    assert.equal(newest().open().sent[0].token, 'new');
  });

  test('a call for another user closes the connection and drops the subscriptions', () => {
    client.subscribe(5);
    const first = enter(undefined, 'E:7');
    client.connect(124, { url: ADDRESS });
    assert.equal(first.closedWith, 1000);
    newest().open().event('authenticated', { user_id: 124, last_event_id: 'E:7' });
    assert.deepEqual(newest().sent, [{ type: 'auth', user_id: 124 }]);
  });

  test('another user after a reconnect drops the subscriptions and is announced before anything else', () => {
    client.connect(null, { url: ADDRESS, token: 'agent' });
    client.subscribe(5);
    newest().open().event('authenticated', { user_id: 7, role: 'agent', connection_id: 'a', last_event_id: 'E:7' });
    assert.equal(client.connectionId, 'a');
    newest().event('subscribed', { conversation_id: 5, last_event_id: 'E:7' });
    newest().end(1006);
    assert.equal(client.connectionId, null);
    const seen = record(client);
    client.on('identity_changed', () => client.subscribe(6));
    clock.tick(2000);
    const contact = { contact_id: 7, role: 'contact', connection_id: 'b', last_event_id: 'E:9' };
    newest().open().event('authenticated', { ...contact, recovered: true, replayed: 0 });
    assert.deepEqual(seen[0], ['identity_changed', { contact_id: 7 }]);
    assert.deepEqual(newest().sent.slice(1), [{ type: 'subscribe', conversation_id: 6 }]);
    assert.equal(client.connectionId, 'b');
  });

  test('the same user after a reconnect is not announced', () => {
    enter();
    const seen = record(client);
    newest().end(1006);
    clock.tick(2000);
    newest().open().event('authenticated', { user_id: 123, role: 'agent', connection_id: 'b', last_event_id: 'E:0' });
    assert.deepEqual(seen.filter(([event]) => event === 'identity_changed'), []);
  });

  describe('without a user id', () => {
    const tokenOf = (sub, claims = {}) => `e30.${btoa(JSON.stringify({ sub, ...claims })).replace(/=+$/, '')}.x`;

    /** Authenticate as a contact with a subscription, at the position E:7. */
    function enterAs(id, token) {
      client.connect(null, { url: ADDRESS, token });
      client.subscribe(5);
      const contact = { contact_id: id, role: 'contact', connection_id: 'a', last_event_id: 'E:7' };
      newest().open().event('authenticated', contact).event('subscribed', { conversation_id: 5, last_event_id: 'E:7' });
      return newest();
    }

    test('a token of another user starts without the subscriptions and positions of the previous one', () => {
      const first = enterAs(7, tokenOf('7'));
      const seen = record(client);
      client.connect(null, { url: ADDRESS, token: tokenOf('8') });
      client.subscribe(6);
      assert.equal(first.closedWith, 1000);
      newest().open().event('authenticated', { contact_id: 8, role: 'contact', connection_id: 'b', last_event_id: 'E:9' });
      assert.deepEqual(newest().sent, [
        { type: 'auth', token: tokenOf('8') },
        { type: 'subscribe', conversation_id: 6 },
      ]);
      assert.deepEqual(seen.filter(([event]) => event === 'identity_changed'), []);
    });

    test('an agent and a contact with the same id are different users', () => {
      enterAs(7, tokenOf('7', { role: 'contact' }));
      client.connect(null, { url: ADDRESS, token: tokenOf('7', { role: 'agent' }) });
      assert.deepEqual(newest().open().sent[0], { type: 'auth', token: tokenOf('7', { role: 'agent' }) });
    });

    test('another token of the same user only replaces the token', () => {
      enterAs(7, tokenOf('7', { exp: 1 }));
      client.connect(null, { url: ADDRESS, token: tokenOf('7', { exp: 2 }) });
      assert.equal(FakeWebSocket.made.length, 1);
      newest().end(1006);
      clock.tick(2000);
      assert.equal(newest().open().sent[0].token, tokenOf('7', { exp: 2 }));
    });

    test('another token function of the same user recovers what it missed', async () => {
      enterAs(7, tokenOf('7'));
      client.connect(null, { url: ADDRESS, token: async () => tokenOf('7') });
      await settled();
      newest().open().event('authenticated', { contact_id: 7, role: 'contact', connection_id: 'b', last_event_id: 'E:9' });
      assert.deepEqual(newest().sent, [
        { type: 'auth', token: tokenOf('7'), last_event_id: 'E:7' },
        { type: 'subscribe', conversation_id: 5, last_event_id: 'E:7' },
      ]);
    });

    test('a token function of another user keeps the subscriptions made after the call', async () => {
      enterAs(7, tokenOf('7'));
      client.connect(null, { url: ADDRESS, token: async () => tokenOf('8') });
      client.subscribe(6);
      await settled();
      newest().open().event('authenticated', { contact_id: 8, role: 'contact', connection_id: 'b', last_event_id: 'E:9' });
      assert.deepEqual(newest().sent, [
        { type: 'auth', token: tokenOf('8') },
        { type: 'subscribe', conversation_id: 6 },
      ]);
    });

    test('another user after `disconnect` starts without the subscriptions of the previous one', () => {
      enterAs(7, tokenOf('7'));
      client.disconnect();
      client.connect(null, { url: ADDRESS, token: tokenOf('8') });
      newest().open().event('authenticated', { contact_id: 8, role: 'contact', connection_id: 'b', last_event_id: 'E:9' });
      assert.deepEqual(newest().sent, [{ type: 'auth', token: tokenOf('8') }]);
    });

    test('the same token function again changes nothing', async () => {
      const token = () => tokenOf('7');
      client.connect(null, { url: ADDRESS, token });
      await settled();
      client.connect(null, { url: ADDRESS, token });
      assert.equal(FakeWebSocket.made.length, 1);
    });
  });

  test('a call without a user and a token is an error', () => {
    const seen = record(client);
    for (const user of [undefined, null, '', {}, NaN, -1, 1.5, true]) client.connect(user, { url: ADDRESS });
    assert.equal(FakeWebSocket.made.length, 0);
    assert.deepEqual(new Set(seen.map(([event, data]) => `${event} ${data.code}`)), new Set(['error bad_message']));
    assert.equal(seen.length, 8);
  });

  test('the client throws for an invalid URL', () => {
    assert.throws(() => client.connect(123, { url: 'http://[' }), TypeError);
  });

  test('the client retries when the WebSocket constructor throws', () => {
    const seen = record(client);
    let broken = true;
    const Sometimes = function (url) {
      if (broken) throw new Error('insecure');
      return new FakeWebSocket(url);
    };
    client = new ChatwsClient({ WebSocket: Sometimes, random: () => 0.5 });
    client.on('error', (data) => seen.push(data.code));
    client.connect(1, { url: ADDRESS });
    assert.deepEqual(seen, ['connection_failed']);
    broken = false;
    clock.tick(500);
    assert.equal(FakeWebSocket.made.length, 1);
  });
});

describe('the default URL', () => {
  for (const [page, url] of [
    ['https://shop.example/inbox', 'wss://shop.example/ws?client=js'],
    ['https://shop.example:8443/inbox', 'wss://shop.example:8443/ws?client=js'],
    ['https://localhost/inbox', 'wss://localhost/ws?client=js'],
    ['http://shop.example/inbox', 'ws://shop.example/ws?client=js'],
    ['http://shop.example:81/inbox', 'ws://shop.example:81/ws?client=js'],
    ['http://localhost/inbox', 'ws://localhost:8080/?client=js'],
    ['http://localhost:8000/inbox', 'ws://localhost:8080/?client=js'],
    ['http://127.0.0.1:3000/', 'ws://127.0.0.1:8080/?client=js'],
    ['http://[::1]/', 'ws://[::1]:8080/?client=js'],
    ['file:///home/ana/inbox.html', 'ws://localhost:8080/?client=js'],
  ]) {
    test(`on ${page} is ${url}`, (t) => {
      putInPage(t, page);
      client.connect(1);
      assert.equal(newest().url, url);
      client.disconnect();
    });
  }

  test('the option `url` may be relative or use http', (t) => {
    putInPage(t, 'https://shop.example/inbox/');
    client.connect(1, { url: '/chat/ws' });
    assert.equal(newest().url, 'wss://shop.example/chat/ws?client=js');
    client.connect(1, { url: 'http://127.0.0.1:9000/ws' });
    assert.equal(newest().url, 'ws://127.0.0.1:9000/ws?client=js');
    client.connect(1, { url: '/ws?shop=a%20b' });
    assert.equal(newest().url, 'wss://shop.example/ws?shop=a%20b&client=js');
    client.connect(1, { url: '/ws?client=mine' });
    assert.equal(newest().url, 'wss://shop.example/ws?client=mine');
    client.disconnect();
  });
});

describe('subscribe', () => {
  test('a subscription before connect is sent after it', () => {
    client.subscribe(5);
    assert.deepEqual(enter().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('a subscription on an open connection is sent at once', () => {
    const socket = enter();
    assert.equal(client.subscribe('abc'), true);
    assert.deepEqual(socket.of('subscribe'), [{ type: 'subscribe', conversation_id: 'abc' }]);
  });

  test('a repeated subscription is sent once, also with the id as a string', () => {
    const socket = enter();
    client.subscribe(5);
    client.subscribe('5');
    assert.equal(socket.of('subscribe').length, 1);
  });

  test('a repeated subscription in the `connected` handler is sent once', () => {
    client.subscribe(5);
    client.on('connected', () => client.subscribe(5));
    assert.equal(enter().of('subscribe').length, 1);
  });

  test('an invalid id is an error', () => {
    const seen = record(client);
    const none = [undefined, null, '', 1.5, -1, {}, 'x'.repeat(129)];
    for (const wrong of none) assert.equal(client.subscribe(wrong), false);
    assert.equal(seen.length, 7);
    assert.deepEqual(enter().of('subscribe'), []);
  });

  test('the next connection sends the subscription again', () => {
    client.subscribe(5);
    enter().end();
    clock.tick(30_000);
    newest().open();
    assert.deepEqual(newest().of('subscribe'), [], 'not before it is authenticated');
    newest().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('a rejected subscription is reported and not repeated', () => {
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

  test('the page may repeat a rejected subscription', () => {
    const socket = enter();
    client.subscribe(5);
    socket.event('error', { code: 'forbidden', request: { type: 'subscribe', conversation_id: 5 } });
    client.subscribe(5);
    assert.equal(socket.of('subscribe').length, 2);
  });

  test('a subscription answered with `unavailable` is repeated later', () => {
    const socket = enter();
    client.subscribe(5);
    socket.event('error', { code: 'unavailable', request: { type: 'subscribe', conversation_id: 5 } });
    clock.tick(4_999);
    assert.equal(socket.of('subscribe').length, 1);
    clock.tick(5_001);
    assert.equal(socket.of('subscribe').length, 2);
  });

  test('a thousand subscriptions are sent at once', () => {
    for (let id = 1; id <= 1000; id++) client.subscribe(id);
    const ids = enter().of('subscribe').map((message) => message.conversation_id);
    assert.deepEqual(ids, [...Array(1000).keys()].map((i) => i + 1));
  });
});

describe('unsubscribe', () => {
  test('the client unsubscribes and does not subscribe again', () => {
    client.subscribe(5);
    const socket = enter();
    client.unsubscribe('5');
    assert.deepEqual(socket.of('unsubscribe'), [{ type: 'unsubscribe', conversation_id: '5' }]);
    socket.end();
    clock.tick(30_000);
    newest().open().event('authenticated', { user_id: 123 });
    assert.deepEqual(newest().of('subscribe'), []);
  });

  test('the client without a connection drops the subscription', () => {
    client.subscribe(5);
    client.unsubscribe(5);
    assert.deepEqual(enter().sent, [{ type: 'auth', user_id: 123 }]);
  });

  test('an `unsubscribed` of a backend ends the subscription', () => {
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

  test('an `unsubscribed` ends a subscribe without a response', () => {
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

  test('a subscribe right after an unsubscribe stays in effect', () => {
    const socket = enter();
    client.subscribe(5);
    client.unsubscribe(5);
    client.subscribe(5);
    assert.deepEqual(socket.sent.slice(1).map((message) => message.type), ['subscribe', 'unsubscribe', 'subscribe']);
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
  test('the client sends typing', () => {
    const socket = enter();
    client.subscribe(5);
    assert.equal(client.sendTyping(5, true), true);
    assert.equal(client.sendTyping(5, false), true);
    assert.equal(client.sendTyping(5), true);
    assert.deepEqual(socket.of('typing').map((message) => message.is_typing), [true, false, true]);
    assert.deepEqual(socket.of('typing')[0], { type: 'typing', conversation_id: 5, is_typing: true });
  });

  test('the client sends any object unchanged', () => {
    const socket = enter();
    assert.equal(client.send({ type: 'activity', activity_type: 'visibility_change' }), true);
    assert.deepEqual(socket.sent.at(-1), { type: 'activity', activity_type: 'visibility_change' });
  });

  test('the client without a connection sends and queues nothing', () => {
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
  test('the client sends a new token without another `connected`', async () => {
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

  test('the client calls the token function again', async () => {
    let count = 0;
    connect({ token: () => `token-${++count}` });
    await settled();
    const socket = newest().open().event('authenticated', { user_id: 123 });
    await client.renew();
    assert.equal(socket.sent.at(-1).token, 'token-2');
  });

  test('the client without a connection keeps the token for the next one', async () => {
    assert.equal(await client.renew('later'), false);
  });

  test('the client reports a token function that fails', async () => {
    enter();
    const seen = record(client);
    assert.equal(await client.renew(() => Promise.reject(new Error('logged out'))), false);
    assert.equal(seen[0][1].code, 'token_failed');
    assert.equal(client.connected, true);
  });
});

describe('handlers', () => {
  test('handlers receive data, name and id of an event', () => {
    const calls = [];
    client.on('new_message', (...given) => calls.push(given));
    const data = { conversation_id: 5, message: { id: 1, content: 'hi' } };
    const socket = enter();
    socket.event('new_message', data, 'E:1');
    socket.event('typing', { conversation_id: 5, user_id: 1, is_typing: true });
    assert.deepEqual(calls, [[data, { event: 'new_message', id: 'E:1' }]]);
  });

  test('handlers are called once each until they are removed', () => {
    const calls = [];
    const first = () => calls.push('first');
    const second = () => calls.push('second');
    assert.equal(client.on('typing', first).on('typing', second).on('typing', first), client);
    const socket = enter();
    socket.event('typing', {});
    client.off('typing', first);
    socket.event('typing', {});
    client.off('typing');
    socket.event('typing', {});
    assert.deepEqual(calls, ['first', 'second', 'second']);
  });

  test('a handler that an earlier one has removed is not called', () => {
    const calls = [];
    const late = () => calls.push('late');
    client.on('typing', () => client.off('typing', late));
    client.on('typing', late);
    enter().event('typing', {});
    assert.deepEqual(calls, []);
  });

  test('a handler that throws is reported and does not stop the others', (t) => {
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
    const summaries = errors.map((data) => [data.code, data.error.message]);
    assert.deepEqual(summaries, Array(2).fill(['handler_failed', 'of the page']));
    assert.equal(client.connected, true);
  });

  test('a handler of `error` that throws is not called again for it', (t) => {
    t.mock.method(console, 'error', () => {});
    const angry = () => {
      throw new Error('again');
    };
    client.on('error', angry).on('*', angry);
    enter().event('error', { code: 'bad_message' });
    assert.equal(client.connected, true);
  });

  test('a handler that is not a function throws', () => {
    assert.throws(() => client.on('typing', undefined), TypeError);
  });

  test('the client reports a frame that is not JSON, and ignores unknown messages', () => {
    const socket = enter();
    const seen = record(client);
    for (const frame of ['{', '[]', '1', 'null', '{}', '{"event":5}']) socket.receive(frame);
    assert.deepEqual(seen.map(([event, data]) => [event, data.code]), [['error', 'bad_frame']]);
    assert.equal(client.connected, true);
  });
});

describe('disconnect', () => {
  test('the client closes with 1000 and does not reconnect', () => {
    const socket = enter();
    const seen = record(client);
    client.disconnect();
    assert.equal(socket.closedWith, 1000);
    assert.equal(client.connected, false);
    const data = { code: 1000, reason: '', will_reconnect: false, never_connected: false };
    assert.deepEqual(seen, [['disconnected', data]]);
    socket.end(1000);
    client.disconnect();
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 1);
    assert.equal(seen.length, 1);
  });

  test('the client cancels a pending reconnect', () => {
    enter().end();
    client.disconnect();
    clock.tick(600_000);
    assert.equal(FakeWebSocket.made.length, 1);
  });

  test('the client disconnects in a handler of `authenticated`', () => {
    const seen = record(client, 'authenticated');
    client.on('authenticated', () => client.disconnect());
    enter();
    assert.deepEqual(seen.map(([event]) => event), ['disconnected']);
  });

  test('the client keeps the subscriptions for a later connect', () => {
    client.subscribe(5);
    enter();
    client.disconnect();
    enter();
    assert.equal(newest().of('subscribe').length, 1);
  });

  test('the client removes its listeners from the page', (t) => {
    const page = putInPage(t);
    enter();
    assert.ok(page.listeners.count > 0);
    client.disconnect();
    assert.equal(page.listeners.count, 0);
  });
});

describe('an origin that is not allowed', () => {
  const HREF = 'https://shop.example/inbox';

  /** A page with a server that sends this response. @returns the requests */
  function pageWith(t, response) {
    putInPage(t, HREF);
    const requests = [];
    globalThis.fetch = async (url, options) => {
      requests.push([url, options.credentials]);
      if (response instanceof Error) throw response;
      return { json: async () => JSON.parse(response) };
    };
    return requests;
  }

  test('the client names the origin and the setting once', async (t) => {
    const requests = pageWith(t, '{"allowed":false}');
    const seen = record(client);
    client.connect(1, { url: 'ws://chat.example:8080/ws?a=b' });
    for (let times = 0; times < 3; times++) {
      newest().end();
      await settled();
      clock.tick(30_000);
    }
    assert.deepEqual(requests, [['http://chat.example:8080/ws?origin=https%3A%2F%2Fshop.example', 'omit']]);
    const errors = seen.filter(([, data]) => data.code === 'origin_not_allowed');
    assert.equal(errors.length, 1);
    assert.equal(errors[0][1].origin, 'https://shop.example');
    assert.equal(
      errors[0][1].message,
      'chat.example:8080 rejects pages of https://shop.example: add https://shop.example to its setting allowed_origins',
    );
    client.disconnect();
  });

  for (const answer of ['{"allowed":true}', '{}', '[', new Error('refused')]) {
    test(`the client reports no origin when the server answers ${answer}`, async (t) => {
      const requests = pageWith(t, answer);
      const seen = record(client, 'disconnected');
      client.connect(1);
      newest().end();
      await settled();
      assert.deepEqual(requests.map(([url]) => url), ['https://shop.example/ws?origin=https%3A%2F%2Fshop.example']);
      assert.deepEqual(seen.map(([, { code }]) => code), ['connection_failed']);
      client.disconnect();
    });
  }

  test('the client does not check the origin after an accepted connection', async (t) => {
    const requests = pageWith(t, '{"allowed":false}');
    enter().end();
    await settled();
    clock.tick(30_000);
    newest().end();
    await settled();
    assert.deepEqual(requests, []);
    client.disconnect();
    connect().end();
    await settled();
    assert.equal(requests.length, 1);
    client.disconnect();
  });

  test('the client does not report the origin after a connect to another URL', async (t) => {
    pageWith(t, '{"allowed":false}');
    const seen = record(client);
    connect().end();
    client.connect(123, { url: 'ws://other.test/ws' });
    await settled();
    assert.ok(seen.every(([, { code }]) => code !== 'origin_not_allowed'));
    client.disconnect();
  });
});

describe('an error of the client', () => {
  test('the client warns on the console without an error handler', (t) => {
    const warned = t.mock.method(console, 'warn', () => {});
    client.connect(123, { url: ADDRESS, token: '' });
    assert.equal(warned.mock.callCount(), 1);
    assert.match(warned.mock.calls[0].arguments[0], /^wsClient: token_failed: the token is an empty text/);
    client.on('error', () => {});
    client.connect(123, { url: ADDRESS, token: '' });
    assert.equal(warned.mock.callCount(), 1);
  });

  test('the client does not warn about a failed connection', (t) => {
    const warned = t.mock.method(console, 'warn', () => {});
    connect().end();
    assert.equal(warned.mock.callCount(), 0);
  });
});

/** Wait until all pending promises have settled. */
async function settled() {
  for (let i = 0; i < 10; i++) await Promise.resolve();
}
