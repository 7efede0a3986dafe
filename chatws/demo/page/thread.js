// The open conversation: header, messages, typing indicator.

import { $, avatar, h, reconcile } from "./dom.js";
import { contactName, contactTone, firstName } from "./list.js";
import { idKey, sameId } from "./state.js";
import { clockTime, dayName, t } from "./strings.js";

/** Milliseconds between two messages of one sender that are shown as a group. */
const GROUP_MS = 5 * 60 * 1000;

export function drawHead(state) {
  const conversation = state.open === null ? null : state.conversation(state.open);
  $("thread-none").hidden = Boolean(conversation);
  $("thread-some").hidden = !conversation;
  if (!conversation) return;
  const name = contactName(conversation);
  const closed = conversation.status === "closed";
  $("thread-name").textContent = name;
  $("thread-avatar").replaceChildren(avatar(name, contactTone(conversation.id)));
  $("thread-about").replaceChildren(
    `${t(`channel_${conversation.channel || "web"}`)} · #${conversation.id}`,
    closed ? h("span", { class: "chip closed" }, t("closed")) : "",
  );
  $("close").hidden = closed;
  $("composer").hidden = closed;
  $("closed-bar").hidden = !closed;
  $("draft").placeholder = t("draft_placeholder", { name: firstName(name) });
  $("customer-here-text").textContent = t("customer_here", { name: firstName(name) });

  const select = $("assign");
  const choice = (value, text) => h("option", { value }, text);
  select.replaceChildren(
    choice("", t("nobody")),
    ...state.agents.map(({ id, name }) =>
      choice(id, sameId(id, state.me) ? t("assign_to_me", { name: firstName(name) }) : firstName(name)),
    ),
  );
  select.value = conversation.assigned_to === null ? "" : String(conversation.assigned_to);
}

/** Return the name of a message's sender. */
export function senderName(state, message) {
  if (message.sender_type === "agent") {
    const agent = state.agent(message.sender_id);
    return agent ? agent.name : t("unknown_sender");
  }
  const conversation = state.conversation(message.conversation_id ?? state.open);
  return conversation ? contactName(conversation) : t("unknown_sender");
}

export function noteText(state, note) {
  const by = state.agent(note.sender_id);
  const about = state.agent(note.about_id);
  const values = { by: by ? firstName(by.name) : "", name: about ? about.name : t("unknown_sender") };
  if (note.content === "assigned" && by && sameId(note.sender_id, note.about_id)) return t("note_assigned_self", values);
  return t(`note_${note.content}${by ? "" : "_plain"}`, values);
}

function buildMessage(message) {
  if (message.sender_type === "note") {
    const text = h("span");
    const item = h("div", { class: "note", "data-testid": "note", "data-message": message.id }, text);
    item.parts = { text };
    return item;
  }
  const who = h("span", { class: "who" });
  const text = h("p", { class: "text", "data-testid": "text" });
  const time = h("span", { class: "time" });
  const face = h("span", { class: "face" });
  const actions = h("span", { class: "actions", hidden: true });
  const item = h("div", { class: "message", "data-testid": "message" }, face, h("div", { class: "bubble" }, who, text, time), actions);
  item.parts = { who, text, time, face, actions };
  return item;
}

function updateMessage(state, item, message, first, last, outbox) {
  if (message.sender_type === "note") {
    item.parts.text.textContent = `${noteText(state, message)} · ${clockTime(new Date(message.created_at))}`;
    return;
  }
  const own = message.sender_type === "agent" && sameId(message.sender_id, state.me);
  const { who, text, time, face, actions } = item.parts;
  const sender = senderName(state, message);
  item.className = `message ${own ? "own" : message.sender_type === "agent" ? "colleague" : "customer"}${first ? " first" : ""}${last ? " last" : ""}`;
  item.dataset.state = message.state || "stored";
  if (message.id !== undefined) item.dataset.message = message.id;
  who.textContent = own ? t("you") : sender;
  who.className = first && message.sender_type === "agent" && !own ? "who" : "sr";
  if (text.textContent !== message.content) text.textContent = message.content;
  if (face.dataset.name !== sender) {
    face.dataset.name = sender;
    face.replaceChildren(avatar(sender, message.sender_type === "agent" ? message.sender_id : contactTone(state.open), "small"));
  }
  const states = { sending: "sending", waiting: "waiting", failed: "failed" };
  time.textContent = message.state ? t(states[message.state]) : clockTime(new Date(message.created_at));
  const failed = message.state === "failed";
  actions.hidden = !failed;
  if (failed && !actions.children.length) {
    actions.append(
      h("button", { type: "button", onclick: () => outbox.retry(message.client_id) }, t("retry")),
      h("button", { type: "button", onclick: () => outbox.discard(message.client_id) }, t("discard")),
    );
  }
}

/** Draw the messages. The view stays at the end if it was there, otherwise at its position. */
export function drawMessages(state, outbox, toEnd) {
  const list = $("messages");
  if (state.open === null) return;
  const atEnd = toEnd || list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  const messages = state.messages(state.open);
  const entries = [];
  const seen = state.seenBy(state.open).map((agent) => firstName(agent.name));
  const lastStored = messages.findLast((message) => message.sender_type !== "note" && !message.state);
  let before = null;
  messages.forEach((message, index) => {
    const when = new Date(message.created_at);
    const day = when.toDateString();
    if (!before || new Date(before.created_at).toDateString() !== day) {
      entries.push([`day ${day}`, () => h("div", { class: "day" }, h("span")), (item) => (item.firstChild.textContent = dayName(when))]);
      before = null;
    }
    const first = !together(before, message);
    const last = !together(message, messages[index + 1]);
    const key = message.client_id ? `client ${message.client_id}` : `id ${message.id}`;
    entries.push([key, () => buildMessage(message), (item) => updateMessage(state, item, message, first, last, outbox)]);
    if (message === lastStored && seen.length) {
      entries.push([
        "seen",
        () => h("div", { class: "seen", "data-testid": "seen" }),
        (item) => (item.textContent = t("seen_by", { names: seen.join(", ") })),
      ]);
    }
    before = message;
  });
  if (state.thread(state.open).missing) {
    entries.push(["missing", () => h("div", { class: "note" }, h("span")), (item) => (item.firstChild.textContent = t("not_stored"))]);
  }
  reconcile(list, entries);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** Whether two messages are shown as a group. */
function together(first, second) {
  return Boolean(
    first && second && first.sender_type !== "note" && first.sender_type === second.sender_type &&
    (first.sender_id === second.sender_id || sameId(first.sender_id, second.sender_id)) &&
    Math.abs(Date.parse(second.created_at) - Date.parse(first.created_at)) < GROUP_MS,
  );
}

export function drawTyping(state) {
  const line = $("typing");
  const users = state.open === null ? [] : state.typingIn(state.open);
  line.hidden = users.length === 0;
  if (!users.length) {
    $("typing-text").textContent = "";
    return;
  }
  const names = users.map((user) => {
    const agent = state.agent(user);
    if (agent) return firstName(agent.name);
    const isCustomer = user === `customer-${idKey(state.open)}`;
    return isCustomer ? firstName(contactName(state.conversation(state.open))) : t("unknown_sender");
  });
  const key = names.length === 1 ? "typing_one" : names.length === 2 ? "typing_two" : "typing_many";
  const text = t(key, { name: names[0], other: names[1] });
  if ($("typing-text").textContent !== text) $("typing-text").textContent = text;
}
