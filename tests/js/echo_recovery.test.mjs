// Tests of chatws-echo.js with a fake server, and with npm's pusher-js and laravel-echo. CHATWS_NPM is the directory of
// the packages.

import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import vm from 'node:vm';

const SCRIPT = fileURLToPath(new URL('../../chatws/static/chatws-echo.js', import.meta.url));
const NPM = process.env.CHATWS_NPM;
const URL_OF_APP = 'wss://shop.example/app/key?protocol=7&client=js&version=8.6.0';

/** A WebSocket whose server is the test. */
class FakeSocket extends EventTarget {
  static made = [];

  constructor(url) {
    super();
    this.url = url;
    this.frames = [];
    for (const name of ['open', 'message', 'close', 'error']) {
      this[`on${name}`] = undefined;
    }
    FakeSocket.made.push(this);
  }

  send(text) {
    this.frames.push(JSON.parse(text));
  }

  close() {}

  // Called by the test. As in a browser, listeners run in the order in which they were added, and `onmessage`, which
  // pusher-js sets after the constructor, runs last.

  dispatchEvent(event) {
    let stopped = false;
    const stop = event.stopImmediatePropagation.bind(event);
    event.stopImmediatePropagation = () => {
      stopped = true;
      stop();
    };
    super.dispatchEvent(event);
    if (!stopped) this[`on${event.type}`]?.(event);
    return true;
  }

  open() {
    this.dispatchEvent(new Event('open'));
    this.receive({ event: 'pusher:connection_established', data: '{"socket_id":"1.1","activity_timeout":30}' });
  }

  receive(frame) {
    this.dispatchEvent(new MessageEvent('message', { data: JSON.stringify(frame) }));
  }

  /** Confirm a subscription. */
  confirm(channel, id) {
    this.receive({ event: 'pusher_internal:subscription_succeeded', channel, data: '{}', ...(id && { id }) });
  }

  recovered(channel, recovered, id) {
    const data = JSON.stringify({ recovered });
    this.receive({ event: 'chatws:recovered', channel, data, ...(id && { id }) });
  }

  end() {
    const event = Object.assign(new Event('close'), { code: 1006, reason: '', wasClean: false });
    this.dispatchEvent(event);
  }

  subscriptions() {
    return this.frames.filter((frame) => frame.event === 'pusher:subscribe').map((frame) => frame.data);
  }
}

/** A page with the script. `connect` returns a socket of pusher-js's kind that records what reaches its handler. */
function page() {
  FakeSocket.made = [];
  const world = vm.createContext({
    console,
    crypto: webcrypto,
    clearInterval,
    clearTimeout,
    setInterval,
    setTimeout,
    Event,
    EventTarget,
    MessageEvent,
    URL,
    WebSocket: FakeSocket,
    addEventListener() {},
    location: new URL('https://shop.example/'),
    navigator: { onLine: true, userAgent: 'test' },
    XMLHttpRequest: class {},
  });
  world.window = world.self = world;
  world.document = {
    location: world.location,
    addEventListener() {},
    body: {},
    createElement: () => ({}),
    getElementsByTagName: () => [{}],
  };
  world.load = (path = SCRIPT) => vm.runInContext(readFileSync(path, 'utf8'), world);
  world.load();
  world.connect = (url = URL_OF_APP) => {
    const socket = new world.WebSocket(url);
    socket.seen = [];
    socket.onmessage = (event) => {
      const frame = JSON.parse(event.data);
      socket.seen.push(frame.channel ? `${frame.channel} ${frame.event}` : frame.event);
    };
    socket.subscribe = (channel) => socket.send(JSON.stringify({ event: 'pusher:subscribe', data: { channel } }));
    socket.unsubscribe = (channel) => socket.send(JSON.stringify({ event: 'pusher:unsubscribe', data: { channel } }));
    socket.open();
    socket.seen = [];
    return socket;
  };
  return world;
}

/** A connection that has subscribed to `a`, and has received the event 1-5. */
function subscribed(world) {
  const socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '1-4');
  socket.receive({ event: 'paid', channel: 'a', data: '{}', id: '1-5' });
  return socket;
}

test('the first subscription names no id', () => {
  const socket = page().connect();
  socket.subscribe('a');
  assert.deepEqual(socket.subscriptions(), [{ channel: 'a' }]);
});

test('a subscription after a reconnect names the last event of its channel', () => {
  const world = page();
  subscribed(world).end();
  const socket = world.connect('ws://shop.example:8080/app/key?protocol=7');
  socket.subscribe('a');
  socket.subscribe('b');
  assert.deepEqual(socket.subscriptions(), [{ channel: 'a', last_event_id: '1-5' }, { channel: 'b' }]);
});

test('a channel without an event names the id of its subscription', () => {
  const world = page();
  let socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '1-4');
  socket.end();
  socket = world.connect();
  socket.subscribe('a');
  assert.equal(socket.subscriptions()[0].last_event_id, '1-4');
});

test('missed events arrive once, and the next reconnect continues after them', () => {
  const world = page();
  subscribed(world).end();
  let socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '1-7');
  for (const id of ['1-5', '1-6', '1-7', '1-7']) socket.receive({ event: id, channel: 'a', data: '{}', id });
  socket.recovered('a', true);
  assert.deepEqual(socket.seen, [
    'a pusher_internal:subscription_succeeded',
    'a 1-6',
    'a 1-7',
    'a chatws:recovered',
  ]);
  socket.end();
  socket = world.connect();
  socket.subscribe('a');
  assert.equal(socket.subscriptions()[0].last_event_id, '1-7');
});

test('a connection that ends before its missed events asks for them again', () => {
  const world = page();
  subscribed(world).end();
  let socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '1-7');
  socket.receive({ event: 'paid', channel: 'a', data: '{}', id: '1-6' });
  socket.end();
  socket = world.connect();
  socket.subscribe('a');
  assert.equal(socket.subscriptions()[0].last_event_id, '1-6');
});

test('a connection that closes before its first subscription keeps the ids', () => {
  const world = page();
  subscribed(world).end();
  world.connect().end();
  const socket = world.connect();
  socket.subscribe('a');
  assert.equal(socket.subscriptions()[0].last_event_id, '1-5');
});

test('frames after the close by pusher-js do not count', () => {
  const world = page();
  const old = subscribed(world);
  old.close();
  old.receive({ event: 'paid', channel: 'a', data: '{}', id: '1-6' });
  const socket = world.connect();
  socket.subscribe('a');
  assert.equal(socket.subscriptions()[0].last_event_id, '1-5');
});

test('a server without the missed events makes the channel resync once', () => {
  const world = page();
  subscribed(world).end();
  const socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '2-1');
  socket.recovered('a', false, '2-1');
  assert.deepEqual(socket.seen.filter((name) => name.endsWith('resync')), ['a chatws:resync']);
  socket.end();
  const next = world.connect();
  next.subscribe('a');
  assert.equal(next.subscriptions()[0].last_event_id, '2-1');
});

test('a server without ids makes the channel resync after each reconnect', () => {
  const world = page();
  for (const expected of [[], ['a chatws:resync'], ['a chatws:resync']]) {
    const socket = world.connect();
    socket.subscribe('a');
    socket.confirm('a');
    assert.deepEqual(socket.subscriptions(), [{ channel: 'a' }]);
    assert.deepEqual(socket.seen.filter((name) => name.endsWith('resync')), expected);
    socket.end();
  }
});

test('an unsubscribed channel starts without an id', () => {
  const world = page();
  const first = subscribed(world);
  first.unsubscribe('a');
  first.subscribe('a');
  assert.equal(first.subscriptions()[1].last_event_id, undefined);
});

test('a refused subscription is no gap', () => {
  const world = page();
  let socket = world.connect();
  socket.subscribe('a');
  socket.end();
  socket = world.connect();
  socket.subscribe('a');
  socket.confirm('a', '1-1');
  assert.deepEqual(socket.seen, ['a pusher_internal:subscription_succeeded']);
});

test('of two closed connections to one app each channel resyncs', () => {
  const world = page();
  subscribed(world);
  const other = world.connect();
  other.subscribe('a');
  other.confirm('a', '1-1');
  for (const socket of [...FakeSocket.made]) socket.end();
  for (const socket of [world.connect(), world.connect()]) {
    socket.subscribe('a');
    socket.confirm('a', '1-9');
    assert.deepEqual(socket.subscriptions(), [{ channel: 'a' }]);
    assert.ok(socket.seen.includes('a chatws:resync'));
  }
});

test('apps have separate ids', () => {
  const world = page();
  subscribed(world).end();
  const socket = world.connect('wss://shop.example/app/other?protocol=7');
  socket.subscribe('a');
  assert.deepEqual(socket.subscriptions(), [{ channel: 'a' }]);
});

test('other WebSockets and a second load change nothing', () => {
  const world = page();
  const wrapped = world.WebSocket;
  world.load();
  assert.equal(world.WebSocket, wrapped);
  for (const url of ['wss://shop.example/ws', 'wss://shop.example/app/key', 'relative?protocol=7']) {
    assert.ok(!Object.hasOwn(new world.WebSocket(url), 'send'), url);
  }
  assert.ok(new world.WebSocket(URL_OF_APP) instanceof FakeSocket);
});

test('a page without WebSocket loads the script', () => {
  vm.runInContext(readFileSync(SCRIPT, 'utf8'), vm.createContext({}));
});

test('frames and messages that are no JSON objects pass', () => {
  const socket = page().connect();
  const seen = [];
  socket.onmessage = (event) => seen.push(event.data);
  for (const data of ['no JSON', 'null', '5', '{"channel":5}', new ArrayBuffer(1)]) {
    socket.dispatchEvent(new MessageEvent('message', { data }));
  }
  assert.equal(seen.length, 5);
  socket.send('"pusher:subscribe"');
  socket.send('{"event":"pusher:subscribe"}');
  assert.equal(socket.frames.length, 2);
});

// --- The real libraries

/** Resolve when pusher-js, which defers what it sends, has sent. */
const settle = () => new Promise((resolve) => setTimeout(resolve, 5));

/** Wait for a socket that pusher-js opens after `count` others. */
async function opened(count) {
  while (FakeSocket.made.length <= count) await settle();
  const socket = FakeSocket.made.at(-1);
  socket.open();
  await settle();
  return socket;
}

const OPTIONS = { cluster: 'none', wsHost: 'shop.example', enabledTransports: ['ws', 'wss'], disableStats: true };

test('pusher-js recovers a channel after a reconnect', { skip: !NPM }, async () => {
  const world = page();
  world.load(join(NPM, 'pusher-js/dist/web/pusher.js'));
  const pusher = new world.Pusher('key', { ...OPTIONS, forceTLS: true });
  const seen = [];
  pusher.subscribe('a').bind_global((event, data) => seen.push([event, data?.n]));
  let socket = await opened(0);
  socket.confirm('a', '1-4');
  socket.receive({ event: 'paid', channel: 'a', data: '{"n":5}', id: '1-5' });
  socket.end();
  socket = await opened(1);
  assert.equal(socket.subscriptions()[0].last_event_id, '1-5');
  socket.confirm('a', '1-7');
  for (const n of [6, 7]) socket.receive({ event: 'paid', channel: 'a', data: `{"n":${n}}`, id: `1-${n}` });
  socket.recovered('a', true);
  socket.receive({ event: 'paid', channel: 'a', data: '{"n":8}', id: '1-8' });
  assert.deepEqual(seen.filter(([event]) => event === 'paid').map(([, n]) => n), [5, 6, 7, 8]);
  assert.ok(!seen.some(([event]) => event === 'chatws:resync'));
  pusher.disconnect();
});

test('Echo delivers the resync of a channel', { skip: !NPM }, async () => {
  const world = page();
  world.load(join(NPM, 'pusher-js/dist/web/pusher.js'));
  world.load(join(NPM, 'laravel-echo/dist/echo.iife.js'));
  const Echo = world.Echo.default ?? world.Echo;
  const echo = new Echo({ broadcaster: 'pusher', key: 'key', ...OPTIONS, forceTLS: true });
  const seen = [];
  echo.channel('a').listen('.paid', () => seen.push('paid')).listen('.chatws:resync', () => seen.push('resync'));
  let socket = await opened(0);
  socket.confirm('a', '1-4');
  socket.receive({ event: 'paid', channel: 'a', data: '{}', id: '1-5' });
  socket.end();
  socket = await opened(1);
  socket.confirm('a', '2-1');
  socket.recovered('a', false, '2-1');
  socket.receive({ event: 'paid', channel: 'a', data: '{}', id: '2-2' });
  assert.deepEqual(seen, ['paid', 'resync', 'paid']);
  echo.disconnect();
});
