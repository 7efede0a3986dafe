// The inbox: who one is, what one does, and everything put together.

import { api } from "./api.js";
import { Connection } from "./connection.js";
import { $, avatar, h, toast, translatePage } from "./dom.js";
import { contactName, drawContact, drawList, drawMe, drawTeam, listKeys } from "./list.js";
import { Outbox } from "./outbox.js";
import { State, sameId } from "./state.js";
import { language, preferredLanguage, t } from "./strings.js";
import { drawHead, drawMessages, drawTyping, senderName } from "./thread.js";

const TYPING_AGAIN_MS = 2500;
const TYPING_IDLE_MS = 3500;
const BEHIND_MS = 1500;

const query = new URLSearchParams(location.search);
const state = new State();
const drafts = new Map();
const outbox = new Outbox(state, { stored: (answer) => apply(answer), changed: () => draw() });
const connection = new Connection(state, window.wsClient, {
  changed: () => draw(),
  reload: (id) => reload(id),
  returned: () => returned(),
  subscribed: (id) => sameId(id, state.open) && loadThread(id),
  arrived: (id, message) => arrived(id, message),
  created: (one) => toast(t("toast_new", { name: contactName(one) }), [t("show"), () => choose(one.id)]),
  updated: (before, after) => updated(before, after),
});

// --- drawing

let drawing = false;
let toEnd = false;

/** Draw everything soon, once. */
function draw() {
  if (drawing || state.me === null) return;
  drawing = true;
  queueMicrotask(() => {
    drawing = false;
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

// --- who one is

function drawLogin() {
  $("login-agents").replaceChildren(
    ...state.agents.map((one) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "agent", "data-testid": "agent", "data-agent": one.id, onclick: () => enter(one.id) },
          avatar(one.name, one.id),
          h("span", {}, h("b", {}, one.name), h("span", { class: "agent-team" }, t(`team_${one.team}`))),
        ),
      ),
    ),
  );
}

async function begin() {
  translatePage(preferredLanguage(query.get("lang") || sessionStorage.getItem("language"), navigator.language));
  for (;;) {
    try {
      const answer = await api.agents();
      state.agents = answer.agents;
      state.instance = answer.instance;
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
  const place = `left=${left},top=${screen.availTop || 0},width=${width},height=${screen.availHeight}`;
  window.open(`/?agent=${encodeURIComponent(agentId)}`, "_blank", `noopener,popup,${place}`);
  $("me").open = false;
}

function leave() {
  window.wsClient.disconnect();
  sessionStorage.removeItem("agent");
  location.href = "/";
}

// --- what comes in

/** An answer of the backend: a conversation, a message. */
function apply(answer) {
  if (answer.conversation) state.mergeConversation(answer.conversation.id, answer.conversation);
  if (answer.message) state.addMessage(answer.message.conversation_id, answer.message);
  draw();
}

function arrived(id, message) {
  const whole = { conversation_id: id, ...message };
  if (sameId(id, state.open)) {
    $("announce").textContent = t("somebody_said", { name: senderName(state, whole), text: String(message.content ?? "") });
    markRead();
  }
}

function updated(before, after) {
  if (before && !sameId(before.assigned_to, after.assigned_to) && sameId(after.assigned_to, state.me) && !sameId(after.id, doing)) {
    toast(t("toast_assigned_plain", { name: contactName(after) }), [t("show"), () => choose(after.id)]);
  }
  if (!sameId(after.id, state.open)) return;
  markRead();
  // The message itself comes before this; where it did not, it is fetched.
  if (state.isBehind(after.id)) setTimeout(() => state.isBehind(after.id) && loadThread(after.id), BEHIND_MS);
}

async function loadList() {
  try {
    const { conversations } = await api.conversations(state.me);
    state.resetConversations(conversations);
  } catch (error) {
    complain(error);
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
    else complain(error);
  }
  if (sameId(id, state.open)) markRead();
  draw();
}

/** The server could not tell what was missed: ask the backend. */
function reload(id) {
  if (id === undefined || id === null) loadList();
  if (state.open !== null && (id === undefined || id === null || sameId(id, state.open))) loadThread(state.open);
}

/** The connection is back. What was missed comes by itself; another shop behind it is another matter. */
async function returned() {
  outbox.flush();
  markRead();
  // what was being asked for when the connection went is asked for again: a recovery brings what is new, not what is old
  if (state.open !== null && !state.thread(state.open).loaded) loadThread(state.open);
  try {
    const { instance } = await api.agents();
    if (instance !== state.instance) location.reload();
  } catch {
    // the next time will do
  }
}

function complain(error) {
  if (!(error instanceof Error && "status" in error)) throw error;
  toast(t("toast_failed", { reason: error.status === 0 ? t("no_connection") : error.message }));
}

// --- what one does

const isWide = () => matchMedia("(min-width: 620px)").matches;

function choose(id, { focus = true } = {}) {
  if (sameId(id, state.open)) {
    show("thread", focus);
    return;
  }
  putAside();
  state.open = id;
  window.wsClient.subscribe(id); // its answer loads the messages
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

/** Leave the open conversation; what was being written in it stays. */
function putAside() {
  if (state.open === null) return;
  stopTyping();
  drafts.set(String(state.open), $("draft").value);
  window.wsClient.unsubscribe(state.open);
  state.open = null;
}

function show(view, focus) {
  $("inbox").dataset.view = view;
  if (!focus) return;
  // after drawing: a hidden field takes no focus
  setTimeout(() => (isWide() && !$("composer").hidden ? $("draft") : $("thread-name")).focus(), 0);
}

let reading = false;

/** Tell the backend that the open conversation has been seen, once somebody can see it. */
async function markRead() {
  const conversation = state.open === null ? null : state.conversation(state.open);
  if (!conversation || !state.visible || reading || !state.unread(conversation)) return;
  reading = true;
  try {
    apply(await api.read(conversation.id, state.me));
  } catch {
    // it stays unread, and the next message or the return of the connection tries again
    return;
  } finally {
    reading = false;
  }
  markRead();
}

let doing = null; // the conversation that one is changing oneself

async function change(action) {
  doing = state.open;
  try {
    apply(await action(state.open));
  } catch (error) {
    complain(error);
    draw();
  } finally {
    doing = null;
  }
}

async function letCustomerWrite(button, wish) {
  button.disabled = true;
  try {
    apply(await api.customer({ ...wish, typing: true }));
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
}

let typingSaid = 0;
let typingTimer = null;

function typed() {
  if (!$("draft").value.trim()) {
    stopTyping();
    return;
  }
  clearTimeout(typingTimer);
  typingTimer = setTimeout(stopTyping, TYPING_IDLE_MS);
  if (Date.now() - typingSaid < TYPING_AGAIN_MS) return;
  typingSaid = Date.now();
  window.wsClient.sendTyping(state.open, true);
}

function stopTyping() {
  clearTimeout(typingTimer);
  if (!typingSaid || state.open === null) return;
  typingSaid = 0;
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

// --- wiring

for (const one of document.querySelectorAll("button.language")) {
  one.addEventListener("click", () => switchLanguage(language() === "pt" ? "en" : "pt"));
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
$("status-retry").addEventListener("click", () => connection.again());
$("search").addEventListener("input", (event) => {
  state.search = event.target.value;
  draw();
});
$("rows").addEventListener("keydown", listKeys);
$("thread-back").addEventListener("click", () => {
  const row = document.querySelector('.row[aria-current="true"]');
  putAside();
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
  typed();
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
// Somebody who fell silent without a word types no more.
setInterval(() => state.me !== null && drawTyping(state), 1000);

begin();
