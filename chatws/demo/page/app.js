// The inbox: login, incoming data, the agent's actions, and the connections between the parts.

import { api } from "./api.js";
import { Connection } from "./connection.js";
import { $, avatar, h, toast, translatePage } from "./dom.js";
import { contactName, drawContact, drawList, drawMe, drawTeam, listKeys } from "./list.js";
import { Outbox } from "./outbox.js";
import { State, sameId } from "./state.js";
import { language, preferredLanguage, t } from "./strings.js";
import { drawHead, drawMessages, drawTyping, senderName } from "./thread.js";

/** Milliseconds between two `typing` events while the agent types: below State's limit of 6 s. */
const TYPING_REPEAT_MS = 2500;
/** Milliseconds without a key after which typing ends. */
const TYPING_IDLE_MS = 3500;
/** Milliseconds to wait for the event of a message before the thread is loaded again. */
const BEHIND_MS = 1500;

const query = new URLSearchParams(location.search);
const state = new State();
const drafts = new Map();
const outbox = new Outbox(state, { stored: (response) => apply(response), changed: () => draw() });
const connection = new Connection(state, window.wsClient, {
  changed: () => draw(),
  reload: (id) => reload(id),
  returned: () => returned(),
  subscribed: (id) => sameId(id, state.open) && loadThread(id),
  arrived: (id, message) => arrived(id, message),
  created: (conversation) => {
    toast(t("toast_new", { name: contactName(conversation) }), [t("show"), () => choose(conversation.id)]);
  },
  updated: (before, after) => updated(before, after),
});

// Drawing

let isDrawScheduled = false;
let toEnd = false;

/** Draw everything once, after the current task. */
function draw() {
  if (isDrawScheduled || state.me === null) return;
  isDrawScheduled = true;
  queueMicrotask(() => {
    isDrawScheduled = false;
    drawList(state, choose);
    drawHead(state);
    drawMessages(state, outbox, toEnd);
    toEnd = false;
    drawTyping(state);
    drawTeam(state);
    drawContact(state);
    const unread = state.unreadTotal();
    document.title = `${unread ? `(${unread}) ` : ""}${(state.agent(state.me) || { name: "Inbox" }).name} · chatws`;
  });
}

function switchLanguage(to) {
  sessionStorage.setItem("language", to);
  translatePage(to);
  drawLogin();
  if (state.me === null) return;
  drawMe(state, openAs);
  connection.draw();
  draw();
}

// Login

function drawLogin() {
  $("login-agents").replaceChildren(
    ...state.agents.map(({ id, name, team }) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "agent", "data-testid": "agent", "data-agent": id, onclick: () => enter(id) },
          avatar(name, id),
          h("span", {}, h("b", {}, name), h("span", { class: "agent-team" }, t(`team_${team}`))),
        ),
      ),
    ),
  );
}

async function begin() {
  translatePage(preferredLanguage(query.get("lang") || sessionStorage.getItem("language"), navigator.language));
  for (;;) {
    try {
      const { agents, instance } = await api.agents();
      state.agents = agents;
      state.instance = instance;
      break;
    } catch {
      $("login").hidden = false;
      $("login-problem").textContent = t("login_problem");
      $("login-problem").hidden = false;
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
  $("login-problem").hidden = true;
  const wanted = query.get("agent") || sessionStorage.getItem("agent");
  if (state.agent(wanted)) {
    enter(state.agent(wanted).id);
    return;
  }
  drawLogin();
  $("login").hidden = false;
}

async function enter(agentId) {
  state.me = agentId;
  sessionStorage.setItem("agent", agentId);
  $("login").hidden = true;
  $("inbox").hidden = false;
  drawMe(state, openAs);
  connection.start();
  await loadList();
  const first = state.listed()[0];
  if (first && isWide()) choose(first.id, { focus: false });
}

function openAs(agentId) {
  const width = Math.max(420, Math.floor(screen.availWidth / 2));
  const left = (screen.availLeft || 0) + screen.availWidth - width;
  const position = `left=${left},top=${screen.availTop || 0},width=${width},height=${screen.availHeight}`;
  window.open(`/?agent=${encodeURIComponent(agentId)}`, "_blank", `noopener,popup,${position}`);
  $("me").open = false;
}

function leave() {
  window.wsClient.disconnect();
  sessionStorage.removeItem("agent");
  location.href = "/";
}

// Incoming data

/** Apply a response of the backend: a conversation, a message. */
function apply({ conversation, message }) {
  if (conversation) state.mergeConversation(conversation.id, conversation);
  if (message) state.addMessage(message.conversation_id, message);
  draw();
}

function arrived(id, message) {
  if (!sameId(id, state.open)) return;
  const name = senderName(state, { conversation_id: id, ...message });
  $("announce").textContent = t("sender_said", { name, text: String(message.content ?? "") });
  markRead();
}

function updated(before, after) {
  const isAssignedToMe = sameId(after.assigned_to, state.me) && !sameId(before?.assigned_to, state.me);
  if (before && isAssignedToMe && !sameId(after.id, changing)) {
    toast(t("toast_assigned_plain", { name: contactName(after) }), [t("show"), () => choose(after.id)]);
  }
  if (!sameId(after.id, state.open)) return;
  markRead();
  // The event of the message arrives before this one. If it is missing, load the thread.
  if (state.isBehind(after.id)) setTimeout(() => state.isBehind(after.id) && loadThread(after.id), BEHIND_MS);
}

async function loadList() {
  try {
    const { conversations } = await api.conversations(state.me);
    state.resetConversations(conversations);
  } catch (error) {
    showError(error);
  }
  draw();
}

async function loadThread(id) {
  const thread = state.thread(id);
  try {
    const { conversation, messages, reads } = await api.messages(id);
    const wasLoaded = thread.loaded;
    state.mergeConversation(id, conversation);
    state.resetThread(id, messages, reads);
    thread.missing = false;
    if (!wasLoaded) toEnd = true;
  } catch (error) {
    if (error.status === 404) thread.missing = true;
    else showError(error);
  }
  if (sameId(id, state.open)) markRead();
  draw();
}

/** Load the data from the backend, because the server could not recover the missed events. */
function reload(id) {
  if (id === undefined || id === null) loadList();
  if (state.open !== null && (id === undefined || id === null || sameId(id, state.open))) loadThread(state.open);
}

/** Handle a reconnect. The client recovers missed events. A server with another database needs a reload. */
async function returned() {
  outbox.flush();
  markRead();
  // The connection may have closed while the thread was loading: a recovery contains new messages only.
  if (state.open !== null && !state.thread(state.open).loaded) loadThread(state.open);
  try {
    const { instance } = await api.agents();
    if (instance !== state.instance) location.reload();
  } catch {
    // The next reconnect checks again.
  }
}

function showError(error) {
  if (!(error instanceof Error && "status" in error)) throw error;
  toast(t("toast_failed", { reason: error.status === 0 ? t("no_connection") : error.message }));
}

// Actions

const isWide = () => matchMedia("(min-width: 620px)").matches;

function choose(id, { focus = true } = {}) {
  if (sameId(id, state.open)) {
    show("thread", focus);
    return;
  }
  leaveConversation();
  state.open = id;
  window.wsClient.subscribe(id); // its response loads the messages
  if (!window.wsClient.connected) loadThread(id);
  $("draft").value = drafts.get(String(id)) || "";
  fitDraft();
  toEnd = true;
  if (!state.inFilter(state.conversation(id), state.filter) && !state.search) {
    state.filter = state.conversation(id).status === "closed" ? "closed" : "open";
  }
  show("thread", focus);
  draw();
}

/** Close the open conversation in this window and keep its draft. */
function leaveConversation() {
  if (state.open === null) return;
  stopTyping();
  drafts.set(String(state.open), $("draft").value);
  window.wsClient.unsubscribe(state.open);
  state.open = null;
}

function show(view, focus) {
  $("inbox").dataset.view = view;
  if (!focus) return;
  // After drawing, because a hidden field cannot be focused.
  setTimeout(() => (isWide() && !$("composer").hidden ? $("draft") : $("thread-name")).focus(), 0);
}

let isMarkingRead = false;

/** Mark the open conversation as read when the page is visible. */
async function markRead() {
  const conversation = state.open === null ? null : state.conversation(state.open);
  if (!conversation || !state.visible || isMarkingRead || !state.unread(conversation)) return;
  isMarkingRead = true;
  try {
    apply(await api.read(conversation.id, state.me));
  } catch {
    // The next message or reconnect tries again.
    return;
  } finally {
    isMarkingRead = false;
  }
  markRead();
}

let changing = null; // the conversation that this window is changing

async function change(action) {
  changing = state.open;
  try {
    apply(await action(state.open));
  } catch (error) {
    showError(error);
    draw();
  } finally {
    changing = null;
  }
}

async function letCustomerWrite(button, options) {
  button.disabled = true;
  try {
    apply(await api.customer({ ...options, typing: true }));
  } catch (error) {
    showError(error);
  } finally {
    button.disabled = false;
  }
}

let typingSentAt = 0;
let typingTimer = null;

function onDraftInput() {
  if (!$("draft").value.trim()) {
    stopTyping();
    return;
  }
  clearTimeout(typingTimer);
  typingTimer = setTimeout(stopTyping, TYPING_IDLE_MS);
  if (Date.now() - typingSentAt < TYPING_REPEAT_MS) return;
  typingSentAt = Date.now();
  window.wsClient.sendTyping(state.open, true);
}

function stopTyping() {
  clearTimeout(typingTimer);
  if (!typingSentAt || state.open === null) return;
  typingSentAt = 0;
  window.wsClient.sendTyping(state.open, false);
}

function fitDraft() {
  const draft = $("draft");
  draft.style.height = "auto";
  draft.style.height = `${Math.min(draft.scrollHeight, 160)}px`;
}

function send(event) {
  event.preventDefault();
  const content = $("draft").value.trim();
  if (!content || state.open === null) return;
  stopTyping();
  $("draft").value = "";
  fitDraft();
  toEnd = true;
  outbox.add(state.open, content);
  $("draft").focus();
}

// Event handlers

for (const button of document.querySelectorAll("button.language")) {
  button.addEventListener("click", () => switchLanguage(language() === "pt" ? "en" : "pt"));
}
for (const tab of document.querySelectorAll("[data-filter]")) {
  tab.addEventListener("click", () => {
    state.filter = tab.dataset.filter;
    state.search = $("search").value = "";
    draw();
  });
}
$("login-pair").addEventListener("click", () => {
  openAs(state.agents[1].id);
  enter(state.agents[0].id);
});
$("me-out").addEventListener("click", leave);
for (const button of $("me-status").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    connection.setStatus(button.dataset.status);
    $("me").open = false;
  });
}
$("status-retry").addEventListener("click", () => connection.reconnect());
$("search").addEventListener("input", (event) => {
  state.search = event.target.value;
  draw();
});
$("rows").addEventListener("keydown", listKeys);
$("thread-back").addEventListener("click", () => {
  const row = document.querySelector('.row[aria-current="true"]');
  leaveConversation();
  show("list", false);
  draw();
  if (row) row.focus();
});
$("assign").addEventListener("change", (event) => {
  const agentId = event.target.value === "" ? null : Number(event.target.value);
  change((id) => api.assign(id, agentId, state.me));
});
$("close").addEventListener("click", () => change((id) => api.close(id, state.me)));
$("reopen").addEventListener("click", () => change((id) => api.reopen(id, state.me)));
$("customer").addEventListener("click", (event) => letCustomerWrite(event.currentTarget, {}));
$("customer-here").addEventListener("click", (event) => letCustomerWrite(event.currentTarget, { conversation_id: state.open }));
$("composer").addEventListener("submit", send);
$("draft").addEventListener("input", () => {
  fitDraft();
  onDraftInput();
});
$("draft").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("visibilitychange", () => {
  state.visible = document.visibilityState === "visible";
  markRead();
  draw();
});
document.addEventListener("click", (event) => {
  if (!$("me").contains(event.target)) $("me").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("me").open = false;
});
// Removes typing indicators whose last event is too old.
setInterval(() => state.me !== null && drawTyping(state), 1000);

begin();
