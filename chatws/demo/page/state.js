// The data of the inbox, merged from the API and from events, without a document.
// Both may deliver the same data twice, late, or in any order. The result is the same.

/** Ids are numbers or strings, and "5" equals 5 (docs/protocol.md). Return the form that is compared. */
export const idKey = (id) => String(id);
export const sameId = (a, b) => a != null && b != null && idKey(a) === idKey(b);

/** Milliseconds after which a typing indicator without a new event ends. */
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
    this.outbox = new Map(); // client id → a message that is being sent
    this.typing = new Map(); // conversation → Map of user → end time
    this.open = null;
    this.visible = true; // whether the page is visible
    this.filter = "open";
    this.search = "";
  }

  agent(id) {
    return this.agents.find((agent) => sameId(agent.id, id)) || null;
  }

  conversation(id) {
    return this.conversations.get(idKey(id)) || null;
  }

  // Conversations

  /** Replace the list by that of the API. Pushed conversations that the API does not contain stay. */
  resetConversations(list) {
    const pushed = [...this.conversations.values()].filter(({ version }) => version === undefined);
    this.conversations.clear();
    for (const conversation of [...pushed, ...list]) this.conversations.set(idKey(conversation.id), conversation);
  }

  /** Merge fields of a conversation from the API or an event. An older version changes nothing. Returns the previous
   *  conversation (null if it was unknown), or undefined for an older version. */
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

  /** Return the unread count for the list: 0 for the open conversation while the page is visible. */
  shownUnread(conversation) {
    return this.visible && sameId(conversation.id, this.open) ? 0 : this.unread(conversation);
  }

  unreadTotal() {
    let sum = 0;
    for (const conversation of this.conversations.values()) {
      if (conversation.status === "open") sum += this.shownUnread(conversation);
    }
    return sum;
  }

  /** Return the conversations of the list, the latest first. */
  listed() {
    const words = this.search.trim().toLowerCase();
    const matches = [...this.conversations.values()].filter((conversation) => {
      if (!words) return this.inFilter(conversation, this.filter);
      const { contact_name: name, last_message: last } = conversation;
      return `${name || ""} ${(last || {}).content || ""}`.toLowerCase().includes(words);
    });
    return matches.sort((a, b) => order(b.updated_at, a.updated_at) || Number(b.id) - Number(a.id));
  }

  inFilter({ status, assigned_to: assignee }, filter) {
    if (filter === "closed") return status === "closed";
    return status !== "closed" && (filter === "open" || sameId(assignee, this.me));
  }

  count(filter) {
    return [...this.conversations.values()].filter((conversation) => this.inFilter(conversation, filter)).length;
  }

  // Messages

  thread(id) {
    const key = idKey(id);
    if (!this.threads.has(key)) this.threads.set(key, { messages: new Map(), reads: {}, loaded: false });
    return this.threads.get(key);
  }

  /** Add the messages of a conversation from the API. Pushed messages stay. */
  resetThread(id, messages, reads) {
    const thread = this.thread(id);
    for (const message of messages) this.addMessage(id, message);
    for (const [agent, message] of Object.entries(reads)) this.addRead(id, agent, message);
    thread.loaded = true;
  }

  /** Add a message from the API or an event. Returns true if it is new. */
  addMessage(id, message) {
    if (message === null || typeof message !== "object" || message.id === undefined) return false;
    const { messages } = this.thread(id);
    const key = idKey(message.id);
    if (message.client_id && sameId(message.sender_id, this.me)) this.outbox.delete(message.client_id);
    if (messages.has(key)) return false;
    const complete = { sender_type: "customer", sender_id: null, ...message };
    complete.content = String(message.content ?? "");
    // A message without a time is as new as its event.
    complete.created_at = Number.isNaN(Date.parse(message.created_at)) ? new Date(this.now()).toISOString() : message.created_at;
    messages.set(key, complete);
    this.stopTyping(id, complete.sender_type === "customer" ? `customer-${id}` : complete.sender_id);
    const conversation = this.conversation(id);
    if (conversation && complete.sender_type !== "note" && order(conversation.updated_at, complete.created_at) < 0) {
      conversation.last_message = complete;
      conversation.updated_at = complete.created_at;
    }
    return true;
  }

  /** Return the messages in order, followed by those that are being sent. */
  messages(id) {
    const stored = [...this.thread(id).messages.values()].sort(
      (a, b) => order(a.created_at, b.created_at) || (Number(a.id) - Number(b.id) || 0),
    );
    return [...stored, ...[...this.outbox.values()].filter((message) => sameId(message.conversation_id, id))];
  }

  /** Whether the thread lacks the conversation's last message. */
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

  /** Return the other agents that have seen the last message. */
  seenBy(id) {
    const { messages, reads } = this.thread(id);
    const written = [...messages.values()].filter((message) => message.sender_type !== "note");
    const last = written.sort((a, b) => Number(a.id) - Number(b.id)).at(-1);
    if (!last) return [];
    const hasRead = ({ id: agentId }) => Number(reads[idKey(agentId)]) >= Number(last.id);
    const isOther = ({ id: agentId }) => !sameId(agentId, this.me) && !sameId(agentId, last.sender_id);
    return this.agents.filter((agent) => isOther(agent) && hasRead(agent));
  }

  // Typing

  setTyping(id, user, isTyping) {
    if (sameId(user, this.me)) return;
    if (!isTyping) return void this.stopTyping(id, user);
    const key = idKey(id);
    if (!this.typing.has(key)) this.typing.set(key, new Map());
    this.typing.get(key).set(idKey(user), this.now() + TYPING_MS);
  }

  stopTyping(id, user) {
    const users = this.typing.get(idKey(id));
    if (users) users.delete(idKey(user));
  }

  /** Return the users that are typing in the conversation, without those whose last event is too old. */
  typingIn(id) {
    const users = this.typing.get(idKey(id));
    if (!users) return [];
    for (const [user, until] of users) if (until <= this.now()) users.delete(user);
    return [...users.keys()];
  }
}

/** Compare two times; an invalid one comes first. */
function order(a, b) {
  return (Date.parse(a) || 0) - (Date.parse(b) || 0);
}
