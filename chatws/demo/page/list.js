// The left and right columns: conversations, team, and the contact of the open conversation.

import { $, avatar, h, icon, reconcile } from "./dom.js";
import { idKey, sameId } from "./state.js";
import { clockTime, dayName, shortTime, t, tn } from "./strings.js";

export const contactName = (conversation) => String(conversation.contact_name || `#${conversation.id}`);
/** Return the id for a contact's avatar. A contact and an agent with the same number get different colours. */
export const contactTone = (id) => `d${id}`;
export const firstName = (name) => String(name).split(/\s+/)[0];

function preview(state, conversation) {
  const last = conversation.last_message;
  if (!last) return "";
  const text = String(last.content ?? "").replace(/\s+/g, " ");
  if (last.sender_type !== "agent") return text;
  if (sameId(last.sender_id, state.me)) return t("you_said", { text });
  const agent = state.agent(last.sender_id);
  return t("sender_said", { name: agent ? firstName(agent.name) : t("unknown_sender"), text });
}

function buildRow(conversation, choose) {
  const name = h("span", { class: "row-name" });
  const time = h("time", { class: "row-time" });
  const text = h("span", { class: "row-text", "data-testid": "preview" });
  const badge = h("span", { class: "badge", "data-testid": "unread", hidden: true });
  const about = h("span", { class: "row-about" });
  const face = avatar(contactName(conversation), contactTone(conversation.id));
  const button = h(
    "button",
    { type: "button", class: "row", onclick: () => choose(conversation.id) },
    face,
    h("span", { class: "row-main" }, h("span", { class: "row-line" }, name, time), h("span", { class: "row-line" }, text, badge), about),
  );
  const item = h("li", { "data-testid": "conversation", "data-conversation": conversation.id }, button);
  item.parts = { name, time, text, badge, about, button };
  return item;
}

function updateRow(state, item, conversation) {
  const { name, time, text, badge, about, button } = item.parts;
  const unread = state.shownUnread(conversation);
  const when = new Date(conversation.updated_at);
  const assignee = state.agent(conversation.assigned_to);
  const fresh = conversation.last_message ? idKey(conversation.last_message.id) : "";
  name.textContent = contactName(conversation);
  time.textContent = Number.isNaN(when.getTime()) ? "" : shortTime(when);
  if (!Number.isNaN(when.getTime())) time.dateTime = when.toISOString();
  text.textContent = preview(state, conversation);
  badge.hidden = unread === 0;
  badge.textContent = unread > 99 ? "99+" : String(unread);
  if (unread) badge.setAttribute("aria-label", tn("unread", unread));
  about.replaceChildren(
    h("span", { class: "chip channel" }, t(`channel_${conversation.channel || "web"}`)),
    conversation.status === "closed" ? h("span", { class: "chip closed" }, t("closed")) : "",
    h(
      "span",
      { class: `chip ${assignee ? (sameId(assignee.id, state.me) ? "mine" : "assigned") : "free"}`, "data-testid": "assignee" },
      assignee ? firstName(assignee.name) : t("nobody"),
    ),
  );
  item.classList.toggle("has-unread", unread > 0);
  item.dataset.status = conversation.status;
  if (sameId(state.open, conversation.id)) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  if (item.fresh !== undefined && item.fresh !== fresh) {
    item.classList.remove("moved");
    void item.offsetWidth; // restarts the highlight
    item.classList.add("moved");
  }
  item.fresh = fresh;
}

export function drawList(state, choose) {
  const listed = state.listed();
  reconcile(
    $("rows"),
    listed.map((conversation) => [
      idKey(conversation.id),
      () => buildRow(conversation, choose),
      (item) => updateRow(state, item, conversation),
    ]),
  );
  const empty = $("rows-empty");
  empty.hidden = listed.length > 0;
  empty.textContent = state.search.trim() ? t("empty_search", { text: state.search.trim() }) : t(`empty_${state.filter}`);
  for (const tab of document.querySelectorAll("[data-filter]")) {
    tab.setAttribute("aria-pressed", String(!state.search.trim() && tab.dataset.filter === state.filter));
    tab.querySelector("b").textContent = state.count(tab.dataset.filter);
  }
}

/** Move the focus through the list with Up and Down. */
export function listKeys(event) {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const buttons = [...$("rows").querySelectorAll("button.row")];
  const index = buttons.indexOf(document.activeElement);
  if (index < 0) return;
  event.preventDefault();
  const next = buttons[index + (event.key === "ArrowDown" ? 1 : -1)];
  if (next) next.focus();
}

export function drawTeam(state) {
  const entry = (agent, build, update) => [idKey(agent.id), () => build(agent), (item) => update(item, agent)];
  const status = (agent) => state.presence.get(idKey(agent.id)) || "offline";
  const label = (agent) => `${agent.name}${sameId(agent.id, state.me) ? ` (${t("you")})` : ""}: ${t(`status_${status(agent)}`)}`;

  reconcile(
    $("team"),
    state.agents.map((member) =>
      entry(
        member,
        (agent) => h("li", { "data-agent": agent.id, "data-testid": "presence" }, avatar(agent.name, agent.id), h("span", { class: "sr" })),
        (item, agent) => {
          item.dataset.status = status(agent);
          item.title = label(agent);
          item.querySelector(".sr").textContent = label(agent);
        },
      ),
    ),
  );
  reconcile(
    $("team-list"),
    state.agents.map((member) =>
      entry(
        member,
        (agent) => {
          const name = h("span", { class: "team-name" });
          const about = h("span", { class: "team-about" });
          const item = h("li", { "data-agent": agent.id }, h("span", { class: "with-dot" }, avatar(agent.name, agent.id)), h("span", {}, name, about));
          item.parts = { name, about };
          return item;
        },
        (item, agent) => {
          item.dataset.status = status(agent);
          item.parts.name.textContent = agent.name + (sameId(agent.id, state.me) ? ` (${t("you")})` : "");
          item.parts.about.textContent = `${t(`team_${agent.team}`)} · ${t(`status_${status(agent)}`)}`;
        },
      ),
    ),
  );
}

export function drawContact(state) {
  const card = $("contact");
  const conversation = state.open === null ? null : state.conversation(state.open);
  card.hidden = !conversation;
  if (!conversation) return;
  const name = contactName(conversation);
  const first = new Date(conversation.created_at || conversation.updated_at);
  const assignee = state.agent(conversation.assigned_to);
  const fact = (key, value) => [h("dt", {}, t(key)), h("dd", {}, value)];
  card.replaceChildren(
    avatar(name, contactTone(conversation.id), "large"),
    h("h2", {}, name),
    h(
      "dl",
      {},
      fact("channel", t(`channel_${conversation.channel || "web"}`)),
      fact("first_contact", `${dayName(first)}, ${clockTime(first)}`),
      fact("assignee", assignee ? assignee.name : t("nobody")),
      fact("status", h("span", { class: `chip ${conversation.status}` }, t(conversation.status === "closed" ? "closed" : "opened"))),
      fact("number", `#${conversation.id}`),
    ),
  );
}

export function drawMe(state, openAs) {
  const me = state.agent(state.me);
  if (!me) return;
  $("me-avatar").replaceChildren(avatar(me.name, me.id));
  $("me-name").textContent = firstName(me.name);
  const status = state.presence.get(idKey(state.me)) || "online";
  for (const button of $("me-status").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.status === status));
  }
  $("me-others").replaceChildren(
    ...state.agents
      .filter(({ id }) => !sameId(id, state.me))
      .map(({ id, name }) =>
        h(
          "button",
          { type: "button", "data-testid": "open-as", "data-agent": id, onclick: () => openAs(id) },
          avatar(name, id, "small"),
          h("span", {}, name),
          icon("window"),
        ),
      ),
  );
}
