// Recovery under every interleaving that chance finds: each event once, in order, or a resync that says otherwise.
//
// CHATWS_SEED=n runs one seed alone, CHATWS_SEEDS=n that many of each kind.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, mock, test } from 'node:test';

import { ChatwsClient } from '../../chatws/static/websocket-client.js';
import { clock } from './clock.mjs';
import { generator, ModelServer } from './model_server.mjs';

const STEPS = 250;
const CONVERSATIONS = [1, 2, 3, 'x'];
const ONLY = process.env.CHATWS_SEED;
const SEEDS = ONLY ? [Number(ONLY)] : [...Array(Number(process.env.CHATWS_SEEDS ?? 150)).keys()];

/** A page that holds the client to the contract, by what its handlers are told and nothing else. */
class Page {
  constructor(server, random) {
    this.server = server;
    this.client = new ChatwsClient({ WebSocket: server.WebSocket, random, heartbeat: 1_000, replay_timeout: Infinity });
    this.wanted = new Set();
    this.leaving = new Set();
    /** by channel: how far its events have come, and from where on they have to be complete */
    this.places = new Map();
    this.given = new Set();
    this.resyncsDue = [];
    this.recovered = 0;
    this.events = 0;
    /** the client catches what its handlers throw */
    this.failure = null;
    this.client.on('error', ({ error }) => (this.failure ??= error));
    this.client.on('authenticated', (data) => this.answered('home', data));
    this.client.on('subscribed', (data) => this.answered(data.conversation_id, data));
    this.client.on('unsubscribed', (data) => this.leaving.delete(data.conversation_id));
    this.client.on('disconnected', () => this.leaving.clear());
    this.client.on('resync', (data) => {
      const channel = this.resyncsDue.shift();
      assert.equal(data.conversation_id ?? 'home', channel, 'a resync that nobody needed');
    });
    this.client.on('recovered', () => (this.recovered += 1));
    this.client.on('news', (data, { id }) => this.got(data, id));
    this.client.connect(7, { url: 'ws://model.test/' });
  }

  answered(channel, data) {
    const isKnown = this.places.has(channel);
    if (channel !== 'home' && !this.wanted.has(channel)) return;
    if (data.recovered === false) this.resyncsDue.push(channel);
    if (isKnown && data.recovered) return;
    const [epoch, offset] = data.last_event_id.split(':');
    this.places.set(channel, { epoch, offset: Number(offset), since: Number(offset) });
  }

  got({ channels }, id) {
    assert.ok(!this.given.has(id), `${id} was given twice`);
    const place = this.places.get(channels[0]);
    const expected = place && this.next(channels[0], place);
    this.given.add(id);
    this.events += 1;
    if (channels.length > 1) return; // those may come early by way of another channel: see `missing`
    if (!place) return; // left, and still on its way
    assert.equal(id, expected && `${expected.epoch}:${expected.offset}`, `out of order in ${channels[0]}`);
    place.offset = expected.offset;
  }

  next(channel, place) {
    if (place.epoch !== this.server.epoch) return undefined;
    // after a resync those may follow that had come before it, from a node that was ahead: they are not given again
    const isNext = (one) => one.channels.length === 1 && one.channels[0] === channel;
    return this.server.log.slice(place.offset).find((one) => isNext(one) && !this.given.has(`${one.epoch}:${one.offset}`));
  }

  subscribe(id) {
    if (this.wanted.has(id) || this.leaving.has(id)) return;
    this.wanted.add(id);
    this.client.subscribe(id);
  }

  unsubscribe(id) {
    if (!this.wanted.delete(id)) return;
    this.places.delete(id);
    if (this.client.connected) this.leaving.add(id);
    this.client.unsubscribe(id);
  }

  /** What should have been given by now and was not. */
  missing() {
    const missing = [];
    for (const channel of ['home', ...this.wanted]) {
      const place = this.places.get(channel);
      if (place?.epoch !== this.server.epoch) missing.push(`${channel}: not established`);
      else {
        for (const one of this.server.log.slice(place.since)) {
          const id = `${one.epoch}:${one.offset}`;
          if (one.channels.includes(channel) && !this.given.has(id)) missing.push(`${channel}: ${id}`);
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
  const one = (list) => list[Math.floor(random() * list.length)];
  const moves = {
    wire: () => one(server.moves())?.(),
    publish: () => {
      const channels = [one(['home', ...CONVERSATIONS])];
      if (random() < 0.1) channels.push(one(['home', ...CONVERSATIONS].filter((channel) => channel !== channels[0])));
      server.publish(channels);
    },
    subscribe: () => page.subscribe(one(CONVERSATIONS)),
    unsubscribe: () => page.unsubscribe(one(CONVERSATIONS)),
    wait: () => clock.tick(one([10, 200, 1000])),
    long: () => clock.tick(15_000),
    cut: () => server.cutAll(1006),
    away: () => server.cutAll(one([4000, 4001, 4012])),
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
    let left = random() * total;
    const name = Object.keys(weights).find((key) => (left -= weights[key]) < 0) ?? 'wire';
    moves[name]();
    if (page.failure) throw page.failure;
  }
  server.isUp = true;
  for (let quiet = 0; quiet < 70; ) {
    const next = server.moves();
    if (next.length) one(next)();
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

describe('each event comes once and in order, whatever is cut when,', () => {
  beforeEach(() => {
    mock.method(console, 'error', () => {});
    clock.install();
  });
  afterEach(() => {
    mock.restoreAll();
    clock.uninstall();
  });

  for (const kind of ['fifo', 'interleave', 'mixed', 'cluster', 'silent']) {
    test(`from a server of the kind ${kind}`, () => {
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
