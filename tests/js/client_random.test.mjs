// Tests of recovery under random interleavings: each event is delivered once and in order, or a resync is emitted.
//
// CHATWS_SEED=n runs one seed, CHATWS_SEEDS=n runs that many seeds of each kind.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, mock, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { generator, ModelServer } from './model_server.mjs';

const STEPS = 250;
const CONVERSATIONS = [1, 2, 3, 'x'];
const ONLY = process.env.CHATWS_SEED;
const SEEDS = ONLY ? [Number(ONLY)] : [...Array(Number(process.env.CHATWS_SEEDS ?? 150)).keys()];

/** A page that checks the client's contract by the events that its handlers receive. */
class Page {
  constructor(server, random) {
    this.server = server;
    this.client = new ChatwsClient({ WebSocket: server.WebSocket, random, heartbeat: 1_000, replay_timeout: Infinity });
    this.wanted = new Set();
    this.leaving = new Set();
    /** channel => the position of its last event, and `since`: events after it must be complete */
    this.positions = new Map();
    this.delivered = new Set();
    this.resyncsDue = [];
    this.recovered = 0;
    this.events = 0;
    /** The client catches exceptions of handlers. */
    this.failure = null;
    this.client.on('error', ({ error }) => (this.failure ??= error));
    this.client.on('authenticated', (data) => this.onResponse('home', data));
    this.client.on('subscribed', (data) => this.onResponse(data.conversation_id, data));
    this.client.on('unsubscribed', (data) => this.leaving.delete(data.conversation_id));
    this.client.on('disconnected', () => this.leaving.clear());
    this.client.on('resync', (data) => {
      const channel = this.resyncsDue.shift();
      assert.equal(data.conversation_id ?? 'home', channel, 'unexpected resync');
    });
    this.client.on('recovered', () => (this.recovered += 1));
    this.client.on('news', (data, { id }) => this.onEvent(data, id));
    this.client.connect(7, { url: 'ws://model.test/' });
  }

  onResponse(channel, data) {
    const isKnown = this.positions.has(channel);
    if (channel !== 'home' && !this.wanted.has(channel)) return;
    if (data.recovered === false) this.resyncsDue.push(channel);
    if (isKnown && data.recovered) return;
    const [epoch, offset] = data.last_event_id.split(':');
    this.positions.set(channel, { epoch, offset: Number(offset), since: Number(offset) });
  }

  onEvent({ channels }, id) {
    assert.ok(!this.delivered.has(id), `${id} was delivered twice`);
    const position = this.positions.get(channels[0]);
    const expected = position && this.next(channels[0], position);
    this.delivered.add(id);
    this.events += 1;
    if (channels.length > 1) return; // these may arrive early through another channel: see `missing`
    if (!position) return; // sent before the server handled the unsubscribe
    assert.equal(id, expected && `${expected.epoch}:${expected.offset}`, `out of order in ${channels[0]}`);
    position.offset = expected.offset;
  }

  next(channel, position) {
    if (position.epoch !== this.server.epoch) return undefined;
    // After a resync a node that was behind may send events that were delivered before. The client drops them.
    const isNext = ({ channels }) => channels.length === 1 && channels[0] === channel;
    const isDelivered = ({ epoch, offset }) => this.delivered.has(`${epoch}:${offset}`);
    const history = this.server.history.slice(position.offset);
    return history.find((event) => isNext(event) && !isDelivered(event));
  }

  subscribe(id) {
    if (this.wanted.has(id) || this.leaving.has(id)) return;
    this.wanted.add(id);
    this.client.subscribe(id);
  }

  unsubscribe(id) {
    if (!this.wanted.delete(id)) return;
    this.positions.delete(id);
    if (this.client.connected) this.leaving.add(id);
    this.client.unsubscribe(id);
  }

  /** Return the events that should have been delivered by now and were not. */
  missing() {
    const missing = [];
    for (const channel of ['home', ...this.wanted]) {
      const position = this.positions.get(channel);
      if (position?.epoch !== this.server.epoch) missing.push(`${channel}: not established`);
      else {
        for (const event of this.server.history.slice(position.since)) {
          const id = `${event.epoch}:${event.offset}`;
          if (event.channels.includes(channel) && !this.delivered.has(id)) missing.push(`${channel}: ${id}`);
        }
      }
    }
    return missing.concat(this.resyncsDue.map((channel) => `a resync of ${channel}`));
  }
}

function run(kind, seed) {
  const random = generator(seed);
  const server = new ModelServer(kind, random);
  const page = new Page(server, random);
  const choose = (list) => list[Math.floor(random() * list.length)];
  const moves = {
    wire: () => choose(server.moves())?.(),
    publish: () => {
      const all = ['home', ...CONVERSATIONS];
      const channels = [choose(all)];
      if (random() < 0.1) channels.push(choose(all.filter((channel) => channel !== channels[0])));
      server.publish(channels);
    },
    subscribe: () => page.subscribe(choose(CONVERSATIONS)),
    unsubscribe: () => page.unsubscribe(choose(CONVERSATIONS)),
    wait: () => clock.tick(choose([10, 200, 1000])),
    long: () => clock.tick(15_000),
    cut: () => server.cutAll(1006),
    away: () => server.cutAll(choose([4000, 4001, 4012])),
    restart: () => {
      server.cutAll(4012);
      server.isUp = !server.isUp;
    },
    wipe: () => {
      server.cutAll(1006);
      server.begin();
    },
    trim: () => server.trim(Math.floor(random() * 20)),
  };
  const weights = {
    wire: 70, publish: 20, subscribe: 5, unsubscribe: 1, wait: 10, long: 0.5,
    cut: 1.5, away: 0.5, restart: 0.3, wipe: 0.2, trim: 0.3,
  };
  const total = Object.values(weights).reduce((sum, weight) => sum + weight);
  for (let step = 0; step < STEPS; step++) {
    let rest = random() * total;
    const name = Object.keys(weights).find((key) => (rest -= weights[key]) < 0) ?? 'wire';
    moves[name]();
    if (page.failure) throw page.failure;
  }
  server.isUp = true;
  for (let quiet = 0; quiet < 70; ) {
    const next = server.moves();
    if (next.length) choose(next)();
    else {
      clock.tick(1_000);
      quiet += 1;
    }
  }
  const missing = page.missing();
  page.client.disconnect();
  if (page.failure) throw page.failure;
  assert.deepEqual(missing, []);
  return page;
}

describe('the client delivers each event once and in order', () => {
  beforeEach(() => {
    mock.method(console, 'error', () => {});
    clock.install();
  });
  afterEach(() => {
    mock.restoreAll();
    clock.uninstall();
  });

  for (const kind of ['fifo', 'interleave', 'mixed', 'cluster', 'silent']) {
    test(`with a server of the kind ${kind}`, () => {
      let events = 0;
      let recovered = 0;
      for (const seed of SEEDS) {
        try {
          const page = run(kind, seed);
          events += page.events;
          recovered += page.recovered;
        } catch (error) {
          error.message = `with CHATWS_SEED=${seed}: ${error.message}`;
          throw error;
        }
      }
      if (ONLY) return;
      assert.ok(events > 10 * SEEDS.length, `only ${events} events`);
      assert.ok(recovered > SEEDS.length, `only ${recovered} recovered`);
    });
  }
});
