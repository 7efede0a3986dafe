// A model of the server's half of recovery (docs/protocol.md §4), driven step by step over links that can be cut.
//
// What a server may do within the contract differs, so there are several kinds of it:
//
//   fifo        the answer, then all that was missed, then everything else: what chatws does
//   interleave  live events of other channels come between the events of a replay; those of the replayed channel are
//               held until it is complete; a ping is answered meanwhile, other messages wait
//   mixed       it goes on with the next subscribes during a replay, so that several come mixed; live events of any
//               channel are held until all of them are complete
//   cluster     like fifo, but several nodes share the log: each has read on as far as it has, and whoever has seen more
//               of it elsewhere waits
//   silent      like fifo, without saying how many events are replayed, as other servers may

/** Numbers 0 ≤ x < 1, the same for the same seed (mulberry32). */
export function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A WebSocket of the client on one end, a connection of the model on the other, and frames on their way. */
class Wire {
  constructor(server) {
    this.server = server;
    this.readyState = 0;
    this.onopen = this.onmessage = this.onerror = this.onclose = null;
    this.toServer = [];
    this.toClient = [];
    /** channels whose events are sent as they come */
    this.live = new Set();
    /** replays that are not complete: {channel, missed}, and the live events that wait for them */
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

  /** The log starts anew. */
  begin() {
    this.epoch = `e${(this.epochs += 1)}`;
    this.log = [];
    this.first = 1;
    for (const node of this.nodes) node.read = 0;
  }

  /** How much of the log there is for this wire. */
  last(wire) {
    return this.kind === 'cluster' ? wire.node.read : this.log.length;
  }

  head(wire) {
    return `${this.epoch}:${this.last(wire)}`;
  }

  /** An event for whoever listens to one of these channels ("home", or a conversation's id). */
  publish(channels) {
    const event = { offset: this.log.length + 1, channels, epoch: this.epoch };
    this.log.push(event);
    if (this.kind !== 'cluster') this.tell(event, this.wires);
  }

  /** A node reads one event more, and hands it out. */
  readOn(node) {
    const event = this.log[node.read];
    node.read += 1;
    this.tell(event, [...this.wires].filter((wire) => wire.node === node));
  }

  tell(event, wires) {
    const { channels } = event;
    for (const wire of wires) {
      const isLive = channels.some((channel) => wire.live.has(channel));
      const isReplayed = wire.replays.some((one) => channels.includes(one.channel));
      const waits = this.kind === 'mixed' && wire.replays.length > 0;
      if (isLive && !waits) this.push(wire, event);
      if (isReplayed || (isLive && waits)) wire.held.push(event);
    }
  }

  push(wire, { epoch, offset, channels }) {
    wire.toClient.push({ event: 'news', data: { channels }, id: `${epoch}:${offset}` });
  }

  /** Only the newest `count` events can be recovered any more. */
  trim(count) {
    this.first = Math.max(this.first, this.log.length - count + 1);
  }

  /** What can happen next on any wire, as functions. */
  moves() {
    const moves = [];
    if (this.kind === 'cluster') {
      for (const node of this.nodes) if (node.read < this.log.length) moves.push(() => this.readOn(node));
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
    const missed = recovered ? this.log.slice(offset, this.last(wire)).filter((one) => one.channels.includes(channel)) : [];
    const replayed = recovered && this.kind !== 'silent' ? { replayed: missed.length } : {};
    wire.toClient.push({ event, data: { ...data, recovered, ...replayed, last_event_id: this.head(wire) } });
    if (!missed.length || ['fifo', 'cluster', 'silent'].includes(this.kind)) {
      for (const one of missed) this.push(wire, one);
      wire.live.add(channel);
    } else {
      wire.replays.push({ channel, missed });
    }
  }

  /** The next event of one of the replays; after the last one what was held. */
  replay(wire) {
    const one = wire.replays[Math.floor(this.random() * wire.replays.length)];
    if (one.missed.length) {
      this.push(wire, one.missed.shift());
      return;
    }
    wire.replays = wire.replays.filter((other) => other !== one);
    wire.live.add(one.channel);
    if (!wire.replays.length) for (const event of wire.held.splice(0)) this.push(wire, event);
  }

  cutAll(code) {
    for (const wire of [...this.wires]) wire.cut(code);
  }
}
