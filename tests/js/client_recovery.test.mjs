// Tests of recovery (docs/protocol.md §4): requests, duplicates, and events for the page.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { clock } from './clock.mjs';
import { endClient, makeClient, newest, record } from './fake_browser.mjs';

let client;
let ids;

function start(...conversations) {
  for (const id of conversations) client.subscribe(id);
  client.connect(7, { url: 'ws://server.test/ws' });
  return newest().open();
}

/** Cut the connection and let the client reconnect. @returns the new socket, after `auth` was sent */
function reconnect(code = 1006) {
  newest().end(code);
  clock.tick(30_000);
  return newest().open();
}

const auth = (socket, more) => socket.event('authenticated', { user_id: 7, connection_id: 'c', ...more });
const subscribed = (socket, id, more) => socket.event('subscribed', { conversation_id: id, ...more });
const news = (socket, ...of) => of.forEach((id) => socket.event('news', {}, id));

beforeEach(() => {
  client = makeClient();
  ids = [];
  client.on('news', (data, { id }) => ids.push(id));
});

afterEach(() => endClient(client));

describe('last_event_id', () => {
  test('the first connection sends none', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    assert.deepEqual(socket.sent, [{ type: 'auth', user_id: 7 }, { type: 'subscribe', conversation_id: 5 }]);
  });

  test('the client sends the last id of the connection for every channel', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:3' });
    subscribed(socket, 6, { last_event_id: 'E:3' });
    news(socket, 'E:4', 'E:9');
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:9' });
    assert.deepEqual(socket.sent, [
      { type: 'auth', user_id: 7, last_event_id: 'E:9' },
      { type: 'subscribe', conversation_id: 5, last_event_id: 'E:9' },
      { type: 'subscribe', conversation_id: 6, last_event_id: 'E:9' },
    ]);
  });

  test('the client sends the id of the response if no event has arrived since', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:8' });
    assert.equal(auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:8' }).sent[0].last_event_id, 'E:3');
    assert.equal(newest().of('subscribe')[0].last_event_id, 'E:8');
  });

  test('the client sends none for a conversation without `subscribed`', () => {
    const socket = auth(start(), { last_event_id: 'E:3' });
    client.subscribe(5);
    news(socket, 'E:4');
    auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:4' });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('the client forgets it with the conversation', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:3' });
    client.unsubscribe(5);
    socket.event('unsubscribed', { conversation_id: 5 });
    client.subscribe(5);
    assert.equal('last_event_id' in socket.of('subscribe')[1], false);
  });

  test('the client sends none to a server without ids', () => {
    const socket = auth(start(5));
    subscribed(socket, 5);
    socket.event('new_message', {}).event('new_message', {});
    auth(reconnect());
    assert.deepEqual(newest().sent, [{ type: 'auth', user_id: 7 }, { type: 'subscribe', conversation_id: 5 }]);
  });

  test('the client sends the id of an older response until the next pong', () => {
    let socket = auth(start(5), { last_event_id: 'E:3' });
    news(socket, 'E:9');
    subscribed(socket, 5, { last_event_id: 'E:7' });
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:9' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:7');
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:9' });
    news(socket, 'E:8');
    assert.deepEqual(ids, ['E:9', 'E:8']);
  });

  test('the client sends the new epoch once a response has named it', () => {
    let socket = auth(start(), { last_event_id: 'E:90' });
    news(socket, 'E:91');
    client.subscribe(5);
    subscribed(socket, 5, { last_event_id: 'F:2' });
    socket = auth(reconnect(), { recovered: false, last_event_id: 'F:2' });
    assert.deepEqual(socket.sent.map((message) => message.last_event_id), ['E:90', 'F:2']);
  });

  test('the client uses the ids of events if responses have none', () => {
    const socket = auth(start(5));
    subscribed(socket, 5);
    news(socket, 'E:4');
    assert.equal(auth(reconnect(), { recovered: true, last_event_id: 'E:4' }).sent[0].last_event_id, 'E:4');
    assert.equal(newest().of('subscribe')[0].last_event_id, 'E:4');
  });
});

describe('a replay', () => {
  /** Connect at E:10, subscribe to 5, and reconnect. There is no response to `auth` yet. */
  function cut() {
    const socket = auth(start(5), { last_event_id: 'E:10' });
    subscribed(socket, 5, { last_event_id: 'E:10' });
    return reconnect();
  }

  test('the client emits replayed events in order, then `recovered`', () => {
    const socket = cut();
    const seen = record(client);
    auth(socket, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:13');
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:15' });
    news(socket, 'E:12', 'E:16');
    assert.deepEqual(
      seen.map(([event, data]) => (event === 'recovered' ? data : event)),
      [
        ...['authenticated', 'connected', 'news', 'news', { count: 2 }],
        ...['subscribed', 'news', { conversation_id: 5, count: 1 }, 'news'],
      ],
    );
    assert.deepEqual(ids, ['E:11', 'E:13', 'E:12', 'E:16']);
  });

  test('the client emits `recovered` at once for an empty replay', () => {
    const socket = cut();
    const seen = record(client, 'authenticated', 'connected', 'subscribed');
    auth(socket, { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 0, last_event_id: 'E:15' });
    assert.deepEqual(seen, [['recovered', { count: 0 }], ['recovered', { conversation_id: 5, count: 0 }]]);
  });

  test('the client requests an interrupted replay again and drops duplicates', () => {
    const seen = record(client, 'authenticated', 'connected', 'subscribed', 'disconnected', 'error', 'news');
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 3, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:16', 'E:12'); // 16 is a live event of the connection
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:17' });
    assert.equal(socket.of('auth')[0].last_event_id, 'E:16');
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:10');
    subscribed(socket, 5, { recovered: true, replayed: 4, last_event_id: 'E:17' });
    news(socket, 'E:11', 'E:12', 'E:14');
    assert.equal(seen.some(([event, data]) => event === 'recovered' && data.conversation_id), false);
    news(socket, 'E:17', 'E:18');
    assert.deepEqual(ids, ['E:11', 'E:16', 'E:12', 'E:14', 'E:17', 'E:18']);
    assert.deepEqual(seen.at(-1), ['recovered', { conversation_id: 5, count: 4 }]);
  });

  test('the client drops duplicates that a slower node sends live', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    subscribed(socket, 5, { recovered: true, replayed: 3, last_event_id: 'E:13' });
    news(socket, 'E:11', 'E:12');
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:10');
    subscribed(socket, 5, { recovered: true, replayed: 0, last_event_id: 'E:10' });
    news(socket, 'E:11', 'E:12', 'E:13');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:13']);
  });

  test('the client drops duplicates after a resync', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    subscribed(socket, 5, { recovered: true, replayed: 4, last_event_id: 'E:14' });
    news(socket, 'E:11', 'E:12', 'E:13');
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:12' });
    subscribed(socket, 5, { recovered: false, last_event_id: 'E:12' });
    news(socket, 'E:13', 'E:14');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:13', 'E:14']);
  });

  test('the client moves the position after a complete replay', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:20', 'E:12');
    // The server has held this event of the conversation during the replay.
    news(socket, 'E:18');
    assert.deepEqual(ids, ['E:11', 'E:20', 'E:12', 'E:18']);
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    assert.equal(socket.of('auth')[0].last_event_id, 'E:20');
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:15', 'more of them may have been on their way');
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:20' });
    news(socket, 'E:18', 'E:19');
    assert.deepEqual(ids, ['E:11', 'E:20', 'E:12', 'E:18', 'E:19']);
  });

  test('the position follows live events again after the next pong', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:20');
    clock.tick(30_000);
    socket.pong();
    news(socket, 'E:21');
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:21' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:21');
  });

  test('the pong of an earlier ping does not make the channel live', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    clock.tick(30_000);
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:15' });
    news(socket, 'E:20', 'E:11');
    socket.pong();
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:15');
  });

  test('the client emits an event of two channels once and counts it for both', () => {
    const socket = cut();
    const seen = record(client, 'authenticated', 'connected', 'subscribed');
    auth(socket, { recovered: true, replayed: 1, last_event_id: 'E:11' });
    news(socket, 'E:11');
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:11' });
    news(socket, 'E:11');
    assert.deepEqual(seen, [
      ['news', {}],
      ['recovered', { count: 1 }],
      ['recovered', { conversation_id: 5, count: 1 }],
    ]);
  });

  test('mixed replays end when all are complete', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:10' });
    for (const id of [5, 6]) subscribed(socket, id, { last_event_id: 'E:10' });
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    const seen = record(client, 'subscribed', 'news');
    for (const id of [5, 6]) subscribed(socket, id, { recovered: true, replayed: 2, last_event_id: 'E:20' });
    news(socket, 'E:11', 'E:12', 'E:13');
    assert.deepEqual(seen, []);
    news(socket, 'E:14');
    assert.deepEqual(seen.map(([, data]) => data), [5, 6].map((id) => ({ conversation_id: id, count: 2 })));
  });

  test('a replay of unknown length ends with the next pong', () => {
    const socket = auth(cut(), { recovered: true, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    assert.equal(socket.of('ping').length, 1);
    news(socket, 'E:11', 'E:12');
    assert.deepEqual(seen, []);
    socket.pong();
    assert.deepEqual(seen, [['recovered', { count: 2 }]]);
  });

  test('the client requests an interrupted replay of unknown length again', () => {
    const socket = auth(cut(), { recovered: true, last_event_id: 'E:15' });
    news(socket, 'E:11');
    assert.equal(reconnect().sent[0].last_event_id, 'E:10');
  });

  test('a replay that never arrives ends in a resync', () => {
    const socket = auth(cut(), { recovered: true, replayed: 3, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    news(socket, 'E:11');
    for (let i = 0; i < 2; i++) {
      socket.pong();
      assert.deepEqual(seen, []);
      clock.tick(30_000);
      socket.pong();
    }
    assert.deepEqual(seen, [['resync', {}]]);
  });

  test('a replay of an unsubscribed conversation emits nothing', () => {
    const socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    client.unsubscribe(5);
    news(socket, 'E:11', 'E:12');
    socket.event('unsubscribed', { conversation_id: 5 });
    assert.deepEqual(seen, [['unsubscribed', { conversation_id: 5 }]]);
    assert.deepEqual(reconnect().sent, [{ type: 'auth', user_id: 7, last_event_id: 'E:15' }]);
  });

  test('an aborted replay does not affect the next one', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:10' });
    for (const id of [5, 6]) subscribed(socket, id, { last_event_id: 'E:10' });
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    const seen = record(client, 'news', 'subscribed', 'unsubscribed');
    subscribed(socket, 5, { recovered: true, replayed: 9, last_event_id: 'E:20' });
    news(socket, 'E:11');
    client.unsubscribe(5);
    socket.event('unsubscribed', { conversation_id: 5 });
    subscribed(socket, 6, { recovered: true, replayed: 1, last_event_id: 'E:20' });
    news(socket, 'E:12');
    assert.deepEqual(seen, [['recovered', { conversation_id: 6, count: 1 }]]);
  });

  test('a replay of a conversation that a backend has unsubscribed emits nothing', () => {
    const socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    socket.event('unsubscribed', { conversation_id: 5 });
    news(socket, 'E:16');
    assert.deepEqual(seen, [['unsubscribed', { conversation_id: 5 }]]);
    assert.deepEqual(reconnect().sent, [{ type: 'auth', user_id: 7, last_event_id: 'E:16' }]);
  });

  test('a replay is incomplete if a handler disconnects', () => {
    const socket = auth(cut(), { recovered: true, replayed: 1, last_event_id: 'E:15' });
    const seen = record(client, 'news', 'disconnected');
    client.on('news', () => client.disconnect());
    news(socket, 'E:11');
    assert.deepEqual(seen, []);
    client.off('news');
    client.on('news', (data, { id }) => ids.push(id));
    assert.equal(start().sent[0].last_event_id, 'E:10');
    news(auth(newest(), { recovered: true, replayed: 1, last_event_id: 'E:15' }), 'E:11');
    assert.deepEqual(ids, ['E:11']);
  });
});

describe('resync', () => {
  test('the client emits it for the user after `auth`, and for a conversation after `subscribe`', () => {
    let socket = auth(start(5, 'x'), { last_event_id: 'E:10' });
    for (const id of [5, 'x']) subscribed(socket, id, { last_event_id: 'E:10' });
    const seen = record(client, 'authenticated', 'disconnected', 'error');
    socket = auth(reconnect(), { recovered: false, last_event_id: 'F:2' });
    subscribed(socket, 5, { recovered: false, last_event_id: 'F:2' });
    subscribed(socket, 'x', { recovered: false, last_event_id: 'F:3' });
    assert.deepEqual(
      seen.map(([event, data]) => (event === 'resync' ? data : event)),
      ['connected', {}, 'subscribed', { conversation_id: 5 }, 'subscribed', { conversation_id: 'x' }],
    );
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'F:3' });
    assert.deepEqual(socket.sent.map((message) => message.last_event_id), ['F:2', 'F:2', 'F:3']);
  });

  test('the client emits it when the server ignores the last id', () => {
    auth(start(), { last_event_id: 'E:10' });
    const seen = record(client);
    auth(reconnect(), { last_event_id: 'E:12' });
    assert.deepEqual(seen.at(-1), ['resync', {}]);
  });

  test('the client does not emit it for a first or a rejected subscribe', () => {
    const seen = record(client);
    let socket = auth(start(5), { last_event_id: 'E:10' });
    subscribed(socket, 5, { last_event_id: 'E:10' });
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    socket.event('error', { code: 'forbidden', request: { type: 'subscribe', conversation_id: 5 } });
    assert.equal(seen.some(([event]) => event === 'resync'), false);
  });
});

describe('an event', () => {
  test('the client emits an event once although it arrives twice', () => {
    const socket = auth(start(), { last_event_id: 'E:0' });
    news(socket, 'E:1', 'E:1', 'E:2', 'E:1', 'E:3');
    assert.deepEqual(ids, ['E:1', 'E:2', 'E:3']);
  });

  test('the client always emits an event without a valid id', () => {
    const socket = auth(start(), { last_event_id: 'E:0' });
    for (const id of [undefined, 5, 'x', 'x:y', ':1', undefined, 5, 'x']) socket.event('news', {}, id);
    assert.equal(ids.length, 8);
  });

  test('the client accepts the ids of a new epoch', () => {
    let socket = auth(start(5), { last_event_id: 'E:90' });
    subscribed(socket, 5, { last_event_id: 'E:90' });
    news(socket, 'E:91', 'F:1', 'F:2');
    assert.deepEqual(ids, ['E:91', 'F:1', 'F:2']);
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'F:2' });
    assert.deepEqual(socket.sent.map((message) => message.last_event_id), ['F:2', 'F:2']);
  });

  test('the client emits an event whose id was assigned again after a loss', () => {
    let socket = auth(start(), { last_event_id: 'E:10' });
    news(socket, 'E:11', 'E:12');
    socket = auth(reconnect(), { recovered: false, last_event_id: 'E:10' });
    news(socket, 'E:11');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:11']);
  });

  test('the client drops a duplicate after 100,000 other events with bounded memory', () => {
    const socket = auth(start(5), { last_event_id: 'E:0' });
    subscribed(socket, 5, { last_event_id: 'E:0' });
    let count = 0;
    client.off('news');
    client.on('news', () => (count += 1));
    const before = process.memoryUsage().heapUsed;
    for (let offset = 1; offset <= 100_000; offset++) news(socket, `E:${offset}`);
    globalThis.gc?.();
    news(socket, 'E:1', 'E:50000', 'E:99999', 'E:100000');
    assert.equal(count, 100_000);
    assert.ok(process.memoryUsage().heapUsed - before < 50e6);
  });

  test('the client remembers the ids of a long replay until it is complete', () => {
    let socket = auth(start(5), { last_event_id: 'E:0' });
    subscribed(socket, 5, { last_event_id: 'E:0' });
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:9000' });
    subscribed(socket, 5, { recovered: true, replayed: 5000, last_event_id: 'E:9000' });
    for (let offset = 1; offset <= 4999; offset++) news(socket, `E:${offset}`);
    for (let offset = 9001; offset <= 12_000; offset++) news(socket, `E:${offset}`);
    socket = auth(reconnect(), { recovered: true, replayed: 0, last_event_id: 'E:12000' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:0');
    subscribed(socket, 5, { recovered: true, replayed: 5000, last_event_id: 'E:12000' });
    for (let offset = 1; offset <= 5000; offset++) news(socket, `E:${offset}`);
    assert.equal(ids.length, 8000);
    assert.equal(new Set(ids).size, 8000);
  });
});
