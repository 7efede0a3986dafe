// Recovery, docs/protocol.md §4: what is sent, what is dropped, what the page is told.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { FakeWebSocket, newest, record } from './fake_browser.mjs';

let client;
let ids;

function start(...conversations) {
  for (const id of conversations) client.subscribe(id);
  client.connect(7, { url: 'ws://server.test/ws' });
  return newest().open();
}

/** Cut, and let the client dial again. @returns the new socket, its `auth` sent */
function again(code = 1006) {
  newest().end(code);
  clock.tick(30_000);
  return newest().open();
}

const auth = (socket, more) => socket.event('authenticated', { user_id: 7, connection_id: 'c', ...more });
const subscribed = (socket, id, more) => socket.event('subscribed', { conversation_id: id, ...more });
const news = (socket, ...of) => of.forEach((id) => socket.event('news', {}, id));

beforeEach(() => {
  clock.install();
  FakeWebSocket.made = [];
  client = new ChatwsClient({ WebSocket: FakeWebSocket });
  ids = [];
  client.on('news', (data, { id }) => ids.push(id));
});

afterEach(() => {
  client.disconnect();
  const left = clock.pending;
  clock.uninstall();
  assert.equal(left, 0, 'timers are left behind');
});

describe('last_event_id', () => {
  test('is absent the first time', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    assert.deepEqual(socket.sent, [{ type: 'auth', user_id: 7 }, { type: 'subscribe', conversation_id: 5 }]);
  });

  test('is the last id seen, for the connection and for each conversation, of whomever the event was', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:3' });
    subscribed(socket, 6, { last_event_id: 'E:3' });
    news(socket, 'E:4', 'E:9');
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:9' });
    assert.deepEqual(socket.sent, [
      { type: 'auth', user_id: 7, last_event_id: 'E:9' },
      { type: 'subscribe', conversation_id: 5, last_event_id: 'E:9' },
      { type: 'subscribe', conversation_id: 6, last_event_id: 'E:9' },
    ]);
  });

  test('is where the log stood at the answer when nothing has come since', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:8' });
    assert.equal(auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:8' }).sent[0].last_event_id, 'E:3');
    assert.equal(newest().of('subscribe')[0].last_event_id, 'E:8');
  });

  test('is absent for a conversation whose `subscribed` never came', () => {
    const socket = auth(start(), { last_event_id: 'E:3' });
    client.subscribe(5);
    news(socket, 'E:4');
    auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:4' });
    assert.deepEqual(newest().of('subscribe'), [{ type: 'subscribe', conversation_id: 5 }]);
  });

  test('is forgotten with the conversation', () => {
    const socket = auth(start(5), { last_event_id: 'E:3' });
    subscribed(socket, 5, { last_event_id: 'E:3' });
    client.unsubscribe(5);
    socket.event('unsubscribed', { conversation_id: 5 });
    client.subscribe(5);
    assert.equal('last_event_id' in socket.of('subscribe')[1], false);
  });

  test('is never made up: a server without ids is never sent one', () => {
    const socket = auth(start(5));
    subscribed(socket, 5);
    socket.event('new_message', {}).event('new_message', {});
    auth(again());
    assert.deepEqual(newest().sent, [{ type: 'auth', user_id: 7 }, { type: 'subscribe', conversation_id: 5 }]);
  });

  test('is that of the answer, until the next pong, when the answer is older than what has come', () => {
    let socket = auth(start(5), { last_event_id: 'E:3' });
    news(socket, 'E:9');
    subscribed(socket, 5, { last_event_id: 'E:7' });
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:9' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:7');
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:9' });
    news(socket, 'E:8');
    assert.deepEqual(ids, ['E:9', 'E:8']);
  });

  test('is of the new epoch once an answer has named it, whatever came before', () => {
    let socket = auth(start(), { last_event_id: 'E:90' });
    news(socket, 'E:91');
    client.subscribe(5);
    subscribed(socket, 5, { last_event_id: 'F:2' });
    socket = auth(again(), { recovered: false, last_event_id: 'F:2' });
    assert.deepEqual(socket.sent.map((one) => one.last_event_id), ['E:90', 'F:2']);
  });

  test('comes from events alone when the answers do not carry it', () => {
    const socket = auth(start(5));
    subscribed(socket, 5);
    news(socket, 'E:4');
    assert.equal(auth(again(), { recovered: true, last_event_id: 'E:4' }).sent[0].last_event_id, 'E:4');
    assert.equal(newest().of('subscribe')[0].last_event_id, 'E:4');
  });
});

describe('a replay', () => {
  /** Connected at E:10, subscribed to 5, cut, dialled again; `auth` not answered yet. */
  function cut() {
    const socket = auth(start(5), { last_event_id: 'E:10' });
    subscribed(socket, 5, { last_event_id: 'E:10' });
    return again();
  }

  test('reaches the handlers in order, and `recovered` comes behind it', () => {
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

  test('of nothing is told at once', () => {
    const socket = cut();
    const seen = record(client, 'authenticated', 'connected', 'subscribed');
    auth(socket, { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 0, last_event_id: 'E:15' });
    assert.deepEqual(seen, [['recovered', { count: 0 }], ['recovered', { conversation_id: 5, count: 0 }]]);
  });

  test('cut in the middle is asked for again from its start, and what was seen is dropped', () => {
    const seen = record(client, 'authenticated', 'connected', 'subscribed', 'disconnected', 'error', 'news');
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 3, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:16', 'E:12'); // 16 is a live one of the connection's
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:17' });
    assert.equal(socket.of('auth')[0].last_event_id, 'E:16');
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:10');
    subscribed(socket, 5, { recovered: true, replayed: 4, last_event_id: 'E:17' });
    news(socket, 'E:11', 'E:12', 'E:14');
    assert.equal(seen.some(([event, data]) => event === 'recovered' && data.conversation_id), false);
    news(socket, 'E:17', 'E:18');
    assert.deepEqual(ids, ['E:11', 'E:16', 'E:12', 'E:14', 'E:17', 'E:18']);
    assert.deepEqual(seen.at(-1), ['recovered', { conversation_id: 5, count: 4 }]);
  });

  test('cut in the middle is not given again by a node that has not read as far, and sends it live', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    subscribed(socket, 5, { recovered: true, replayed: 3, last_event_id: 'E:13' });
    news(socket, 'E:11', 'E:12');
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:10');
    subscribed(socket, 5, { recovered: true, replayed: 0, last_event_id: 'E:10' });
    news(socket, 'E:11', 'E:12', 'E:13');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:13']);
  });

  test('cut in the middle is not given again either when the node cannot prove that nothing is missing', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    subscribed(socket, 5, { recovered: true, replayed: 4, last_event_id: 'E:14' });
    news(socket, 'E:11', 'E:12', 'E:13');
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:12' });
    subscribed(socket, 5, { recovered: false, last_event_id: 'E:12' });
    news(socket, 'E:13', 'E:14');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:13', 'E:14']);
  });

  test('that was complete moves the place, also when live events of others came between', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:20', 'E:12');
    // An event of the conversation that was held meanwhile, behind a newer one of another channel:
    news(socket, 'E:18');
    assert.deepEqual(ids, ['E:11', 'E:20', 'E:12', 'E:18']);
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    assert.equal(socket.of('auth')[0].last_event_id, 'E:20');
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:15', 'more of them may have been on their way');
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:20' });
    news(socket, 'E:18', 'E:19');
    assert.deepEqual(ids, ['E:11', 'E:20', 'E:12', 'E:18', 'E:19']);
  });

  test('is behind us with the next pong: the place follows the live events again', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:15' });
    news(socket, 'E:11', 'E:20');
    clock.tick(30_000);
    socket.pong();
    news(socket, 'E:21');
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:21' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:21');
  });

  test('is not yet behind us with the pong of an earlier ping', () => {
    let socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    clock.tick(30_000);
    subscribed(socket, 5, { recovered: true, replayed: 1, last_event_id: 'E:15' });
    news(socket, 'E:20', 'E:11');
    socket.pong();
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:15');
  });

  test('of an event for two channels gives it once, and counts it for both', () => {
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

  test('mixed with another one ends when both are complete', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:10' });
    for (const id of [5, 6]) subscribed(socket, id, { last_event_id: 'E:10' });
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    const seen = record(client, 'subscribed', 'news');
    for (const id of [5, 6]) subscribed(socket, id, { recovered: true, replayed: 2, last_event_id: 'E:20' });
    news(socket, 'E:11', 'E:12', 'E:13');
    assert.deepEqual(seen, []);
    news(socket, 'E:14');
    assert.deepEqual(seen.map(([, data]) => data), [5, 6].map((id) => ({ conversation_id: id, count: 2 })));
  });

  test('of unknown length ends with the pong of a ping sent for it', () => {
    const socket = auth(cut(), { recovered: true, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    assert.equal(socket.of('ping').length, 1);
    news(socket, 'E:11', 'E:12');
    assert.deepEqual(seen, []);
    socket.pong();
    assert.deepEqual(seen, [['recovered', { count: 2 }]]);
  });

  test('of unknown length that is cut is asked for again from its start', () => {
    const socket = auth(cut(), { recovered: true, last_event_id: 'E:15' });
    news(socket, 'E:11');
    assert.equal(again().sent[0].last_event_id, 'E:10');
  });

  test('that was announced and never comes ends in a resync', () => {
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

  test('of a conversation that was left meanwhile concerns nobody', () => {
    const socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    client.unsubscribe(5);
    news(socket, 'E:11', 'E:12');
    socket.event('unsubscribed', { conversation_id: 5 });
    assert.deepEqual(seen, [['unsubscribed', { conversation_id: 5 }]]);
    assert.deepEqual(again().sent, [{ type: 'auth', user_id: 7, last_event_id: 'E:15' }]);
  });

  test('broken off by the server when the conversation is left does not disturb the next one', () => {
    let socket = auth(start(5, 6), { last_event_id: 'E:10' });
    for (const id of [5, 6]) subscribed(socket, id, { last_event_id: 'E:10' });
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:20' });
    const seen = record(client, 'news', 'subscribed', 'unsubscribed');
    subscribed(socket, 5, { recovered: true, replayed: 9, last_event_id: 'E:20' });
    news(socket, 'E:11');
    client.unsubscribe(5);
    socket.event('unsubscribed', { conversation_id: 5 });
    subscribed(socket, 6, { recovered: true, replayed: 1, last_event_id: 'E:20' });
    news(socket, 'E:12');
    assert.deepEqual(seen, [['recovered', { conversation_id: 6, count: 1 }]]);
  });

  test('of a conversation taken away by a backend in the middle of it concerns nobody', () => {
    const socket = auth(cut(), { recovered: true, replayed: 0, last_event_id: 'E:15' });
    subscribed(socket, 5, { recovered: true, replayed: 2, last_event_id: 'E:15' });
    const seen = record(client, 'news');
    socket.event('unsubscribed', { conversation_id: 5 });
    news(socket, 'E:16');
    assert.deepEqual(seen, [['unsubscribed', { conversation_id: 5 }]]);
    assert.deepEqual(again().sent, [{ type: 'auth', user_id: 7, last_event_id: 'E:16' }]);
  });

  test('ended by the page in the middle of a handler is not complete', () => {
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
  test('of everything when `auth` was not recovered, of a conversation when `subscribe` was not', () => {
    let socket = auth(start(5, 'x'), { last_event_id: 'E:10' });
    for (const id of [5, 'x']) subscribed(socket, id, { last_event_id: 'E:10' });
    const seen = record(client, 'authenticated', 'disconnected', 'error');
    socket = auth(again(), { recovered: false, last_event_id: 'F:2' });
    subscribed(socket, 5, { recovered: false, last_event_id: 'F:2' });
    subscribed(socket, 'x', { recovered: false, last_event_id: 'F:3' });
    assert.deepEqual(
      seen.map(([event, data]) => (event === 'resync' ? data : event)),
      ['connected', {}, 'subscribed', { conversation_id: 5 }, 'subscribed', { conversation_id: 'x' }],
    );
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'F:3' });
    assert.deepEqual(socket.sent.map((one) => one.last_event_id), ['F:2', 'F:2', 'F:3']);
  });

  test('also when the server ignores the last id: nobody has proved anything', () => {
    auth(start(), { last_event_id: 'E:10' });
    const seen = record(client);
    auth(again(), { last_event_id: 'E:12' });
    assert.deepEqual(seen.at(-1), ['resync', {}]);
  });

  test('does not follow a first subscribe, nor a refused one', () => {
    const seen = record(client);
    let socket = auth(start(5), { last_event_id: 'E:10' });
    subscribed(socket, 5, { last_event_id: 'E:10' });
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:10' });
    socket.event('error', { code: 'forbidden', request: { type: 'subscribe', conversation_id: 5 } });
    assert.equal(seen.some(([event]) => event === 'resync'), false);
  });
});

describe('an event', () => {
  test('that comes twice is given once', () => {
    const socket = auth(start(), { last_event_id: 'E:0' });
    news(socket, 'E:1', 'E:1', 'E:2', 'E:1', 'E:3');
    assert.deepEqual(ids, ['E:1', 'E:2', 'E:3']);
  });

  test('without an id, or with one that is none of ours, is always given', () => {
    const socket = auth(start(), { last_event_id: 'E:0' });
    for (const id of [undefined, 5, 'x', 'x:y', ':1', undefined, 5, 'x']) socket.event('news', {}, id);
    assert.equal(ids.length, 8);
  });

  test('of a new epoch starts a new count', () => {
    let socket = auth(start(5), { last_event_id: 'E:90' });
    subscribed(socket, 5, { last_event_id: 'E:90' });
    news(socket, 'E:91', 'F:1', 'F:2');
    assert.deepEqual(ids, ['E:91', 'F:1', 'F:2']);
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'F:2' });
    assert.deepEqual(socket.sent.map((one) => one.last_event_id), ['F:2', 'F:2']);
  });

  test('whose id was lost with the end of the log, and given out anew, is given', () => {
    let socket = auth(start(), { last_event_id: 'E:10' });
    news(socket, 'E:11', 'E:12');
    socket = auth(again(), { recovered: false, last_event_id: 'E:10' });
    news(socket, 'E:11');
    assert.deepEqual(ids, ['E:11', 'E:12', 'E:11']);
  });

  test('is dropped as seen after a hundred thousand others too, and memory stays small', () => {
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

  test('seen during a long replay is remembered until the replay is behind us', () => {
    let socket = auth(start(5), { last_event_id: 'E:0' });
    subscribed(socket, 5, { last_event_id: 'E:0' });
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:9000' });
    subscribed(socket, 5, { recovered: true, replayed: 5000, last_event_id: 'E:9000' });
    for (let offset = 1; offset <= 4999; offset++) news(socket, `E:${offset}`);
    for (let offset = 9001; offset <= 12_000; offset++) news(socket, `E:${offset}`);
    socket = auth(again(), { recovered: true, replayed: 0, last_event_id: 'E:12000' });
    assert.equal(socket.of('subscribe')[0].last_event_id, 'E:0');
    subscribed(socket, 5, { recovered: true, replayed: 5000, last_event_id: 'E:12000' });
    for (let offset = 1; offset <= 5000; offset++) news(socket, `E:${offset}`);
    assert.equal(ids.length, 8000);
    assert.equal(new Set(ids).size, 8000);
  });
});
