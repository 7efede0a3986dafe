// @ts-check
/**
 * Recovers missed events for Laravel Echo and pusher-js, unmodified. docs/laravel.md describes it. No dependencies, MIT
 * licence. Load it before Echo or pusher-js connects:
 *
 *     <script src="/assets/js/chatws-echo.js"></script>
 *
 * or `import` it for its side effect. It wraps `WebSocket` and changes only connections to `/app/KEY` of Pusher's
 * protocol:
 *
 * - It keeps the id of the last event of each channel. When pusher-js subscribes again after a reconnect, the message
 *   names that id, and the server sends the missed events before live ones.
 * - It drops an event that has already arrived.
 * - If the missed events are not available, the channel gets the event `chatws:resync`. The page loads its state again.
 *   Live events already arrive, so nothing is lost in between.
 *
 *     Echo.private('orders.7').listen('.chatws:resync', loadOrder);   // Echo: with a dot
 *     channel.bind('chatws:resync', loadOrder);                       // pusher-js
 *
 * With another server of Pusher's protocol the channel gets `chatws:resync` after each reconnect.
 */
(() => {
  'use strict';

  /**
   * The state of one channel.
   *
   * @typedef {object} Position
   * @property {string | null} id the last event's
   * @property {string[]} recent the last ids, to recognize an event that arrives again
   * @property {boolean} subscribed whether the server has confirmed a subscription
   * @property {'resync' | 'recovered' | null} awaits what a new subscription has to bring
   */

  /** @typedef {Map<string, Position>} Positions the channels of one Pusher instance, by name */

  /** Ids that a channel remembers. The server sends an event twice only around a reconnect. */
  const RECENT = 32;
  const MARK = Symbol.for('chatws-echo');

  /** @type {any} */
  const scope = globalThis;
  const Native = scope.WebSocket;
  if (!Native || scope[MARK]) return;
  scope[MARK] = true;

  /**
   * The positions of closed connections, by host and app. pusher-js tells nothing about the instance that opens a
   * connection, so a new connection takes the positions that a closed one to the same app left.
   *
   * @type {Map<string, Positions[]>}
   */
  const left = new Map();

  /** @returns {any} the message, or null if it is no JSON object */
  function parse(/** @type {unknown} */ text) {
    if (typeof text !== 'string') return null;
    try {
      const message = JSON.parse(text);
      return message !== null && typeof message === 'object' ? message : null;
    } catch {
      return null;
    }
  }

  /** @returns {string | null} the host and the app of a connection of Pusher's protocol, or null for another one */
  function appOf(/** @type {unknown} */ address) {
    try {
      const url = new URL(String(address), scope.location?.href);
      const app = /\/app\/[^/]+$/.test(url.pathname) && url.searchParams.has('protocol');
      return app ? url.hostname + url.pathname : null; // pusher-js may change between ws: and wss:
    } catch {
      return null; // the constructor throws
    }
  }

  class Recovery {
    /**
     * @param {any} socket
     * @param {string} app
     */
    constructor(socket, app) {
      this.socket = socket;
      this.app = app;
      /** @type {Positions | null} null before the first subscription and after the end */
      this.positions = null;
      this.ended = false;
      const send = socket.send.bind(socket);
      const close = socket.close.bind(socket);
      socket.send = (/** @type {unknown} */ data) => send(this.sent(data));
      socket.close = (/** @type {any[]} */ ...reason) => {
        this.end(); // the event `close` may come much later, after pusher-js has opened another connection
        close(...reason);
      };
      // Before the handler of pusher-js, which is set after this.
      socket.addEventListener('message', (/** @type {MessageEvent} */ event) => this.received(event));
      socket.addEventListener('close', () => this.end());
    }

    /** Takes the positions that a closed connection left. Of several ones it is unknown which belong here. */
    adopt() {
      if (this.positions) return this.positions;
      const waiting = left.get(this.app) ?? [];
      left.delete(this.app);
      this.positions = new Map(waiting[0]);
      if (waiting.length > 1) {
        const channels = waiting.flatMap((positions) => [...positions]);
        const unknown = () =>
          new Map(channels.map(([channel, position]) => [channel, { ...position, id: null, recent: [] }]));
        this.positions = unknown();
        left.set(this.app, waiting.slice(1).map(unknown));
      }
      return this.positions;
    }

    /** Keeps the positions for the next connection. */
    end() {
      if (this.ended) return;
      this.ended = true;
      if (!this.positions) return;
      left.set(this.app, [...(left.get(this.app) ?? []), this.positions]);
    }

    /** @returns {unknown} what to send instead of a message of pusher-js */
    sent(/** @type {unknown} */ text) {
      const message = typeof text === 'string' && text.includes('subscribe') ? parse(text) : null;
      const channel = message?.data?.channel;
      if (typeof channel !== 'string' || this.ended) return text;
      if (message.event === 'pusher:unsubscribe') this.adopt().delete(channel);
      if (message.event !== 'pusher:subscribe') return text;
      const positions = this.adopt();
      const position = positions.get(channel);
      if (!position?.subscribed) {
        positions.set(channel, { id: null, recent: [], subscribed: false, awaits: null });
        return text;
      }
      position.awaits = position.id === null ? 'resync' : 'recovered';
      if (position.id !== null) message.data.last_event_id = position.id;
      return JSON.stringify(message);
    }

    /** Handles a frame before pusher-js does. */
    received(/** @type {MessageEvent} */ event) {
      if (this.ended) return;
      const frame = parse(event.data);
      const position = typeof frame?.channel === 'string' ? this.positions?.get(frame.channel) : undefined;
      if (!position) return;
      const id = typeof frame.id === 'string' ? frame.id : null;
      switch (frame.event) {
        case 'pusher_internal:subscription_succeeded':
          position.subscribed = true;
          if (position.awaits === 'resync') this.resync(frame.channel, position, id);
          // While events are missing, the channel's newest id must not replace that of the last one that arrived.
          else if (position.awaits === null && id !== null) position.id = id;
          return;
        case 'chatws:recovered':
          if (position.awaits === 'recovered') {
            if (parse(frame.data)?.recovered === true) position.awaits = null;
            else this.resync(frame.channel, position, id);
          }
          return;
        case 'chatws:resync':
          return;
      }
      if (id === null) return;
      if (position.recent.includes(id)) {
        event.stopImmediatePropagation();
        return;
      }
      position.id = id;
      position.recent.push(id);
      if (position.recent.length > RECENT) position.recent.shift();
    }

    /**
     * Tells the page that events of a channel are missing.
     *
     * @param {string} channel
     * @param {Position} position
     * @param {string | null} id the newest event's, if the server sends it
     */
    resync(channel, position, id) {
      position.awaits = null;
      position.id = id ?? position.id;
      const data = JSON.stringify({ event: 'chatws:resync', channel, data: '{}' });
      this.socket.dispatchEvent(new MessageEvent('message', { data }));
    }
  }

  scope.WebSocket = new Proxy(Native, {
    construct(target, parameters, newTarget) {
      const socket = Reflect.construct(target, parameters, newTarget === scope.WebSocket ? target : newTarget);
      const app = appOf(parameters[0]);
      if (app !== null) new Recovery(socket, app);
      return socket;
    },
  });
})();
