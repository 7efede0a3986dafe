// A model of the server's part of recovery (docs/protocol.md §4). The test drives each step and may cut connections.
//
// The contract leaves a server some freedom, so there are several kinds:
//
//   fifo        the response, then all missed events, then everything else, as chatws does
//   interleave  live events of other channels come between the events of a replay. Those of the replayed channel are
//               held until the replay is complete. A ping is answered meanwhile, other messages wait
//   mixed       the server handles the next subscribes during a replay, so that replays mix. Live events of all
//               channels are held until all replays are complete
//   cluster     like fifo, but several nodes share the history, and each has read a different part of it. A client that
//               has seen more than its node waits
//   silent      like fifo, without the number of replayed events, as other servers may do

/** Generate numbers 0 ≤ x < 1, the same for the same seed (mulberry32). */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** The client's WebSocket, the server's connection, and the frames between them. */
class Wire {
  constructor(server) {
    this.server = server;
    this.readyState = 0;
    this.onopen = this.onmessage = this.onerror = this.onclose = null;
    this.toServer = [];
    this.toClient = [];
    /** channels whose events are sent at once */
    this.live = new Set();
    /** incomplete replays: {channel, missed}, and the live events that are held for them */
    this.replays = [];
    this.held = [];
    server.wires.add(this);
  }

  send(text) {
    this.toServer.push(JSON.parse(text));
  }

  close() {
    this.readyState = 2;
    this.server.wires.delete(this);
  }

  cut(code = 1006) {
    this.server.wires.delete(this);
    this.readyState = 3;
    if (code === 1006) this.onerror?.({});
    this.onclose?.({ code, reason: '' });
  }
}

export class ModelServer {
  constructor(kind, random) {
    this.kind = kind;
    this.random = random;
    this.epochs = 0;
    this.wires = new Set();
    this.nodes = [{}, {}, {}];
    this.isUp = true;
    this.begin();
    const server = this;
    /** for the client's `WebSocket` setting */
    this.WebSocket = function () {
      return new Wire(server);
    };
  }

  /** Start a new history. */
  begin() {
    this.epoch = `e${(this.epochs += 1)}`;
    this.history = [];
    this.first = 1;
    for (const node of this.nodes) node.read = 0;
  }

  /** Return the last offset of the history for this wire. */
  last(wire) {
    return this.kind === 'cluster' ? wire.node.read : this.history.length;
  }

  head(wire) {
    return `${this.epoch}:${this.last(wire)}`;
  }

  /** Publish an event to the subscribers of these channels ("home", or a conversation's id). */
  publish(channels) {
    const event = { offset: this.history.length + 1, channels, epoch: this.epoch };
    this.history.push(event);
    if (this.kind !== 'cluster') this.deliver(event, this.wires);
  }

  /** Let a node read the next event and deliver it. */
  readNext(node) {
    const event = this.history[node.read];
    node.read += 1;
    this.deliver(event, [...this.wires].filter((wire) => wire.node === node));
  }

  deliver(event, wires) {
    const { channels } = event;
    for (const wire of wires) {
      const isLive = channels.some((channel) => wire.live.has(channel));
      const isReplayed = wire.replays.some(({ channel }) => channels.includes(channel));
      const waits = this.kind === 'mixed' && wire.replays.length > 0;
      if (isLive && !waits) this.push(wire, event);
      if (isReplayed || (isLive && waits)) wire.held.push(event);
    }
  }

  push(wire, { epoch, offset, channels }) {
    wire.toClient.push({ event: 'news', data: { channels }, id: `${epoch}:${offset}` });
  }

  /** Keep only the newest `count` events. */
  trim(count) {
    this.first = Math.max(this.first, this.history.length - count + 1);
  }

  /** Return the possible next steps of all wires, as functions. */
  moves() {
    const moves = [];
    if (this.kind === 'cluster') {
      for (const node of this.nodes) if (node.read < this.history.length) moves.push(() => this.readNext(node));
    }
    for (const wire of this.wires) {
      if (wire.readyState === 0) {
        moves.push(this.isUp ? () => this.accept(wire) : () => wire.cut());
        continue;
      }
      if (wire.toClient.length) moves.push(() => wire.onmessage?.({ data: JSON.stringify(wire.toClient.shift()) }));
      if (wire.toServer.length && this.mayRead(wire)) moves.push(() => this.read(wire, wire.toServer.shift()));
      if (wire.replays.length) moves.push(() => this.replay(wire));
    }
    return moves;
  }

  accept(wire) {
    wire.readyState = 1;
    if (this.kind === 'cluster') wire.node = this.nodes[Math.floor(this.random() * this.nodes.length)];
    wire.onopen?.({});
  }

  mayRead(wire) {
    const from = wire.toServer[0].last_event_id;
    if (this.kind === 'cluster' && from?.startsWith(`${this.epoch}:`)) {
      return Number(from.slice(from.indexOf(':') + 1)) <= wire.node.read;
    }
    if (!wire.replays.length) return true;
    return wire.toServer[0].type === 'ping' || (this.kind === 'mixed' && wire.toServer[0].type === 'subscribe');
  }

  read(wire, message) {
    const conversation_id = message.conversation_id;
    if (message.type === 'ping') {
      wire.toClient.push({ type: 'pong' });
    } else if (message.type === 'auth') {
      this.establish(wire, 'home', 'authenticated', { user_id: message.user_id }, message.last_event_id);
    } else if (message.type === 'subscribe') {
      this.establish(wire, conversation_id, 'subscribed', { conversation_id }, message.last_event_id);
    } else if (message.type === 'unsubscribe') {
      wire.live.delete(conversation_id);
      wire.toClient.push({ event: 'unsubscribed', data: { conversation_id } });
    }
  }

  establish(wire, channel, event, data, from) {
    if (from === undefined) {
      wire.toClient.push({ event, data: { ...data, last_event_id: this.head(wire) } });
      wire.live.add(channel);
      return;
    }
    const [epoch, offset] = [from.slice(0, from.indexOf(':')), Number(from.slice(from.indexOf(':') + 1))];
    const recovered = epoch === this.epoch && offset >= this.first - 1 && offset <= this.last(wire);
    const missed = recovered ? this.history.slice(offset, this.last(wire)).filter(({ channels }) => channels.includes(channel)) : [];
    const replayed = recovered && this.kind !== 'silent' ? { replayed: missed.length } : {};
    wire.toClient.push({ event, data: { ...data, recovered, ...replayed, last_event_id: this.head(wire) } });
    if (!missed.length || ['fifo', 'cluster', 'silent'].includes(this.kind)) {
      for (const missedEvent of missed) this.push(wire, missedEvent);
      wire.live.add(channel);
    } else {
      wire.replays.push({ channel, missed });
    }
  }

  /** Send the next event of one of the replays, and the held events after the last one. */
  replay(wire) {
    const replay = wire.replays[Math.floor(this.random() * wire.replays.length)];
    if (replay.missed.length) {
      this.push(wire, replay.missed.shift());
      return;
    }
    wire.replays = wire.replays.filter((other) => other !== replay);
    wire.live.add(replay.channel);
    if (!wire.replays.length) for (const event of wire.held.splice(0)) this.push(wire, event);
  }

  cutAll(code) {
    for (const wire of [...this.wires]) wire.cut(code);
  }
}
