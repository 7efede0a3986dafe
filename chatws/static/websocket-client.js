// @ts-check
/**
 * The browser's side of chatws: one WebSocket that stays, and events that are neither lost nor delivered twice.
 * The wire contract is docs/protocol.md. No dependencies; any browser since autumn 2021; MIT licence.
 *
 * As a classic script it defines `window.wsClient` (an instance) and `window.ChatwsClient` (its class):
 *
 *     <script src="/assets/js/websocket-client.js"></script>
 *     wsClient.on('new_message', data => show(data.message));
 *     wsClient.connect(123);
 *     wsClient.subscribe(456);
 *
 * In an ES module import it for its effect. A file that a browser can run as a classic script cannot contain `export`,
 * so the names are the global ones here too:
 *
 *     import '/assets/js/websocket-client.js';
 *     const { wsClient, ChatwsClient } = globalThis;
 *
 * With a bundler or in Node `import { wsClient, ChatwsClient } from './websocket-client.js'` works, and `require` too.
 * However often and by whichever way a page loads it, there is one `wsClient`.
 *
 * Events of the client itself (`on(event, handler)`; a handler gets `(data, {event, id})`):
 *
 *   connected         authenticated, for the first time or again. Data: that of `authenticated`.
 *   disconnected      {code, reason, will_reconnect}: the connection is gone, or the first attempt failed. Once per
 *                     outage, not once per attempt. The code is the WebSocket's (1006 when nobody said why).
 *   reconnect_failed  {code, reason}: the server said not to come back (close codes 4900-4999). `connect` starts anew.
 *   error             {code, message, …}: the server's `error`, or one of our own: `connection_failed`, `bad_frame`,
 *                     `token_failed` and `handler_failed` (with `error`), `bad_message` (a wrong argument).
 *   recovered         {conversation_id?, count}: after a reconnect, what was missed has been delivered, `count` events
 *                     as the server counts them. Without a conversation_id: those for everybody and for this user.
 *   resync            {conversation_id?}: events are missing for good; load that conversation again. Without a
 *                     conversation_id: load everything again. Live events already come, so nothing falls in between.
 *   *                 every event, these and the server's, with its name in the second argument.
 *
 * Every event of the server arrives by its name with its `data`. A conversation's events are complete from its
 * `subscribed` on: load its messages then, or later, not before.
 *
 * Only `disconnect()` and the close codes 4900-4999 end it. After any other close (1000 by the server included: the
 * page has not asked for it) it comes back by itself, for ever.
 */
var { ChatwsClient, wsClient } = (() => {
  'use strict';

  /**
   * @typedef {number | string} Id
   * @typedef {{event: string, id?: string}} Info
   * @typedef {(data: any, info: Info) => unknown} Handler
   * @typedef {string | null | undefined} Token
   * @typedef {Token | (() => Token | Promise<Token>)} TokenSource  a function is asked before each connection
   * @typedef {{url?: string, token?: TokenSource}} ConnectOptions
   *
   * @typedef {object} Settings  times in milliseconds
   * @property {number} heartbeat between two pings
   * @property {number} pong_timeout without any sign of life after a ping
   * @property {number} probe_timeout the same, when the page wakes up
   * @property {number} connect_timeout from the start of an attempt until `authenticated`
   * @property {number} replay_timeout without an event of a replay that the server has announced
   * @property {number} backoff_base upper bound of the first wait; it doubles with each failure
   * @property {number} backoff_cap upper bound of all waits
   * @property {number} stable_after a connection that held for so long ends the doubling
   * @property {() => number} random 0 ≤ x < 1
   * @property {any} [WebSocket] the class to use instead of the global one
   *
   * @typedef {{epoch: string, offset: number}} Position  a place in the server's log
   * @typedef {{channel: Channel, from: Position | null}} Asked  a `subscribe` whose answer has not come
   * @typedef {{channel: Channel, high: Position | null, count: number | null}} Replay
   */

  /** @type {Settings} */
  const DEFAULTS = {
    heartbeat: 30_000,
    pong_timeout: 10_000,
    probe_timeout: 5_000,
    connect_timeout: 20_000,
    replay_timeout: 60_000,
    backoff_base: 500,
    backoff_cap: 30_000,
    stable_after: 10_000,
    random: Math.random,
  };
  /** `subscribe`s sent at once, and per second after that: well below the server's default rate limit. */
  const SUBSCRIBE_BURST = 50;
  const SUBSCRIBE_RATE = 10;
  /** Waits before a subscribe is sent again that the server could not honour now, in milliseconds. */
  const ASK_AGAIN = new Map([['rate_limited', 2_000], ['unavailable', 5_000]]);
  /** Close codes that ask for patience: the database is away, too many messages. */
  const PATIENT_CODES = [4429, 4503];
  const PATIENCE = 5_000;
  const SIGNS_OF_LIFE = ['pointerdown', 'pointermove', 'keydown', 'wheel'];

  /** @param {unknown} id @returns {Position | null} */
  function parsePosition(id) {
    const found = typeof id === 'string' ? /^(.+):(\d{1,16})$/.exec(id) : null;
    return found && { epoch: found[1], offset: Number(found[2]) };
  }

  /**
   * The later of two positions; of two epochs that of `b`, which was learnt later.
   * @param {Position | null} a @param {Position | null} b
   */
  function newest(a, b) {
    return a && (!b || (a.epoch === b.epoch && a.offset > b.offset)) ? a : b;
  }

  /** @param {unknown} id @returns {id is Id} */
  function isId(id) {
    if (typeof id === 'number') return Number.isSafeInteger(id) && id >= 0;
    return typeof id === 'string' && id.length >= 1 && id.length <= 128;
  }

  /**
   * One stream of events with a position of its own: a conversation, or (id null) what everybody and this user get.
   *
   * `from` is what the next connection sends as `last_event_id`: everything up to there has been delivered. While the
   * channel is `live` it follows the connection's position, because the server sends a connection its live events in
   * the order of their offsets. Between a replay and the next pong it does not yet: what came meanwhile may still be
   * on its way behind events of other channels. A `from` that is too low costs a few events that are dropped as seen;
   * one that is too high would lose some.
   */
  class Channel {
    /** @param {Id | null} id */
    constructor(id) {
      this.id = id;
      /** @type {Position | null} */
      this.from = null;
      this.live = false;
      /** @type {number | null} settles with the pong of a ping after this one */
      this.settlesAfter = null;
      this.sent = false;
    }

    /** @param {Position | null} position of the connection */
    reached(position) {
      return this.live ? newest(this.from, position) : this.from;
    }

    /** @param {Position | null} position of the connection that has ended */
    park(position) {
      this.from = this.reached(position);
      this.live = false;
      this.settlesAfter = null;
      this.sent = false;
    }

    /** What `recovered` and `resync` are about. @returns {{conversation_id?: Id}} */
    subject() {
      return this.id === null ? {} : { conversation_id: this.id };
    }
  }

  /** The ids that handlers have had, as far back as the server may still send one of them again. */
  class Seen {
    /** @type {Map<string, Position>} */
    #ids = new Map();
    /** @type {Map<string, number>} by epoch: everything up to this offset counts as seen */
    #floors = new Map();
    #limit = 1000;

    get isFull() {
      return this.#ids.size > this.#limit;
    }

    /** @param {Position} at */
    has(at) {
      return this.#ids.has(`${at.epoch}:${at.offset}`) || at.offset <= (this.#floors.get(at.epoch) ?? -1);
    }

    /** @param {Position} at */
    add(at) {
      this.#ids.set(`${at.epoch}:${at.offset}`, at);
    }

    /** Forget single ids that no channel can ask for again. @param {(Position | null)[]} positions of all channels */
    prune(positions) {
      /** @type {Map<string, number>} */
      const lowest = new Map();
      for (const at of positions) {
        if (at) lowest.set(at.epoch, Math.min(at.offset, lowest.get(at.epoch) ?? Infinity));
      }
      for (const [id, at] of this.#ids) {
        if (at.offset > (lowest.get(at.epoch) ?? Infinity)) continue;
        this.#ids.delete(id);
        this.#floors.set(at.epoch, Math.max(at.offset, this.#floors.get(at.epoch) ?? -1));
      }
      this.#limit = Math.max(1000, 2 * this.#ids.size);
    }

    /**
     * The log ends at `high`: ids beyond it, from before it lost its end, will be given out anew.
     * @param {Position} high
     */
    forgetAfter(high) {
      for (const [id, at] of this.#ids) {
        if (at.epoch === high.epoch && at.offset > high.offset) this.#ids.delete(id);
      }
      const floor = this.#floors.get(high.epoch);
      if (floor !== undefined) this.#floors.set(high.epoch, Math.min(floor, high.offset));
    }
  }

  /** One attempt at a connection, and what is known of it; another attempt gets another one. */
  class Link {
    /** @type {any} */
    socket = null;
    /** @type {'opening' | 'auth' | 'in'} */
    state = 'opening';
    since = 0;
    /** @type {Position | null} the `last_event_id` that went out with `auth` */
    from = null;
    /** @type {Set<ReturnType<typeof setTimeout>>} */
    timers = new Set();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    watchdog;
    suspected = false;
    pings = 0;
    pongs = 0;
    /** @type {Position | null} the newest live event */
    position = null;
    /** @type {Map<string, (Asked | null)[]>} by conversation, in the order sent; null stands for an `unsubscribe` */
    asked = new Map();
    credit = SUBSCRIBE_BURST;
    creditAt = 0;
    waitsForCredit = false;
    /** @type {Replay[]} announced by the server and not yet complete */
    replays = [];
    /** events of `replays` still to come; Infinity when the server did not say */
    left = 0;
    counted = 0;
    /** when the last of them came, in milliseconds since 1970 */
    progressAt = 0;
  }

  class ChatwsClient {
    /** @type {Settings} */
    #settings;
    /** @type {Map<string, Set<Handler>>} */
    #handlers = new Map();
    /** @type {Id | null} */
    #userId = null;
    #url = '';
    /** @type {TokenSource} */
    #token = null;
    #active = false;
    /** @type {'' | 'connected' | 'disconnected'} what the page was told last */
    #told = '';
    /** @type {Link | null} */
    #link = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    #retry;
    #failures = 0;
    #home = new Channel(null);
    /** @type {Map<string, Channel>} the conversations that the page wants, by their id as a string */
    #wanted = new Map();
    #seen = new Seen();
    #lastActivity = Date.now();

    /** @param {Partial<Settings>} [settings] other times than the defaults, for tests and special pages */
    constructor(settings = {}) {
      this.#settings = { ...DEFAULTS, ...settings };
    }

    // What pages call

    /** Whether the connection is open and authenticated. */
    get connected() {
      return this.#link?.state === 'in';
    }

    /** The same as `connected`: a property, not a method. */
    get isConnected() {
      return this.connected;
    }

    /**
     * Connect, and stay connected. A second call for the same user and URL only takes over the new token. Another user
     * starts with nothing: no subscriptions, no position.
     *
     * @param {Id | null} userId may be null when there is a token
     * @param {ConnectOptions} [options] `url`: a WebSocket URL, absolute or relative to the page; by default `/ws` on
     *   the page's own host, or port 8080 of it where the page is served by plain http from localhost.
     *   `token`: a signed ticket, or a function that fetches a fresh one.
     * @throws {SyntaxError | TypeError} the URL is none
     */
    connect(userId, options = {}) {
      const { url, token = null } = options ?? {};
      if (!isId(userId) && (userId != null || token === null)) {
        this.#complain('bad_message', 'connect: the user id must be an integer or a string');
        return;
      }
      const address = resolveUrl(url);
      const isSameUser = String(userId ?? '') === String(this.#userId ?? '');
      this.#token = token;
      if (this.#active && isSameUser && address === this.#url) return;
      const isFirst = !this.#url;
      this.disconnect();
      if (!isSameUser && !isFirst) {
        this.#wanted.clear();
        this.#home = new Channel(null);
        this.#seen = new Seen();
      }
      this.#userId = userId ?? null;
      this.#url = address;
      this.#active = true;
      this.#told = '';
      this.#failures = 0;
      this.#listen(true);
      this.#open();
    }

    /** Disconnect and stay so. Subscriptions are remembered: `connect` as the same user recovers what was missed. */
    disconnect() {
      if (!this.#active) return;
      this.#active = false;
      this.#listen(false);
      clearTimeout(this.#retry);
      this.#retry = undefined;
      if (this.#link) this.#discard(this.#link, 1000);
      this.#tellDisconnected(1000, '', false);
    }

    /**
     * Call `handler(data, {event, id})` for each event of this name; `*` is all of them.
     * @param {string} event @param {Handler} handler
     */
    on(event, handler) {
      if (typeof handler !== 'function') throw new TypeError('on: the handler must be a function');
      const handlers = this.#handlers.get(event) ?? new Set();
      this.#handlers.set(event, handlers.add(handler));
      return this;
    }

    /** Call `handler` no more; without one, none for this event. @param {string} event @param {Handler} [handler] */
    off(event, handler) {
      if (handler) this.#handlers.get(event)?.delete(handler);
      else this.#handlers.delete(event);
      return this;
    }

    /**
     * Get this conversation's events, on this connection and on all that follow; may be called before `connect`.
     * The answer is the event `subscribed`, or `error` with `request.type` "subscribe"; what was refused is not asked
     * for again.
     *
     * @param {Id} conversationId
     * @returns {boolean} false when that is no id
     */
    subscribe(conversationId) {
      if (!isId(conversationId)) {
        this.#complain('bad_message', 'subscribe: the conversation id must be an integer or a string');
        return false;
      }
      const key = String(conversationId);
      if (!this.#wanted.has(key)) {
        this.#wanted.set(key, new Channel(conversationId));
        if (this.#link) this.#sendSubscribes(this.#link);
      }
      return true;
    }

    /**
     * Stop getting them. The server is told; when there is no connection, the next one does not ask for them.
     * @param {Id} conversationId
     */
    unsubscribe(conversationId) {
      const key = String(conversationId);
      this.#wanted.delete(key);
      const link = this.#link;
      if (!isId(conversationId) || link?.state !== 'in') return;
      if (this.#send(link, { type: 'unsubscribe', conversation_id: conversationId })) askedOf(link, key).push(null);
    }

    /**
     * Tell the others in the conversation. Not sent later when it cannot be sent now.
     * @param {Id} conversationId @param {boolean} [isTyping]
     * @returns {boolean} whether it was sent
     */
    sendTyping(conversationId, isTyping = true) {
      const channel = this.#wanted.get(String(conversationId));
      if (channel && !channel.sent) return false;
      return this.send({ type: 'typing', conversation_id: conversationId, is_typing: Boolean(isTyping) });
    }

    /**
     * Send any message of the protocol, now or not at all.
     * @param {object} message
     * @returns {boolean} whether it was sent; it is not queued
     */
    send(message) {
      return this.#link?.state === 'in' && this.#send(this.#link, message);
    }

    /**
     * Show a fresh ticket on the open connection, before the old one expires; later connections use it too.
     * @param {TokenSource} [token] by default that of `connect`, asked again if it is a function
     * @returns {Promise<boolean>} whether it was sent; the answer is the event `authenticated`
     */
    async renew(token) {
      if (token !== undefined) this.#token = token;
      const link = this.#link;
      if (link?.state !== 'in') return false;
      try {
        const ticket = await askToken(this.#token);
        return link === this.#link && this.#send(link, this.#authMessage(ticket, null));
      } catch (error) {
        this.#complain('token_failed', `the token could not be had: ${error}`, { error });
        return false;
      }
    }

    // Handlers

    /** @param {string} event @param {any} data @param {string} [id] */
    #emit(event, data, id) {
      const info = id === undefined ? { event } : { event, id };
      for (const name of event === '*' ? ['*'] : [event, '*']) {
        for (const handler of [...(this.#handlers.get(name) ?? [])]) {
          if (!this.#handlers.get(name)?.has(handler)) continue; // taken off by one before it
          try {
            handler(data, info);
          } catch (error) {
            console.error(`wsClient: a handler of ${name} failed`, error);
            if (event !== 'error') this.#complain('handler_failed', `a handler of ${name} failed: ${error}`, { error });
          }
        }
      }
    }

    /** @param {string} code @param {string} message @param {object} [more] */
    #complain(code, message, more = {}) {
      this.#emit('error', { code, message, ...more });
    }

    /** @param {number} code @param {string} reason @param {boolean} willReconnect */
    #tellDisconnected(code, reason, willReconnect) {
      if (this.#told === 'disconnected') return;
      this.#told = 'disconnected';
      this.#emit('disconnected', { code, reason, will_reconnect: willReconnect });
    }

    // Coming and going

    #open() {
      clearTimeout(this.#retry);
      this.#retry = undefined;
      const link = new Link();
      this.#link = link;
      this.#later(link, this.#settings.connect_timeout, () => this.#drop(link, 'no answer in time'));
      const token = this.#token;
      if (typeof token !== 'function') {
        this.#dial(link, token);
        return;
      }
      askToken(token).then(
        (ticket) => link === this.#link && this.#dial(link, ticket),
        (error) => {
          if (link !== this.#link) return;
          this.#complain('token_failed', `the token could not be had: ${error}`, { error });
          this.#lost(link, 1006, 'no token');
        },
      );
    }

    /** @param {Link} link @param {Token} ticket */
    #dial(link, ticket) {
      let socket;
      try {
        socket = link.socket = new (this.#settings.WebSocket ?? WebSocket)(this.#url);
      } catch (error) {
        this.#complain('connection_failed', `no connection to ${this.#url}: ${error}`, { error });
        this.#lost(link, 1006, 'no connection');
        return;
      }
      socket.onopen = () => {
        link.state = 'auth';
        link.from = this.#home.from;
        this.#send(link, this.#authMessage(ticket, link.from));
      };
      socket.onmessage = (/** @type {{data: unknown}} */ frame) => this.#receive(link, frame.data);
      socket.onerror = () => this.#complain('connection_failed', `the connection to ${this.#url} failed`);
      socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.#lost(link, code, reason);
    }

    /** @param {Token} ticket @param {Position | null} from */
    #authMessage(ticket, from) {
      return {
        type: 'auth',
        ...(this.#userId === null ? {} : { user_id: this.#userId }),
        ...(ticket == null ? {} : { token: ticket }),
        ...lastEventId(from),
      };
    }

    /** The connection is gone. @param {Link} link @param {number} code @param {string} reason */
    #lost(link, code, reason) {
      if (link !== this.#link) return;
      const wasStable = link.state === 'in' && Date.now() - link.since >= this.#settings.stable_after;
      this.#discard(link);
      if (code >= 4900 && code <= 4999) {
        this.#active = false;
        this.#listen(false);
        this.#tellDisconnected(code, reason, false);
        if (!this.#active) this.#emit('reconnect_failed', { code, reason });
        return;
      }
      this.#failures = wasStable ? 0 : this.#failures;
      this.#retry = setTimeout(() => this.#open(), this.#backoff(code));
      this.#failures += 1;
      this.#tellDisconnected(code, reason, true);
    }

    /** Full jitter, so that those who went together do not come together. @param {number} code */
    #backoff(code) {
      const { backoff_base: base, backoff_cap: cap, random } = this.#settings;
      if (PATIENT_CODES.includes(code)) return PATIENCE + random() * Math.max(0, cap - PATIENCE);
      return random() * Math.min(cap, base * 2 ** Math.min(this.#failures, 30));
    }

    /** The connection is of no use: do not wait for the closing handshake. @param {Link} link @param {string} reason */
    #drop(link, reason) {
      this.#lost(link, 1006, reason);
    }

    /** Let go of the connection and keep what it has taught. @param {Link} link @param {number} [code] */
    #discard(link, code = 4000) {
      this.#link = null;
      for (const timer of link.timers) clearTimeout(timer);
      link.timers.clear();
      for (const channel of this.#channels()) channel.park(link.position);
      const socket = link.socket;
      if (!socket) return;
      socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null;
      if (socket.readyState < 2) socket.close(code);
    }

    *#channels() {
      yield this.#home;
      yield* this.#wanted.values();
    }

    /** @param {Link} link @param {object} message */
    #send(link, message) {
      if (link.socket?.readyState !== 1) return false;
      link.socket.send(JSON.stringify(message));
      return true;
    }

    /** A timer that dies with the connection. @param {Link} link @param {number} delay @param {() => void} action */
    #later(link, delay, action) {
      const timer = setTimeout(() => {
        link.timers.delete(timer);
        if (link === this.#link) action();
      }, delay);
      link.timers.add(timer);
      return timer;
    }

    // Signs of life

    /** @param {Link} link */
    #beat(link) {
      this.#ping(link, this.#settings.pong_timeout);
      this.#later(link, this.#settings.heartbeat, () => this.#beat(link));
    }

    /** @param {Link} link @param {number} timeout */
    #ping(link, timeout) {
      if (this.#send(link, { type: 'ping', last_activity: this.#lastActivity })) link.pings += 1;
      const due = Date.now() + timeout;
      this.#calm(link);
      link.watchdog = this.#later(link, timeout, () => {
        // A timer much too late: the tab was frozen, and the answer may lie unread behind this very timer.
        if (Date.now() - due > 2_000 && !link.suspected) {
          link.suspected = true;
          this.#ping(link, timeout);
        } else {
          this.#drop(link, 'no answer to a ping');
        }
      });
    }

    /** @param {Link} link */
    #calm(link) {
      if (link.watchdog === undefined) return;
      clearTimeout(link.watchdog);
      link.timers.delete(link.watchdog);
      link.watchdog = undefined;
    }

    /** The page is back from somewhere: waiting is over, and an old connection has to prove itself. */
    #wake = (/** @type {Event} */ { type }) => {
      if (type === 'visibilitychange' && document.visibilityState === 'hidden') return;
      if (this.#retry !== undefined && !this.#link) this.#open();
      else if (this.#link?.state === 'in') this.#ping(this.#link, this.#settings.probe_timeout);
    };

    #note = () => {
      this.#lastActivity = Date.now();
    };

    /** @param {boolean} on */
    #listen(on) {
      if (typeof document === 'undefined') return;
      const change = on ? 'addEventListener' : 'removeEventListener';
      for (const name of ['online', 'pageshow']) window[change](name, this.#wake);
      for (const name of ['visibilitychange', 'resume']) document[change](name, this.#wake);
      for (const name of SIGNS_OF_LIFE) document[change](name, this.#note, { capture: true, passive: true });
    }

    // What the server says

    /** @param {Link} link @param {unknown} text */
    #receive(link, text) {
      if (link !== this.#link) return;
      this.#calm(link);
      link.suspected = false;
      let message;
      try {
        message = JSON.parse(/** @type {string} */ (text));
      } catch (error) {
        this.#complain('bad_frame', 'the server sent something that is no JSON', { error });
        return;
      }
      if (message?.type === 'pong') this.#pong(link);
      else if (typeof message?.event === 'string') this.#event(link, message.event, message.data, message.id);
    }

    /** @param {Link} link @param {string} event @param {any} data @param {unknown} id */
    #event(link, event, data, id) {
      switch (event) {
        case 'authenticated':
          this.#authenticated(link, data ?? {});
          break;
        case 'subscribed':
          this.#subscribed(link, data ?? {});
          break;
        case 'unsubscribed':
          this.#unsubscribed(link, String(data?.conversation_id));
          this.#emit(event, data);
          break;
        case 'error':
          if (data?.request?.type === 'subscribe') this.#refused(link, data.code, data.request.conversation_id);
          this.#emit(event, data);
          break;
        default:
          this.#deliver(link, event, data, id);
      }
    }

    /** @param {Link} link @param {any} data */
    #authenticated(link, data) {
      if (link.state === 'in') {
        this.#emit('authenticated', data); // the answer to a renewed ticket
        return;
      }
      for (const timer of link.timers) clearTimeout(timer);
      link.timers.clear();
      link.state = 'in';
      link.since = link.creditAt = Date.now();
      this.#later(link, this.#settings.heartbeat, () => this.#beat(link));
      const tell = this.#established(link, this.#home, link.from, data);
      this.#sendSubscribes(link);
      this.#told = 'connected';
      this.#emit('authenticated', data);
      if (link === this.#link) this.#emit('connected', data);
      tell();
    }

    /** @param {Link} link @param {any} data */
    #subscribed(link, data) {
      const asked = takeAsked(link, String(data.conversation_id));
      const tell = asked ? this.#established(link, asked.channel, asked.from, data) : () => {};
      this.#emit('subscribed', data);
      tell();
    }

    /** @param {Link} link @param {string} key */
    #unsubscribed(link, key) {
      const asked = askedOf(link, key);
      const own = asked.indexOf(null);
      if (own >= 0) asked.splice(0, own + 1);
      else this.#wanted.delete(key); // a backend took it away
      const left = link.replays.findIndex(({ channel }) => channel !== this.#home && String(channel.id) === key);
      if (left < 0) return;
      // A replay broken off. (If others ran beside it, nobody can tell what is still to come: see #pong.)
      link.replays.splice(left, 1);
      if (!link.replays.length) this.#endReplays(link, true);
    }

    /** @param {Link} link @param {string} code @param {unknown} conversationId may be missing */
    #refused(link, code, conversationId) {
      const keys = [...link.asked.keys()].filter((key) => askedOf(link, key).some(Boolean));
      const delay = ASK_AGAIN.get(code);
      // Without a name it may be any of those; when it passes by itself, all of them may be asked again.
      const concerned = conversationId !== undefined ? [String(conversationId)] : keys;
      if (delay === undefined && concerned.length > 1) return;
      for (const key of concerned) {
        const channel = takeAsked(link, key)?.channel;
        if (!channel || this.#wanted.get(key) !== channel) continue;
        if (delay === undefined) {
          this.#wanted.delete(key);
          continue;
        }
        this.#later(link, delay * (1 + this.#settings.random()), () => {
          channel.sent = false;
          this.#sendSubscribes(link);
        });
      }
    }

    /** Ask for the conversations that this connection has not been asked for. @param {Link} link */
    #sendSubscribes(link) {
      if (link.state !== 'in' || link.waitsForCredit) return;
      const now = Date.now();
      link.credit = Math.min(SUBSCRIBE_BURST, link.credit + ((now - link.creditAt) / 1000) * SUBSCRIBE_RATE);
      link.creditAt = now;
      for (const [key, channel] of this.#wanted) {
        if (channel.sent) continue;
        if (link.credit < 1) {
          link.waitsForCredit = true;
          this.#later(link, 1000 / SUBSCRIBE_RATE, () => {
            link.waitsForCredit = false;
            this.#sendSubscribes(link);
          });
          return;
        }
        const { id, from } = channel;
        if (!this.#send(link, { type: 'subscribe', conversation_id: id, ...lastEventId(from) })) return;
        link.credit -= 1;
        channel.sent = true;
        askedOf(link, key).push({ channel, from });
      }
    }

    // Recovery

    /** @param {Channel} channel */
    #isWanted(channel) {
      return channel === this.#home || this.#wanted.get(String(channel.id)) === channel;
    }

    /**
     * The server's answer to `auth` or `subscribe`: where the log stood, and what will be replayed.
     *
     * @param {Link} link @param {Channel} channel
     * @param {Position | null} from the `last_event_id` that was sent
     * @param {any} data
     * @returns {() => void} what the page is to be told after the answer itself
     */
    #established(link, channel, from, data) {
      const high = parsePosition(data.last_event_id);
      if (high && link.position && high.epoch !== link.position.epoch) link.position = null; // the log began anew
      if (from && data.recovered === true) {
        const count = Number.isInteger(data.replayed) ? data.replayed : null;
        if (count !== 0) {
          this.#expectReplay(link, { channel, high, count });
          return () => {};
        }
        this.#adopt(link, channel, high ?? from);
        return () => this.#emit('recovered', { ...channel.subject(), count: 0 });
      }
      // A log that ends before what it had given out has lost its end. One that reaches further has only been trimmed:
      // what has been seen beyond `high` came from a node that is ahead of this one, which will send it too.
      if (from && high && newest(from, high) === from) this.#seen.forgetAfter(high);
      this.#adopt(link, channel, high);
      const isLost = from !== null && this.#isWanted(channel);
      return () => isLost && this.#emit('resync', channel.subject());
    }

    /**
     * Nothing is missing up to `high`, and nothing is on its way.
     * @param {Link} link @param {Channel} channel @param {Position | null} high
     */
    #adopt(link, channel, high) {
      channel.from = high;
      channel.live = !link.position || newest(link.position, high) === high;
      channel.settlesAfter = channel.live ? null : link.pings;
    }

    /** @param {Link} link @param {Replay} replay */
    #expectReplay(link, replay) {
      link.replays.push(replay);
      link.progressAt = Date.now();
      if (replay.count !== null && replay.high) {
        link.left += replay.count;
      } else {
        // Another server, which does not say how many: they have come when it answers a ping.
        link.left = Infinity;
        this.#ping(link, this.#settings.pong_timeout);
      }
    }

    /** @param {Link} link @param {boolean} isComplete */
    #endReplays(link, isComplete) {
      const { replays, counted } = link;
      link.replays = [];
      link.left = link.counted = 0;
      const wanted = replays.filter(({ channel }) => this.#isWanted(channel));
      for (const { channel, high } of wanted) {
        channel.from = high ?? channel.from;
        channel.settlesAfter = link.pings;
      }
      for (const { channel, count } of wanted) {
        if (isComplete) this.#emit('recovered', { ...channel.subject(), count: count ?? counted });
        else this.#emit('resync', channel.subject());
      }
    }

    /** @param {Link} link */
    #pong(link) {
      link.pongs += 1;
      for (const channel of this.#channels()) {
        if (channel.settlesAfter === null || link.pongs <= channel.settlesAfter) continue;
        channel.live = true;
        channel.settlesAfter = null;
      }
      if (!link.replays.length) return;
      if (link.left === Infinity) this.#endReplays(link, true);
      else if (Date.now() - link.progressAt >= this.#settings.replay_timeout) this.#endReplays(link, false);
    }

    /** @param {Link} link @param {string} event @param {any} data @param {unknown} id */
    #deliver(link, event, data, id) {
      const at = parsePosition(id);
      if (!at) {
        this.#emit(event, data);
        return;
      }
      const isReplayed = link.replays.some(({ high }) => high && at.epoch === high.epoch && at.offset <= high.offset);
      if (isReplayed) {
        link.left -= 1;
        link.counted += 1;
        link.progressAt = Date.now();
      } else {
        link.position = newest(link.position, at);
      }
      if (!this.#seen.has(at)) {
        this.#seen.add(at);
        if (this.#seen.isFull) this.#seen.prune([...this.#channels()].map((one) => one.reached(link.position)));
        this.#emit(event, data, /** @type {string} */ (id));
      }
      if (isReplayed && link.left <= 0 && link === this.#link) this.#endReplays(link, true);
    }
  }

  /** @param {Link} link @param {string} key @returns {(Asked | null)[]} */
  function askedOf(link, key) {
    const asked = link.asked.get(key) ?? [];
    link.asked.set(key, asked);
    return asked;
  }

  /** The `subscribe` that an answer belongs to. @param {Link} link @param {string} key */
  function takeAsked(link, key) {
    const asked = askedOf(link, key);
    const index = asked.findIndex(Boolean);
    return index < 0 ? null : asked.splice(index, 1)[0];
  }

  /** @param {Position | null} from */
  function lastEventId(from) {
    return from ? { last_event_id: `${from.epoch}:${from.offset}` } : {};
  }

  /** @param {TokenSource} token @returns {Promise<Token>} */
  async function askToken(token) {
    return typeof token === 'function' ? token() : token;
  }

  /** @param {string} [url] */
  function resolveUrl(url) {
    const page = typeof location === 'undefined' ? null : location;
    if (url) {
      const found = new URL(url, page?.href);
      found.protocol = found.protocol.replace(/^http/, 'ws');
      return found.href;
    }
    const host = page?.hostname || 'localhost';
    const isHere = ['localhost', '127.0.0.1', '[::1]'].includes(host);
    if (page?.protocol === 'https:') return `wss://${page.host}/ws`;
    return isHere ? `ws://${host}:8080` : `ws://${page?.host}/ws`;
  }

  const world = /** @type {any} */ (globalThis);
  if (!world.ChatwsClient) {
    world.ChatwsClient = ChatwsClient;
    world.wsClient = new ChatwsClient();
  }
  return {
    ChatwsClient: /** @type {typeof ChatwsClient} */ (world.ChatwsClient),
    wsClient: /** @type {ChatwsClient} */ (world.wsClient),
  };
})();

// For `require`, and for `import { wsClient } from …` in bundlers and Node, which find the names here.
// @ts-ignore: TS2580, `module` exists there alone
if (typeof module === 'object' && module.exports) module.exports = { ChatwsClient, wsClient };
