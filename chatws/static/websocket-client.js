// @ts-check
/**
 * The browser client of chatws: one WebSocket that reconnects, and events that are neither lost nor delivered twice.
 * docs/protocol.md defines the wire format. No dependencies, any browser since autumn 2021, MIT licence.
 *
 * As a classic script it defines `window.wsClient` (an instance) and `window.ChatwsClient` (its class):
 *
 *     <script src="/assets/js/websocket-client.js"></script>
 *     wsClient.on('new_message', data => show(data.message));
 *     wsClient.connect(123);
 *     wsClient.subscribe(456);
 *
 * In an ES module import it for its side effect. A file that a browser can run as a classic script cannot contain
 * `export`, so the names are global here too:
 *
 *     import '/assets/js/websocket-client.js';
 *     const { wsClient, ChatwsClient } = globalThis;
 *
 * With a bundler or in Node `import { wsClient, ChatwsClient } from './websocket-client.js'` works, and so does
 * `require`. A page that loads the file more than once still has one `wsClient`.
 *
 * Events of the client itself (`on(event, handler)`, a handler gets `(data, {event, id})`):
 *
 *   connected         authenticated, for the first time or again. The data is that of `authenticated`.
 *   disconnected      {code, reason, will_reconnect, never_connected}: the connection closed, or the first attempt
 *                     failed. Once per outage, not once per attempt. The code is the WebSocket's, 1006 without a close
 *                     frame. `never_connected`: no attempt since `connect` has succeeded, perhaps because the network
 *                     blocks WebSockets. The page may poll until `connected`.
 *   reconnect_failed  {code, reason}: the server closed with a code from 4900 to 4999. Call `connect` to try again.
 *                     After 4909 (too many connections of this user) the client tries again by itself when the page
 *                     becomes visible, every 30 s at most.
 *   error             {code, message, …}: the server's `error`, or one of the client: `connection_failed`, `bad_frame`,
 *                     `token_failed` and `handler_failed` (with `error`), `bad_message` (an invalid argument),
 *                     `origin_not_allowed` (with `origin`: the server's `allowed_origins` does not list it),
 *                     `blocked_by_policy` (with `source`: the page's Content-Security-Policy must list it in
 *                     `connect-src`). Without a handler of `error` or `*` the client's own errors are warnings on the
 *                     console.
 *   identity_changed  {user_id} or {contact_id}: after a reconnect the server names another user, because of a log-in
 *                     or log-out in another tab. The client has dropped all subscriptions and positions. Agent 7 and
 *                     contact 7 are different. Load the page's state again, and subscribe.
 *   recovered         {conversation_id?, count}: after a reconnect, the missed events have been delivered, `count` of
 *                     them by the server's count. Without a conversation_id: events for everyone and for this user.
 *   resync            {conversation_id?}: the server no longer has the missed events, so load that conversation again.
 *                     Without a conversation_id: load everything again. Live events already arrive, so nothing is lost
 *                     in between.
 *   *                 every event, these and the server's, with its name in the second argument.
 *
 * Every event of the server is emitted under its name with its `data`: `new_message`, `typing`, `agent_status` and so
 * on, for agents also `contact_status` and `groups`, for contacts `available`. A conversation's events are complete
 * from its `subscribed` on: load its messages at that moment or later, not before.
 *
 * Only `disconnect()` and the close codes from 4900 to 4999 stop the client. After any other close, including 1000 by
 * the server, it reconnects without a limit. A page that the browser puts aside (`pagehide`) closes its connection
 * without an event, and connects again if the user returns to it.
 *
 * A customer's widget connects as a contact. The token names the contact, and comes from a POST that no cache stores:
 *
 *     const token = async () => (await (await fetch('/chat/token', { method: 'POST' })).json()).token;
 *     wsClient.connect(null, { token });
 *     wsClient.subscribe(456);  // a conversation that is newer than the token asks once for a new token
 *
 * Scripts that run again and again, as with Turbo or Livewire, remove their handlers with a signal. Each
 * `new ChatwsClient()` has a connection and handlers of its own.
 *
 *     const leaving = new AbortController();
 *     wsClient.on('new_message', show, { signal: leaving.signal });
 *     document.addEventListener('turbo:before-render', () => leaving.abort(), { once: true });
 *
 * How this file is organized:
 *
 *   Settings and constants   times, and the reason for each
 *   Positions                `epoch:offset` in the server's event history
 *   Channel                  a stream of events with its own position: a conversation, or the user's own events
 *   DeliveredIds             removes duplicates
 *   Attempt                  the state of one connection
 *   ChatwsClient             public methods, handlers, connecting, keepalive, server events, recovery
 *   Helpers                  subscribe bookkeeping, tokens, URLs
 */
var { ChatwsClient, wsClient } = (() => {
  'use strict';

  // Settings and constants

  /**
   * @typedef {number | string} Id
   * @typedef {{event: string, id?: string}} Info
   * @typedef {(data: any, info: Info) => unknown} Handler
   * @typedef {'agent' | 'contact'} Role
   * @typedef {object} Authenticated  of an agent with `user_id`, of a contact with `contact_id`
   * @property {Role} role
   * @property {string} connection_id
   * @property {Id} [user_id]
   * @property {Id} [contact_id]
   * @property {string} [last_event_id]
   * @property {boolean} [recovered]
   * @property {number} [replayed]
   * @property {string[]} [groups] of an agent
   * @property {string} [status] of an agent, unless it is `online`
   * @property {boolean} [available] for a contact: whether an agent is online with the status `online`
   *
   * @typedef {object} Subscribed
   * @property {Id} conversation_id
   * @property {string} [last_event_id]
   * @property {boolean} [recovered]
   * @property {number} [replayed]
   * @property {Id[]} [contacts_online] for agents: the contacts of the conversation who are online
   *
   * @typedef {object} ErrorData
   * @property {string} code
   * @property {string} message
   * @property {{type?: string, conversation_id?: Id}} [request] of an error of the server
   * @property {unknown} [error] of an error of the client
   * @property {string} [origin]
   * @property {string} [source]
   *
   * @typedef {object} Events  the data of each event. An event of another name has any data
   * @property {Authenticated} authenticated
   * @property {Authenticated} connected
   * @property {{code: number, reason: string, will_reconnect: boolean, never_connected: boolean}} disconnected
   * @property {{code: number, reason: string}} reconnect_failed
   * @property {ErrorData} error
   * @property {{user_id?: Id, contact_id?: Id}} identity_changed
   * @property {{conversation_id?: Id, count: number}} recovered
   * @property {{conversation_id?: Id}} resync
   * @property {Subscribed} subscribed
   * @property {{conversation_id: Id}} unsubscribed
   * @property {{online: Id[], status?: Record<string, string>}} presence
   * @property {{status: string}} status_set
   * @property {{agent_id: Id, status: string}} agent_status
   * @property {{conversation_id: Id, contact_id: Id, status: 'online' | 'offline', since_ms: number}} contact_status
   * @property {{available: boolean}} available
   * @property {{groups: string[]}} groups
   * @property {{conversation_id: Id, user_id?: Id, contact_id?: Id, is_typing: boolean}} typing
   *
   * @typedef {string | (() => string | Promise<string>)} TokenSource  a function is called before each connection
   * @typedef {{url?: string | string[], token?: TokenSource}} ConnectOptions
   *
   * @typedef {object} Settings  times in milliseconds
   * @property {number} heartbeat interval between pings
   * @property {number} hidden_heartbeat the same while the page is hidden
   * @property {number} pong_timeout without any frame after a ping
   * @property {number} probe_timeout the same after the page becomes visible or online again
   * @property {number} open_timeout until the WebSocket is open; it doubles with each failure, up to `connect_timeout`
   * @property {number} connect_timeout from the start of an attempt until `authenticated`
   * @property {number} replay_timeout without an event of a replay that the server has announced
   * @property {number} backoff_base upper bound of the first delay; it doubles with each failure
   * @property {number} backoff_cap upper bound of all delays
   * @property {number} stable_after a connection of this duration resets the backoff
   * @property {() => number} random 0 ≤ x < 1
   * @property {any} [WebSocket] the class to use instead of the global one
   *
   * @typedef {{epoch: string, offset: number}} Position  in the server's event history
   * @typedef {{channel: Channel, from: Position | null}} PendingSubscribe  a `subscribe` without a response yet
   * @typedef {{channel: Channel, historyEnd: Position | null, count: number | null}} Replay
   */

  /** @type {Settings} */
  const DEFAULTS = {
    heartbeat: 30_000, // below the idle timeout of proxies, which is 60 s in nginx
    hidden_heartbeat: 60_000, // browsers run the timers of hidden pages once a minute
    pong_timeout: 10_000,
    probe_timeout: 5_000,
    open_timeout: 5_000, // a proxy may have chosen a server that hangs: the next attempt may reach another one
    connect_timeout: 20_000,
    replay_timeout: 60_000,
    backoff_base: 500,
    backoff_cap: 30_000,
    stable_after: 10_000,
    random: Math.random,
  };
  /** Milliseconds before a subscribe is sent again that the server answered with `unavailable`. */
  const RESUBSCRIBE_DELAY = 5_000;
  /** Close codes of an overloaded server: 4429 too many messages, 4503 a dependency is unavailable. */
  const OVERLOAD_CODES = [4429, 4503];
  /** Minimum delay in milliseconds after one of these codes: an early retry would prolong the overload. */
  const OVERLOAD_BACKOFF = 5_000;
  /** DOM events that count as activity of the user. */
  const ACTIVITY_EVENTS = ['pointerdown', 'pointermove', 'keydown', 'wheel'];
  /** The URL of this file as a classic script. Modules and bundles have no `document.currentScript`. */
  const SCRIPT_URL = (typeof document !== 'undefined' && /** @type {any} */ (document.currentScript)?.src) || '';
  /** The path at which chatws serves this file. The WebSocket is at `/ws` beside it. */
  const LIBRARY_PATH = /\/assets\/js\/websocket-client\.js$/;
  /** Close code of the server for a rejected token. */
  const AUTH_FAILED = 4901;
  /** Ids that are kept before the first prune, a few hundred KB at most. */
  const MIN_DELIVERED_IDS = 1000;
  /** A timer that fires this late, in milliseconds, shows that the browser had frozen the tab, or the machine slept. */
  const FROZEN_AFTER = 2_000;
  /** Age in milliseconds from which an attempt is started again when the page wakes up: its packets may be lost. */
  const STALE_ATTEMPT = 3_000;
  /** Close code of the server: too many connections of this user. Other tabs may have closed in the meantime. */
  const TOO_MANY_CONNECTIONS = 4909;
  /** Milliseconds between two attempts after this code, in a page that becomes visible. */
  const TOO_MANY_PAUSE = 30_000;
  /** Conversations for which the client asks for a fresh token, at most: as many as a connection may subscribe to. */
  const MAX_FRESH_TOKENS = 1000;

  // Positions

  /** @param {unknown} id @returns {Position | null} */
  function parsePosition(id) {
    const match = typeof id === 'string' ? /^(.+):(\d{1,16})$/.exec(id) : null;
    return match && { epoch: match[1], offset: Number(match[2]) };
  }

  /**
   * Return the later of two positions. Of two epochs it is that of `b`, which the client has learnt later.
   * @param {Position | null} a @param {Position | null} b
   */
  function later(a, b) {
    return a && (!b || (a.epoch === b.epoch && a.offset > b.offset)) ? a : b;
  }

  /** @param {Position | null} position the fields of a message that asks for recovery from there */
  function lastEventId(position) {
    return position ? { last_event_id: `${position.epoch}:${position.offset}` } : {};
  }

  /** @param {unknown} id @returns {id is Id} */
  function isId(id) {
    if (typeof id === 'number') return Number.isSafeInteger(id) && id >= 0;
    return typeof id === 'string' && id.length >= 1 && id.length <= 128;
  }

  /**
   * A stream of events with its own position: a conversation, or (id null) the events for everyone and for this user.
   *
   * The next connection sends `position` as `last_event_id`: everything up to it has been delivered. While the channel
   * is live, it follows the position of the connection, because the server sends live events of a connection in the
   * order of their offsets. Between a replay and the next pong it does not follow yet, because live events of this
   * channel may arrive after later ones of other channels. A position that is too low costs a few duplicates, which the
   * client drops. A position that is too high would lose events.
   */
  class Channel {
    /** @param {Id | null} id */
    constructor(id) {
      this.id = id;
      /** @type {Position | null} */
      this.position = null;
      this.isLive = false;
      /** @type {number | null} the channel becomes live with the first pong after this many */
      this.liveAfterPong = null;
      /** Whether the current connection has sent `subscribe`. */
      this.isRequested = false;
    }

    /** @param {Position | null} position that of the connection */
    deliveredUpTo(position) {
      return this.isLive ? later(this.position, position) : this.position;
    }

    /** Store the position when a connection ends. @param {Position | null} position that of the connection */
    suspend(position) {
      this.position = this.deliveredUpTo(position);
      this.isLive = false;
      this.liveAfterPong = null;
      this.isRequested = false;
    }

    /** Return the fields of `recovered` and `resync` that name this channel. @returns {{conversation_id?: Id}} */
    subject() {
      return this.id === null ? {} : { conversation_id: this.id };
    }
  }

  /** The ids of delivered events, as far back as the server may send one of them again. */
  class DeliveredIds {
    /** @type {Map<string, Position>} */
    #ids = new Map();
    /** @type {Map<string, number>} epoch => everything up to this offset counts as delivered */
    #floors = new Map();
    #limit = MIN_DELIVERED_IDS;

    get isFull() {
      return this.#ids.size > this.#limit;
    }

    /** @param {Position} position */
    has({ epoch, offset }) {
      return this.#ids.has(`${epoch}:${offset}`) || offset <= (this.#floors.get(epoch) ?? -1);
    }

    /** @param {Position} position */
    add(position) {
      this.#ids.set(`${position.epoch}:${position.offset}`, position);
    }

    /**
     * Replace ids that no channel can request again by a floor.
     * @param {(Position | null)[]} positions of all channels
     */
    prune(positions) {
      /** @type {Map<string, number>} */
      const lowest = new Map();
      for (const position of positions) {
        if (!position) continue;
        lowest.set(position.epoch, Math.min(position.offset, lowest.get(position.epoch) ?? Infinity));
      }
      for (const [id, { epoch, offset }] of this.#ids) {
        if (offset > (lowest.get(epoch) ?? Infinity)) continue;
        this.#ids.delete(id);
        this.#floors.set(epoch, Math.max(offset, this.#floors.get(epoch) ?? -1));
      }
      this.#limit = Math.max(MIN_DELIVERED_IDS, 2 * this.#ids.size);
    }

    /**
     * Forget the ids after the end of the history. The server has lost these events and will assign the ids again.
     * @param {Position} historyEnd
     */
    forgetAfter(historyEnd) {
      for (const [id, { epoch, offset }] of this.#ids) {
        if (epoch === historyEnd.epoch && offset > historyEnd.offset) this.#ids.delete(id);
      }
      const floor = this.#floors.get(historyEnd.epoch);
      if (floor !== undefined) this.#floors.set(historyEnd.epoch, Math.min(floor, historyEnd.offset));
    }
  }

  /** One attempt to connect, and the state of the resulting connection. Each reconnect makes a new one. */
  class Attempt {
    /** @type {any} */
    socket = null;
    /** @type {'connecting' | 'authenticating' | 'authenticated'} */
    state = 'connecting';
    /** @type {string | null} the server's id of the connection */
    connectionId = null;
    /** milliseconds since 1970 */
    startedAt = Date.now();
    /** milliseconds since 1970 */
    authenticatedAt = 0;
    /** @type {Position | null} the `last_event_id` sent with `auth` */
    authPosition = null;
    /** @type {Set<ReturnType<typeof setTimeout>>} */
    timers = new Set();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    watchdog;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    heartbeat;
    missedPong = false;
    pings = 0;
    pongs = 0;
    /** @type {Position | null} that of the newest live event */
    position = null;
    /** @type {Map<string, (PendingSubscribe | null)[]>} by conversation, in the order sent; null is an `unsubscribe` */
    pendingSubscribes = new Map();
    /** @type {Replay[]} announced by the server and not yet complete */
    replays = [];
    /** events of `replays` that have not arrived; Infinity if the server did not announce a number */
    remaining = 0;
    /** events of `replays` that have arrived */
    received = 0;
    /** arrival of the last of them, in milliseconds since 1970 */
    progressAt = 0;
  }

  class ChatwsClient {
    /** @type {Settings} */
    #settings;
    /** @type {Map<string, Map<Handler, object>>} by event: each handler with an object for its registration */
    #handlers = new Map();
    /** @type {Id | null} */
    #userId = null;
    /** @type {string[]} */
    #urls = [];
    /** The place in `#urls` of the current attempt. */
    #turn = 0;
    /** @type {TokenSource | null} */
    #token = null;
    /** Whether the page wants a connection. */
    #active = false;
    /** Whether the origin needs no check: it was checked, or the server has accepted this page before. */
    #originChecked = false;
    /** Whether the page's Content-Security-Policy has blocked the connection since `connect`. */
    #isBlocked = false;
    /** Whether an attempt has succeeded since `connect`. */
    #wasConnected = false;
    /** @type {number | null} the time of the last close with 4909, if the client waits for the page to be visible */
    #tooManyAt = null;
    /** @type {'' | 'connected' | 'disconnected'} the last status that was emitted */
    #lastStatus = '';
    /** @type {Attempt | null} */
    #attempt = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    #retryTimer;
    #failures = 0;
    /** The events for everyone and for this user. */
    #userChannel = new Channel(null);
    /** The role and id in the last `authenticated`; empty before the first. */
    #identity = '';
    /** @type {string | null} the last token that was sent */
    #sentToken = null;
    /** The subject of the last token; empty if it is not known. */
    #subject = '';
    /** @type {Promise<boolean> | null} the `renew` for conversations that are newer than the token */
    #renewal = null;
    /** The conversations for which the client has asked for a fresh token. */
    #freshTokens = new Set();
    /** @type {Set<string> | null} the subscriptions of before a `connect` that may be for another user */
    #earlierSubscriptions = null;
    /** @type {Map<string, Channel>} the conversations that the page has subscribed to, by their id as a string */
    #subscriptions = new Map();
    #delivered = new DeliveredIds();
    #lastActivity = Date.now();

    /** @param {Partial<Settings>} [settings] times that differ from the defaults, for tests and special pages */
    constructor(settings = {}) {
      this.#settings = { ...DEFAULTS, ...settings };
    }

    // Public methods

    /** Whether the connection is open and authenticated. */
    get connected() {
      return this.#attempt?.state === 'authenticated';
    }

    /**
     * The server's id of this connection, or null without one. A page sends it with its HTTP requests, and the backend
     * pushes with `except_connection_id`, so that this page does not get its own event. Each reconnect has a new id.
     * @returns {string | null}
     */
    get connectionId() {
      return this.connected ? (this.#attempt?.connectionId ?? null) : null;
    }

    /** The same as `connected`: a property, not a method. */
    get isConnected() {
      return this.connected;
    }

    /**
     * Connect, and reconnect after every close. A second call for the same user and URL only replaces the token. A call
     * for another user starts without subscriptions and without a position.
     *
     * Without a user id, the token names the user. A call with another token function connects again, to learn whose
     * token it fetches. Only subscriptions made before the call are dropped if that is another user's.
     *
     * @param {Id | null} userId may be null if there is a token, and is null for a contact
     * @param {ConnectOptions} [options] `url`: a WebSocket URL, absolute or relative to the page. By default `/ws` of
     *   the server that this script was loaded from (`…/assets/js/websocket-client.js`). In a module, a bundle, or a
     *   copy at another path: `/ws` of the page's own host, or its port 8080 if the page comes from localhost by http.
     *   With a list of URLs, the client begins with a random one and takes the next one after each close.
     *   `token`: a function that fetches a token, called before each connection. If it fails or returns no text, the
     *   client emits `token_failed` and calls it again with the usual backoff. A constant works until it expires.
     * @throws {SyntaxError | TypeError} the URL is invalid
     */
    connect(userId, options = {}) {
      const { url, token = null } = options ?? {};
      const hasToken = 'token' in Object(options);
      if (!isId(userId) && (userId != null || !hasToken)) {
        this.#reportError('bad_message', 'connect: the user id must be an integer or a string');
        return;
      }
      if (hasToken && typeof token !== 'function' && !isToken(token)) {
        const advice = 'pass connect() a function that fetches a token: the client calls it again after a failure';
        this.#reportError('token_failed', `the token is ${describeValue(token)}, not a text; ${advice}`);
        return;
      }
      const given = Array.isArray(url) ? url : [url];
      const urls = (given.length ? given : [undefined]).map((item) => resolveUrl(item));
      const isSameUser = String(userId ?? '') === String(this.#userId ?? '');
      const mayBeAnother = userId == null && isSameUser && this.#mayBeOfAnotherUser(token);
      this.#token = token;
      if (this.#active && isSameUser && !mayBeAnother && urls.join() === this.#urls.join()) return;
      const isFirst = !this.#urls.length;
      this.#stopWaiting();
      this.disconnect();
      if (!isSameUser && !isFirst) this.#forgetUser();
      if (mayBeAnother) this.#earlierSubscriptions = new Set(this.#subscriptions.keys());
      this.#userId = userId ?? null;
      this.#urls = urls;
      this.#turn = urls.length > 1 ? Math.floor(this.#settings.random() * urls.length) : 0;
      this.#active = true;
      this.#lastStatus = '';
      this.#failures = 0;
      this.#originChecked = this.#isBlocked = this.#wasConnected = false;
      this.#setPageListeners(true);
      this.#open();
    }

    /** Return whether a token may be of another user than the last one. @param {TokenSource | null} token */
    #mayBeOfAnotherUser(token) {
      if (!this.#url || token === this.#token) return false;
      return !isToken(token) || subjectOf(token) !== this.#subject;
    }

    /** Disconnect and do not reconnect. Subscriptions are kept: `connect` as the same user recovers missed events. */
    disconnect() {
      this.#stopWaiting();
      if (!this.#active) return;
      this.#active = false;
      this.#setPageListeners(false);
      clearTimeout(this.#retryTimer);
      this.#retryTimer = undefined;
      if (this.#attempt) this.#release(this.#attempt, 1000);
      this.#emitDisconnected(1000, '', false);
    }

    /**
     * Call `handler(data, {event, id})` for each event of this name, or for every event if the name is `*`. The same
     * handler is called once, however often it is added.
     *
     * @template {string} K
     * @param {K} event
     * @param {(data: K extends keyof Events ? Events[K] : any, info: Info) => unknown} handler
     * @param {{signal?: AbortSignal}} [options] `signal` removes the handler when it aborts
     */
    on(event, handler, options) {
      if (typeof handler !== 'function') throw new TypeError('on: the handler must be a function');
      const signal = options?.signal;
      const handlers = this.#handlers.get(event) ?? new Map();
      if (signal?.aborted || handlers.has(handler)) return this;
      const registration = {};
      this.#handlers.set(event, handlers.set(handler, registration));
      const remove = () => handlers.get(handler) === registration && handlers.delete(handler);
      signal?.addEventListener('abort', remove, { once: true });
      return this;
    }

    /**
     * Remove a handler, or all handlers of this event if none is given.
     * @param {string} event @param {Handler} [handler]
     */
    off(event, handler) {
      if (handler) this.#handlers.get(event)?.delete(handler);
      else this.#handlers.delete(event);
      return this;
    }

    /**
     * Subscribe to a conversation, on this connection and on all later ones. May be called before `connect`. The
     * response is the event `subscribed`, or `error` with `request.type` "subscribe". A rejected subscription is not
     * repeated.
     *
     * @param {Id} conversationId
     * @returns {boolean} false if the id is invalid
     */
    subscribe(conversationId) {
      if (!isId(conversationId)) {
        this.#reportError('bad_message', 'subscribe: the conversation id must be an integer or a string');
        return false;
      }
      const key = String(conversationId);
      if (!this.#subscriptions.has(key)) {
        this.#subscriptions.set(key, new Channel(conversationId));
        if (this.#attempt) this.#sendSubscribes(this.#attempt);
      }
      return true;
    }

    /**
     * Unsubscribe from a conversation. Without a connection, the next one does not subscribe to it.
     * @param {Id} conversationId
     */
    unsubscribe(conversationId) {
      const key = String(conversationId);
      this.#subscriptions.delete(key);
      const attempt = this.#attempt;
      if (!isId(conversationId) || attempt?.state !== 'authenticated') return;
      if (this.#send(attempt, { type: 'unsubscribe', conversation_id: conversationId })) {
        pendingSubscribesOf(attempt, key).push(null);
      }
    }

    /**
     * Tell the other subscribers of the conversation that the user types. It is never queued.
     * @param {Id} conversationId @param {boolean} [isTyping]
     * @param {{role?: 'agent'}} [options] `role: 'agent'` tells agents only, while an agent writes an internal note
     * @returns {boolean} whether it was sent
     */
    sendTyping(conversationId, isTyping = true, options) {
      const channel = this.#subscriptions.get(String(conversationId));
      if (channel && !channel.isRequested) return false;
      const audience = options?.role === undefined ? {} : { role: options.role };
      return this.send({ type: 'typing', conversation_id: conversationId, is_typing: Boolean(isTyping), ...audience });
    }

    /**
     * Set this agent's status: `online`, `away`, `busy`, or a name of the application. The server keeps it, also over a
     * reload of the page, and tells all agents. It is never queued. The response is the event `status_set`, and the
     * agent's other pages get `agent_status`.
     * @param {string} status 1 to 32 characters of `a-z0-9_-`, not `offline`
     * @returns {boolean} whether it was sent
     */
    setStatus(status) {
      return this.send({ type: 'status', status });
    }

    /**
     * Ask which agents are online. It is never queued. The response is the event `presence`.
     * @returns {boolean} whether it was sent
     */
    presence() {
      return this.send({ type: 'presence' });
    }

    /**
     * Send a message of the protocol. It is never queued.
     * @param {object} message
     * @returns {boolean} whether it was sent
     */
    send(message) {
      return this.#attempt?.state === 'authenticated' && this.#send(this.#attempt, message);
    }

    /**
     * Send a new token on the open connection, before the old one expires. Later connections use it too.
     * @param {TokenSource} [token] by default that of `connect`, called again if it is a function
     * @returns {Promise<boolean>} whether it was sent; the response is the event `authenticated`
     */
    async renew(token) {
      if (token !== undefined) {
        if (typeof token !== 'function' && !isToken(token)) {
          this.#reportError('token_failed', `the token is ${describeValue(token)}, not a text`);
          return false;
        }
        this.#token = token;
      }
      const attempt = this.#attempt;
      if (attempt?.state !== 'authenticated') return false;
      try {
        const newToken = await fetchToken(this.#token);
        if (attempt !== this.#attempt) return false;
        if (this.#subject && subjectOf(newToken) !== this.#subject) {
          this.#reopen(attempt, 'the token is another user\'s'); // a connection keeps its user
          return false;
        }
        const isSent = this.#send(attempt, this.#authMessage(newToken, null));
        if (isSent) this.#sentToken = newToken;
        return isSent;
      } catch (/** @type {any} */ error) {
        this.#reportError('token_failed', `no token: ${error?.message ?? error}`, { error });
        return false;
      }
    }

    // Handlers

    /** @param {string} event @param {any} data @param {string} [id] */
    #emit(event, data, id) {
      const info = id === undefined ? { event } : { event, id };
      for (const name of event === '*' ? ['*'] : [event, '*']) {
        for (const handler of [...(this.#handlers.get(name)?.keys() ?? [])]) {
          if (!this.#handlers.get(name)?.has(handler)) continue; // an earlier handler has removed it
          try {
            handler(data, info);
          } catch (error) {
            console.error(`wsClient: a handler of ${name} failed`, error);
            if (event !== 'error') {
              this.#reportError('handler_failed', `a handler of ${name} failed: ${error}`, { error });
            }
          }
        }
      }
    }

    /** Emit an `error` of the client itself. @param {string} code @param {string} message @param {object} [fields] */
    #reportError(code, message, fields = {}) {
      // Browsers already log a failed connection.
      const hasHandler = this.#handlers.get('error')?.size || this.#handlers.get('*')?.size;
      if (!hasHandler && code !== 'connection_failed') console.warn(`wsClient: ${code}: ${message}`);
      this.#emit('error', { code, message, ...fields });
    }

    /** @param {number} code @param {string} reason @param {boolean} willReconnect */
    #emitDisconnected(code, reason, willReconnect) {
      if (this.#lastStatus === 'disconnected') return;
      this.#lastStatus = 'disconnected';
      const never = !this.#wasConnected;
      this.#emit('disconnected', { code, reason, will_reconnect: willReconnect, never_connected: never });
    }

    // Connecting and disconnecting

    /** The URL of the current attempt. */
    get #url() {
      return this.#urls[this.#turn];
    }

    #open() {
      clearTimeout(this.#retryTimer);
      this.#retryTimer = undefined;
      const attempt = new Attempt();
      this.#attempt = attempt;
      const timeout = this.#settings.connect_timeout;
      this.#setTimer(attempt, timeout, () => {
        if (!attempt.socket) {
          this.#reportError('token_failed', `no token: the function did not return within ${timeout / 1000} s`);
        }
        this.#abort(attempt, 'no answer in time');
      });
      const token = this.#token;
      if (typeof token !== 'function') {
        this.#openSocket(attempt, token);
        return;
      }
      fetchToken(token).then(
        (newToken) => attempt === this.#attempt && this.#openSocket(attempt, newToken),
        (error) => {
          if (attempt !== this.#attempt) return;
          this.#reportError('token_failed', `no token: ${error?.message ?? error}`, { error });
          this.#onClosed(attempt, 1006, 'no token');
        },
      );
    }

    /** @param {Attempt} attempt @param {string | null} token */
    #openSocket(attempt, token) {
      this.#useToken(token);
      let socket;
      try {
        socket = attempt.socket = new (this.#settings.WebSocket ?? WebSocket)(this.#url);
      } catch (error) {
        this.#reportError('connection_failed', `cannot connect to ${this.#url}: ${error}`, { error });
        this.#onClosed(attempt, 1006, 'no connection');
        return;
      }
      const { open_timeout: timeout, connect_timeout: cap } = this.#settings;
      this.#setTimer(attempt, Math.min(cap, timeout * 2 ** Math.min(this.#failures, 30)), () => {
        if (attempt.state === 'connecting') this.#abort(attempt, 'no answer in time');
      });
      socket.onopen = () => {
        attempt.state = 'authenticating';
        attempt.authPosition = this.#userChannel.position;
        this.#send(attempt, this.#authMessage(token, attempt.authPosition));
      };
      socket.onmessage = (/** @type {{data: unknown}} */ frame) => this.#receive(attempt, frame.data);
      socket.onerror = () => {
        this.#reportError('connection_failed', `the connection to ${this.#url} failed`);
        if (attempt.state === 'connecting') this.#checkOrigin();
      };
      socket.onclose = (/** @type {CloseEvent} */ { code, reason }) => this.#onClosed(attempt, code, reason);
    }

    /** Drop the state of before `connect` if the token is another user's. @param {string | null} token */
    #useToken(token) {
      const subject = subjectOf(token);
      const earlier = this.#earlierSubscriptions;
      this.#earlierSubscriptions = null;
      if (earlier && subject !== this.#subject) {
        const later = [...this.#subscriptions].filter(([key]) => !earlier.has(key));
        this.#forgetUser();
        this.#subscriptions = new Map(later);
      }
      this.#subject = subject;
      this.#sentToken = token;
    }

    /**
     * Ask the server whether it allows the page's origin, because a browser hides from the page why a WebSocket failed.
     * It asks once per `connect`, and not if the server has accepted this page before.
     */
    async #checkOrigin() {
      if (typeof location === 'undefined' || typeof fetch !== 'function') return;
      if (this.#originChecked || this.#isBlocked) return;
      this.#originChecked = true;
      const { origin } = location;
      const url = this.#url;
      const query = new URL(url);
      query.protocol = query.protocol.replace(/^ws/, 'http');
      query.search = `?origin=${encodeURIComponent(origin)}`;
      let allowed;
      try {
        ({ allowed } = await (await fetch(query.href, { credentials: 'omit', cache: 'no-store' })).json());
      } catch {
        return; // the server is down, or it is not chatws
      }
      if (allowed !== false || !this.#active || !this.#urls.includes(url)) return;
      const advice = `add ${origin} to its setting allowed_origins`;
      this.#reportError('origin_not_allowed', `${query.host} rejects pages of ${origin}: ${advice}`, { origin });
    }

    /** @param {string | null} token @param {Position | null} position */
    #authMessage(token, position) {
      return {
        type: 'auth',
        ...(this.#userId === null ? {} : { user_id: this.#userId }),
        ...(token === null ? {} : { token }),
        ...lastEventId(position),
      };
    }

    /** Handle the end of a connection. @param {Attempt} attempt @param {number} code @param {string} reason */
    #onClosed(attempt, code, reason) {
      if (attempt !== this.#attempt) return;
      const duration = Date.now() - attempt.authenticatedAt;
      const wasStable = attempt.state === 'authenticated' && duration >= this.#settings.stable_after;
      this.#release(attempt);
      this.#turn = (this.#turn + 1) % this.#urls.length;
      if (code >= 4900 && code <= 4999) {
        this.#stop(code, reason);
        return;
      }
      this.#failures = wasStable ? 0 : this.#failures;
      this.#retryTimer = setTimeout(() => this.#open(), this.#backoff(code));
      this.#failures += 1;
      this.#emitDisconnected(code, reason, true);
    }

    /** Stop after a close code that forbids a reconnect. @param {number} code @param {string} reason */
    #stop(code, reason) {
      this.#active = false;
      if (code === TOO_MANY_CONNECTIONS) this.#tooManyAt = Date.now();
      else this.#setPageListeners(false);
      if (code === AUTH_FAILED && typeof this.#token === 'string') {
        const advice = 'it is invalid or has expired; pass connect() a function that fetches a new token';
        this.#reportError('token_failed', `the server rejected the token (${reason}): ${advice}`);
        if (this.#active) return; // the handler has called connect()
      }
      this.#emitDisconnected(code, reason, false);
      if (!this.#active) this.#emit('reconnect_failed', { code, reason });
    }

    /** Wait no longer for the page to become visible after 4909. */
    #stopWaiting() {
      if (this.#tooManyAt === null) return;
      this.#tooManyAt = null;
      clearTimeout(this.#retryTimer);
      this.#retryTimer = undefined;
      this.#setPageListeners(false);
    }

    /** After 4909, connect again if the page is visible, and the last attempt is old enough. */
    #retryTooMany() {
      clearTimeout(this.#retryTimer);
      const rest = Number(this.#tooManyAt) + TOO_MANY_PAUSE - Date.now();
      if (rest > 0) {
        this.#retryTimer = setTimeout(() => !isHidden() && this.#retryTooMany(), rest);
        return;
      }
      this.#tooManyAt = null;
      this.#active = true;
      this.#failures = 0;
      this.#open();
    }

    /**
     * Return the delay before the next attempt, in milliseconds. With full jitter, clients that were disconnected at
     * the same time do not reconnect at the same time.
     * @param {number} code
     */
    #backoff(code) {
      const { backoff_base: base, backoff_cap: cap, random } = this.#settings;
      if (OVERLOAD_CODES.includes(code)) return OVERLOAD_BACKOFF + random() * Math.max(0, cap - OVERLOAD_BACKOFF);
      return random() * Math.min(cap, base * 2 ** Math.min(this.#failures, 30));
    }

    /** End a dead connection without the closing handshake. @param {Attempt} attempt @param {string} reason */
    #abort(attempt, reason) {
      this.#onClosed(attempt, 1006, reason);
    }

    /** Replace a connection or an attempt by a new one at once. @param {Attempt} attempt @param {string} reason */
    #reopen(attempt, reason) {
      this.#release(attempt);
      this.#turn = (this.#turn + 1) % this.#urls.length;
      this.#emitDisconnected(1006, reason, true);
      if (this.#active && !this.#attempt) this.#open();
    }

    /** Detach from the connection and store the positions. @param {Attempt} attempt @param {number} [code] */
    #release(attempt, code = 4000) {
      this.#attempt = null;
      for (const timer of attempt.timers) clearTimeout(timer);
      attempt.timers.clear();
      for (const channel of this.#channels()) channel.suspend(attempt.position);
      const socket = attempt.socket;
      if (!socket) return;
      socket.onopen = socket.onmessage = socket.onerror = socket.onclose = null;
      if (socket.readyState < 2) socket.close(code);
    }

    *#channels() {
      yield this.#userChannel;
      yield* this.#subscriptions.values();
    }

    /** @param {Attempt} attempt @param {object} message */
    #send(attempt, message) {
      if (attempt.socket?.readyState !== 1) return false;
      attempt.socket.send(JSON.stringify(message));
      return true;
    }

    /**
     * Start a timer that ends with the connection.
     * @param {Attempt} attempt @param {number} delay @param {() => void} action
     */
    #setTimer(attempt, delay, action) {
      const timer = setTimeout(() => {
        attempt.timers.delete(timer);
        if (attempt === this.#attempt) action();
      }, delay);
      attempt.timers.add(timer);
      return timer;
    }

    /** @param {Attempt} attempt @param {ReturnType<typeof setTimeout>} timer */
    #clearTimer(attempt, timer) {
      clearTimeout(timer);
      attempt.timers.delete(timer);
    }

    // Keepalive

    /** Send the next ping after the interval, counted from now. @param {Attempt} attempt */
    #scheduleHeartbeat(attempt) {
      if (attempt.heartbeat !== undefined) this.#clearTimer(attempt, attempt.heartbeat);
      const delay = isHidden() ? this.#settings.hidden_heartbeat : this.#settings.heartbeat;
      const due = Date.now() + delay;
      attempt.heartbeat = this.#setTimer(attempt, delay, () => {
        attempt.heartbeat = undefined;
        if (Date.now() - due > FROZEN_AFTER) {
          this.#wake();
        } else {
          this.#ping(attempt, this.#settings.pong_timeout);
          this.#scheduleHeartbeat(attempt);
        }
      });
    }

    /** @param {Attempt} attempt @param {number} timeout */
    #ping(attempt, timeout) {
      if (this.#send(attempt, { type: 'ping', last_activity: this.#lastActivity })) attempt.pings += 1;
      const due = Date.now() + timeout;
      this.#cancelWatchdog(attempt);
      attempt.watchdog = this.#setTimer(attempt, timeout, () => {
        // In a tab that was frozen, the pong may be queued behind this timer: ping once more.
        if (Date.now() - due > FROZEN_AFTER && !attempt.missedPong) {
          attempt.missedPong = true;
          this.#ping(attempt, timeout);
        } else {
          this.#abort(attempt, 'no answer to a ping');
        }
      });
    }

    /** @param {Attempt} attempt */
    #cancelWatchdog(attempt) {
      if (attempt.watchdog === undefined) return;
      this.#clearTimer(attempt, attempt.watchdog);
      attempt.watchdog = undefined;
    }

    /** The page is visible or online again, or the user has returned to it. */
    #onWake = (/** @type {Event} */ event) => {
      if (event.type === 'visibilitychange' && isHidden()) return;
      // The browser loads the page, and has not returned to it.
      if (event.type === 'pageshow' && !(/** @type {PageTransitionEvent} */ (event).persisted)) return;
      if (this.#tooManyAt === null) this.#wake();
      else if (event.type !== 'online') this.#retryTooMany();
    };

    /** Connect at once, or check an existing connection. */
    #wake() {
      const attempt = this.#attempt;
      if (!attempt) {
        this.#open();
        return;
      }
      const isClosed = attempt.socket?.readyState >= 2;
      const isStale = attempt.state !== 'authenticated' && Date.now() - attempt.startedAt > STALE_ATTEMPT;
      if (isClosed || isStale) {
        this.#reopen(attempt, isClosed ? 'the connection is closed' : 'no answer before the page woke up');
      } else if (attempt.state === 'authenticated') {
        this.#ping(attempt, this.#settings.probe_timeout);
        this.#scheduleHeartbeat(attempt);
      }
    }

    /**
     * The browser puts the page aside, and may return to it. An open WebSocket would prevent that in most browsers, and
     * would be dead afterwards. `#onWake` connects again.
     */
    #onPageHide = () => {
      if (!this.#active) return;
      clearTimeout(this.#retryTimer);
      this.#retryTimer = undefined;
      if (this.#attempt) this.#release(this.#attempt, 1000);
    };

    /** The page's Content-Security-Policy has blocked a request, perhaps the WebSocket. */
    #onPolicyViolation = (/** @type {SecurityPolicyViolationEvent} */ event) => {
      if (event.disposition === 'report' || event.effectiveDirective !== 'connect-src' || this.#isBlocked) return;
      const source = sourceOf(this.#url);
      if (sourceOf(event.blockedURI) !== source) return;
      this.#isBlocked = true;
      const advice = `add ${source} to its directive connect-src`;
      const reason = `the page's Content-Security-Policy blocks the WebSocket: ${advice}`;
      this.#reportError('blocked_by_policy', reason, { source });
    };

    #onActivity = () => {
      this.#lastActivity = Date.now();
    };

    /** Add or remove the handlers of the page's events. @param {boolean} on */
    #setPageListeners(on) {
      if (typeof document === 'undefined') return;
      const change = on ? 'addEventListener' : 'removeEventListener';
      for (const name of ['online', 'pageshow']) window[change](name, this.#onWake);
      window[change]('pagehide', this.#onPageHide);
      document[change]('securitypolicyviolation', /** @type {EventListener} */ (this.#onPolicyViolation));
      for (const name of ['visibilitychange', 'resume']) document[change](name, this.#onWake);
      for (const name of ACTIVITY_EVENTS) document[change](name, this.#onActivity, { capture: true, passive: true });
    }

    // Messages of the server

    /** @param {Attempt} attempt @param {unknown} text */
    #receive(attempt, text) {
      if (attempt !== this.#attempt) return;
      this.#cancelWatchdog(attempt);
      attempt.missedPong = false;
      let message;
      try {
        message = JSON.parse(/** @type {string} */ (text));
      } catch (error) {
        this.#reportError('bad_frame', 'the server sent a frame that is not JSON', { error });
        return;
      }
      if (message?.type === 'pong') this.#onPong(attempt);
      else if (typeof message?.event === 'string') this.#onEvent(attempt, message.event, message.data, message.id);
    }

    /** @param {Attempt} attempt @param {string} event @param {any} data @param {unknown} id */
    #onEvent(attempt, event, data, id) {
      switch (event) {
        case 'authenticated':
          this.#onAuthenticated(attempt, data ?? {});
          break;
        case 'subscribed':
          this.#onSubscribed(attempt, data ?? {});
          break;
        case 'unsubscribed':
          this.#onUnsubscribed(attempt, String(data?.conversation_id));
          this.#emit(event, data);
          break;
        case 'error':
          if (data?.request?.type === 'subscribe') {
            const { code, request } = data;
            if (code === 'forbidden' && this.#needsFreshToken(request.conversation_id)) {
              this.#subscribeWithFreshToken(attempt, data);
              break;
            }
            this.#onSubscribeError(attempt, code, request.conversation_id);
          }
          this.#emit(event, data);
          break;
        default:
          this.#deliver(attempt, event, data, id);
      }
    }

    /** @param {Attempt} attempt @param {any} data */
    #onAuthenticated(attempt, data) {
      if (attempt.state === 'authenticated') {
        this.#emit('authenticated', data); // the response to a renewed token
        return;
      }
      for (const timer of attempt.timers) clearTimeout(timer);
      attempt.timers.clear();
      attempt.state = 'authenticated';
      attempt.connectionId = data.connection_id ?? null;
      attempt.authenticatedAt = Date.now();
      this.#originChecked = true;
      this.#wasConnected = true;
      this.#scheduleHeartbeat(attempt);
      this.#checkIdentity(data);
      if (attempt !== this.#attempt) return; // a handler has disconnected
      const notify = this.#startChannel(attempt, this.#userChannel, attempt.authPosition, data);
      this.#sendSubscribes(attempt);
      this.#lastStatus = 'connected';
      this.#emit('authenticated', data);
      if (attempt === this.#attempt) this.#emit('connected', data);
      notify();
    }

    /** Compare the user in `authenticated` with the previous one. @param {any} data */
    #checkIdentity({ user_id, contact_id }) {
      const isContact = contact_id !== undefined;
      const identity = isContact ? `contact:${contact_id}` : `agent:${user_id}`;
      const hasChanged = this.#identity !== '' && this.#identity !== identity;
      if (hasChanged) this.#forgetUser();
      this.#identity = identity;
      if (!hasChanged) return;
      this.#emit('identity_changed', isContact ? { contact_id } : { user_id });
    }

    /** Drop the subscriptions and positions of a user. */
    #forgetUser() {
      this.#identity = '';
      this.#subscriptions.clear();
      this.#freshTokens.clear();
      this.#userChannel = new Channel(null);
      this.#delivered = new DeliveredIds();
    }

    /** @param {Attempt} attempt @param {any} data */
    #onSubscribed(attempt, data) {
      const pending = takePendingSubscribe(attempt, String(data.conversation_id));
      const notify = pending ? this.#startChannel(attempt, pending.channel, pending.from, data) : () => {};
      this.#freshTokens.delete(String(data.conversation_id));
      this.#emit('subscribed', data);
      notify();
    }

    /** @param {Attempt} attempt @param {string} key */
    #onUnsubscribed(attempt, key) {
      const pending = pendingSubscribesOf(attempt, key);
      const ownRequest = pending.indexOf(null);
      if (ownRequest >= 0) pending.splice(0, ownRequest + 1);
      else this.#subscriptions.delete(key); // a backend has ended the subscription
      const { replays } = attempt;
      const index = replays.findIndex(({ channel }) => channel !== this.#userChannel && String(channel.id) === key);
      if (index < 0) return;
      // The server has aborted this replay. With other replays the number of remaining events is unknown: see #onPong.
      replays.splice(index, 1);
      if (!replays.length) this.#finishReplays(attempt, true);
    }

    /** @param {Attempt} attempt @param {string} code @param {unknown} conversationId may be missing */
    #onSubscribeError(attempt, code, conversationId) {
      const pendingKeys = [...attempt.pendingSubscribes.keys()].filter((key) =>
        pendingSubscribesOf(attempt, key).some(Boolean),
      );
      const isTemporary = code === 'unavailable';
      // Without an id the error may concern any of them. If it is temporary, all of them may be sent again.
      const keys = conversationId !== undefined ? [String(conversationId)] : pendingKeys;
      if (!isTemporary && keys.length > 1) return;
      for (const key of keys) {
        const channel = takePendingSubscribe(attempt, key)?.channel;
        if (!channel || this.#subscriptions.get(key) !== channel) continue;
        if (!isTemporary) {
          this.#subscriptions.delete(key);
          continue;
        }
        this.#setTimer(attempt, RESUBSCRIBE_DELAY * (1 + this.#settings.random()), () => {
          channel.isRequested = false;
          this.#sendSubscribes(attempt);
        });
      }
    }

    /**
     * Return whether a conversation may be newer than the token: the token lists conversations and not this one. The
     * client asks once for each conversation.
     * @param {unknown} id
     */
    #needsFreshToken(id) {
      const key = String(id);
      if (typeof this.#token !== 'function' || !isId(id) || !this.#subscriptions.has(key)) return false;
      if (this.#freshTokens.has(key) || this.#freshTokens.size >= MAX_FRESH_TOKENS) return false;
      const { conversations } = claimsOf(this.#sentToken) ?? {};
      return Array.isArray(conversations) && !conversations.map(String).includes(key);
    }

    /**
     * Fetch a token, and repeat a subscribe that was forbidden. Without a token the page gets the error.
     * @param {Attempt} attempt @param {ErrorData} error
     */
    async #subscribeWithFreshToken(attempt, error) {
      const key = String(error.request?.conversation_id);
      const channel = takePendingSubscribe(attempt, key)?.channel;
      if (!channel || this.#subscriptions.get(key) !== channel) return; // the page has unsubscribed
      this.#freshTokens.add(key);
      this.#renewal ??= this.renew().finally(() => (this.#renewal = null));
      const isSent = await this.#renewal;
      // The next connection subscribes with its own token.
      if (attempt !== this.#attempt || this.#subscriptions.get(key) !== channel) return;
      if (isSent) {
        channel.isRequested = false;
        this.#sendSubscribes(attempt);
      } else {
        this.#subscriptions.delete(key);
        this.#emit('error', error);
      }
    }

    /**
     * Send all subscriptions that this connection has not sent. The server queues those above its rate limit.
     * @param {Attempt} attempt
     */
    #sendSubscribes(attempt) {
      if (attempt.state !== 'authenticated') return;
      for (const [key, channel] of this.#subscriptions) {
        if (channel.isRequested) continue;
        const { id, position } = channel;
        if (!this.#send(attempt, { type: 'subscribe', conversation_id: id, ...lastEventId(position) })) return;
        channel.isRequested = true;
        pendingSubscribesOf(attempt, key).push({ channel, from: position });
      }
    }

    // Recovery

    /** @param {Channel} channel */
    #isSubscribed(channel) {
      return channel === this.#userChannel || this.#subscriptions.get(String(channel.id)) === channel;
    }

    /**
     * Handle the server's response to `auth` or `subscribe`: the end of the history, and the replay to expect.
     *
     * @param {Attempt} attempt @param {Channel} channel
     * @param {Position | null} from the `last_event_id` of the request
     * @param {any} data
     * @returns {() => void} emits `recovered` or `resync`, to be called after the response was emitted
     */
    #startChannel(attempt, channel, from, data) {
      const historyEnd = parsePosition(data.last_event_id);
      if (historyEnd && attempt.position && historyEnd.epoch !== attempt.position.epoch) {
        attempt.position = null; // the history was reset
      }
      if (from && data.recovered === true) {
        const count = Number.isInteger(data.replayed) ? data.replayed : null;
        if (count !== 0) {
          this.#startReplay(attempt, { channel, historyEnd, count });
          return () => {};
        }
        this.#markComplete(attempt, channel, historyEnd ?? from);
        return () => this.#emit('recovered', { ...channel.subject(), count: 0 });
      }
      // A history that ends before `from` has lost events, and their ids will be assigned again. In a history that ends
      // later, old events were only removed: events after its end came from a node that is ahead of this one, and
      // this node will send them too.
      if (from && historyEnd && later(from, historyEnd) === from) this.#delivered.forgetAfter(historyEnd);
      this.#markComplete(attempt, channel, historyEnd);
      const isLost = from !== null && this.#isSubscribed(channel);
      return () => isLost && this.#emit('resync', channel.subject());
    }

    /**
     * Mark a channel as complete up to `historyEnd`, without a replay.
     * @param {Attempt} attempt @param {Channel} channel @param {Position | null} historyEnd
     */
    #markComplete(attempt, channel, historyEnd) {
      channel.position = historyEnd;
      channel.isLive = !attempt.position || later(attempt.position, historyEnd) === historyEnd;
      channel.liveAfterPong = channel.isLive ? null : attempt.pings;
    }

    /** @param {Attempt} attempt @param {Replay} replay */
    #startReplay(attempt, replay) {
      attempt.replays.push(replay);
      attempt.progressAt = Date.now();
      if (replay.count !== null && replay.historyEnd) {
        attempt.remaining += replay.count;
      } else {
        // Another server, which does not announce the number: the replay is complete when a ping is answered.
        attempt.remaining = Infinity;
        this.#ping(attempt, this.#settings.pong_timeout);
      }
    }

    /** @param {Attempt} attempt @param {boolean} isComplete */
    #finishReplays(attempt, isComplete) {
      const { received } = attempt;
      const replays = attempt.replays.filter(({ channel }) => this.#isSubscribed(channel));
      attempt.replays = [];
      attempt.remaining = attempt.received = 0;
      for (const { channel, historyEnd } of replays) {
        channel.position = historyEnd ?? channel.position;
        channel.liveAfterPong = attempt.pings;
      }
      for (const { channel, count } of replays) {
        if (isComplete) this.#emit('recovered', { ...channel.subject(), count: count ?? received });
        else this.#emit('resync', channel.subject());
      }
    }

    /** @param {Attempt} attempt */
    #onPong(attempt) {
      attempt.pongs += 1;
      for (const channel of this.#channels()) {
        if (channel.liveAfterPong === null || attempt.pongs <= channel.liveAfterPong) continue;
        channel.isLive = true;
        channel.liveAfterPong = null;
      }
      if (!attempt.replays.length) return;
      const isStalled = Date.now() - attempt.progressAt >= this.#settings.replay_timeout;
      if (attempt.remaining === Infinity) this.#finishReplays(attempt, true);
      else if (isStalled) this.#finishReplays(attempt, false);
    }

    /** @param {Attempt} attempt @param {string} event @param {any} data @param {unknown} id */
    #deliver(attempt, event, data, id) {
      const position = parsePosition(id);
      if (!position) {
        this.#emit(event, data);
        return;
      }
      const isReplayed = attempt.replays.some(
        ({ historyEnd: end }) => end && position.epoch === end.epoch && position.offset <= end.offset,
      );
      if (isReplayed) {
        attempt.remaining -= 1;
        attempt.received += 1;
        attempt.progressAt = Date.now();
      } else {
        attempt.position = later(attempt.position, position);
      }
      if (!this.#delivered.has(position)) {
        this.#delivered.add(position);
        if (this.#delivered.isFull) {
          this.#delivered.prune([...this.#channels()].map((channel) => channel.deliveredUpTo(attempt.position)));
        }
        this.#emit(event, data, /** @type {string} */ (id));
      }
      if (isReplayed && attempt.remaining <= 0 && attempt === this.#attempt) this.#finishReplays(attempt, true);
    }
  }

  // Helpers

  /** @param {Attempt} attempt @param {string} key @returns {(PendingSubscribe | null)[]} */
  function pendingSubscribesOf(attempt, key) {
    const pending = attempt.pendingSubscribes.get(key) ?? [];
    attempt.pendingSubscribes.set(key, pending);
    return pending;
  }

  /** Remove and return the `subscribe` that a response belongs to. @param {Attempt} attempt @param {string} key */
  function takePendingSubscribe(attempt, key) {
    const pending = pendingSubscribesOf(attempt, key);
    const index = pending.findIndex(Boolean);
    return index < 0 ? null : pending.splice(index, 1)[0];
  }

  /** @param {unknown} token @returns {token is string} */
  function isToken(token) {
    return typeof token === 'string' && token !== '';
  }

  /**
   * Return the claims of a JWT, unverified, or null if it is no JWT.
   * @param {string | null} token @returns {any}
   */
  function claimsOf(token) {
    try {
      const payload = String(token).split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
      return Object(JSON.parse(atob(payload)));
    } catch {
      return null;
    }
  }

  /**
   * Return whose token it is, to compare: the id and the role in a JWT. Empty if it is no JWT.
   * @param {string | null} token
   */
  function subjectOf(token) {
    const claims = claimsOf(token);
    return claims ? JSON.stringify([claims.sub, claims.role ?? null]) : '';
  }

  function isHidden() {
    return typeof document !== 'undefined' && document.visibilityState === 'hidden';
  }

  /** Return the scheme, host and port of a URL, as a Content-Security-Policy names a source. @param {string} url */
  function sourceOf(url) {
    try {
      const { protocol, host } = new URL(url);
      return `${protocol}//${host}`;
    } catch {
      return ''; // `inline` and other words in place of a URL
    }
  }

  /** Describe an invalid token. @param {unknown} value */
  function describeValue(value) {
    if (value === '') return 'an empty text';
    return value == null || typeof value === 'boolean' ? String(value) : `a value of the type ${typeof value}`;
  }

  /**
   * Return the token to send, or null to send none.
   * @param {TokenSource | null} source @returns {Promise<string | null>}
   */
  async function fetchToken(source) {
    if (typeof source !== 'function') return source;
    const token = await source();
    if (!isToken(token)) throw new TypeError(`the token function returned ${describeValue(token)}, not a text`);
    return token;
  }

  /**
   * Return the WebSocket's URL. The parameter `client` tells the server that this library, which reconnects after every
   * close, has opened the connection.
   * @param {string} [url]
   */
  function resolveUrl(url) {
    const page = typeof location === 'undefined' ? null : location;
    const resolved = url ? new URL(url, page?.href) : defaultUrl(page);
    resolved.protocol = resolved.protocol.replace(/^http/, 'ws');
    if (!resolved.searchParams.has('client')) resolved.search += `${resolved.search ? '&' : '?'}client=js`;
    return resolved.href;
  }

  /** @param {Location | null} page @returns {URL} with `http` in place of `ws` */
  function defaultUrl(page) {
    if (/^https?:/.test(SCRIPT_URL)) {
      const { origin, pathname } = new URL(SCRIPT_URL);
      if (LIBRARY_PATH.test(pathname)) return new URL(origin + pathname.replace(LIBRARY_PATH, '/ws'));
    }
    const host = page?.hostname || 'localhost';
    const isLocal = ['localhost', '127.0.0.1', '[::1]'].includes(host);
    if (page?.protocol === 'https:') return new URL(`https://${page.host}/ws`);
    return new URL(isLocal ? `http://${host}:8080/` : `http://${page?.host}/ws`);
  }

  const globals = /** @type {any} */ (globalThis);
  if (!globals.ChatwsClient) {
    globals.ChatwsClient = ChatwsClient;
    globals.wsClient = new ChatwsClient();
  }
  return {
    ChatwsClient: /** @type {typeof ChatwsClient} */ (globals.ChatwsClient),
    wsClient: /** @type {ChatwsClient} */ (globals.wsClient),
  };
})();

// For `require`, and for `import { wsClient } from …` in bundlers and Node, which detect the names here.
// @ts-ignore: TS2580, only these define `module`
if (typeof module === 'object' && module.exports) module.exports = { ChatwsClient, wsClient };
