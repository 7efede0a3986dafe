// What the inbox knows, without a page: what came by the API and by events, put together.
// Everything may come twice, late, or by both ways; the result is the same.

/** Ids are numbers or strings, and "5" is 5 (docs/protocol.md): one form of each for comparing. */
export const idKey = (id) => String(id);
const same = (one, other) => one != null && other != null && idKey(one) === idKey(other);
export { same as sameId };

const TYPING_MS = 6000;

export class State {
  constructor(now = () => Date.now()) {
    this.now = now;
    this.me = null;
    this.agents = [];
    this.instance = null;
    this.presence = new Map(); // agent → "online", "away" …
    this.conversations = new Map();
    this.threads = new Map(); // conversation → {messages: Map by id, reads}
    this.outbox = new Map(); // client id → a message on its way
    this.typing = new Map(); // conversation → Map of user → until when
    this.open = null;
    this.visible = true; // whether somebody can see the page
    this.filter = "open";
    this.search = "";
  }

  agent(id) {
    return this.agents.find((one) => same(one.id, id)) || null;
  }

  conversation(id) {
    return this.conversations.get(idKey(id)) || null;
  }

  // --- conversations

  /** The whole list, as the API gives it. */
  resetConversations(list) {
    const pushed = [...this.conversations.values()].filter((one) => one.version === undefined);
    this.conversations.clear();
    for (const one of [...pushed, ...list]) this.conversations.set(idKey(one.id), one);
  }

  /** A state of a conversation, from anywhere. An older one than we know changes nothing. Returns what it was before
   *  (null: it was unknown), or undefined when it was old. */
  mergeConversation(id, fields) {
    const key = idKey(id);
    const before = this.conversations.get(key) || null;
    if (before && fields.version !== undefined && before.version > fields.version) return undefined;
    const blank = { status: "open", assigned_to: null, last_message: null, updated_at: new Date(this.now()).toISOString() };
    this.conversations.set(key, { ...(before || blank), ...fields, id: before ? before.id : id });
    return before;
  }

  unread(conversation) {
    return (conversation.unread_counts && conversation.unread_counts[idKey(this.me)]) || 0;
  }

  /** What the list shows: nothing is unread in the conversation that one is looking at. */
  shownUnread(conversation) {
    return this.visible && same(conversation.id, this.open) ? 0 : this.unread(conversation);
  }

  unreadTotal() {
    let sum = 0;
    for (const one of this.conversations.values()) if (one.status === "open") sum += this.shownUnread(one);
    return sum;
  }

  /** What the list shows now, the latest on top. */
  listed() {
    const words = this.search.trim().toLowerCase();
    const found = [...this.conversations.values()].filter((one) => {
      if (words) return `${one.contact_name || ""} ${(one.last_message || {}).content || ""}`.toLowerCase().includes(words);
      return this.inFilter(one, this.filter);
    });
    return found.sort((a, b) => order(b.updated_at, a.updated_at) || Number(b.id) - Number(a.id));
  }

  inFilter(one, filter) {
    if (filter === "closed") return one.status === "closed";
    return one.status !== "closed" && (filter === "open" || same(one.assigned_to, this.me));
  }

  count(filter) {
    let sum = 0;
    for (const one of this.conversations.values()) if (this.inFilter(one, filter)) sum += 1;
    return sum;
  }

  // --- messages

  thread(id) {
    const key = idKey(id);
    if (!this.threads.has(key)) this.threads.set(key, { messages: new Map(), reads: {}, loaded: false });
    return this.threads.get(key);
  }

  /** A conversation's messages as the API gives them. What was pushed meanwhile stays. */
  resetThread(id, messages, reads) {
    const thread = this.thread(id);
    for (const one of messages) this.addMessage(id, one);
    for (const [agent, message] of Object.entries(reads)) this.addRead(id, agent, message);
    thread.loaded = true;
  }

  /** A message, from anywhere. True when it is new here. */
  addMessage(id, message) {
    if (message === null || typeof message !== "object" || message.id === undefined) return false;
    const { messages } = this.thread(id);
    const key = idKey(message.id);
    if (message.client_id && same(message.sender_id, this.me)) this.outbox.delete(message.client_id);
    if (messages.has(key)) return false;
    const whole = { sender_type: "customer", sender_id: null, ...message };
    whole.content = String(message.content ?? "");
    // one that says nothing of its time came just now
    whole.created_at = Number.isNaN(Date.parse(message.created_at)) ? new Date(this.now()).toISOString() : message.created_at;
    messages.set(key, whole);
    this.stopTyping(id, whole.sender_type === "customer" ? `customer-${id}` : whole.sender_id);
    const conversation = this.conversation(id);
    if (conversation && whole.sender_type !== "note" && order(conversation.updated_at, whole.created_at) < 0) {
      conversation.last_message = whole;
      conversation.updated_at = whole.created_at;
    }
    return true;
  }

  /** The messages in order, and behind them what is on its way. */
  messages(id) {
    const stored = [...this.thread(id).messages.values()].sort(
      (a, b) => order(a.created_at, b.created_at) || (Number(a.id) - Number(b.id) || 0),
    );
    return [...stored, ...[...this.outbox.values()].filter((one) => same(one.conversation_id, id))];
  }

  /** Whether the conversation's last message is one that its thread does not have. */
  isBehind(id) {
    const conversation = this.conversation(id);
    if (!conversation || conversation.version === undefined || !conversation.last_message) return false;
    return !this.thread(id).messages.has(idKey(conversation.last_message.id));
  }

  addRead(id, agent, message) {
    const { reads } = this.thread(id);
    const key = idKey(agent);
    if (!(Number(reads[key]) >= Number(message))) reads[key] = message;
  }

  /** The other agents that have seen the last message. */
  seenBy(id) {
    const { messages, reads } = this.thread(id);
    const real = [...messages.values()].filter((one) => one.sender_type !== "note").sort((a, b) => Number(a.id) - Number(b.id));
    const last = real[real.length - 1];
    if (!last) return [];
    return this.agents.filter(
      (one) => !same(one.id, this.me) && !same(one.id, last.sender_id) && Number(reads[idKey(one.id)]) >= Number(last.id),
    );
  }

  // --- who is typing

  setTyping(id, user, isTyping) {
    if (same(user, this.me)) return;
    if (!isTyping) return void this.stopTyping(id, user);
    const key = idKey(id);
    if (!this.typing.has(key)) this.typing.set(key, new Map());
    this.typing.get(key).set(idKey(user), this.now() + TYPING_MS);
  }

  stopTyping(id, user) {
    const users = this.typing.get(idKey(id));
    if (users) users.delete(idKey(user));
  }

  /** The users that are typing in the conversation now. Somebody whose page fell silent is no more. */
  typingIn(id) {
    const users = this.typing.get(idKey(id));
    if (!users) return [];
    for (const [user, until] of users) if (until <= this.now()) users.delete(user);
    return [...users.keys()];
  }
}

function order(one, other) {
  const left = Date.parse(one) || 0;
  const right = Date.parse(other) || 0;
  return left - right;
}
