// The WebSocket connection: applies the events of window.wsClient to the state, and shows the connection status.

import { $ } from "./dom.js";
import { idKey, sameId } from "./state.js";
import { t, tn } from "./strings.js";

/** Milliseconds after a reconnect in which missed events are counted, if a report of the client does not come. */
const CATCH_UP_MS = 15000;
/** Milliseconds for which the status shows the result of a recovery. */
const STATUS_MS = 6000;

/** Return the WebSocket URL of the server that the page came from. */
export function socketUrl(page = location) {
  return `${page.protocol === "https:" ? "wss" : "ws"}://${page.host}/ws`;
}

export class Connection {
  /** `app` has the callbacks changed(), reload(conversationId?), returned(), subscribed(conversationId), arrived(conversationId, message),
   *  created(conversation), updated(before, conversation). */
  constructor(state, client, app) {
    this.state = state;
    this.client = client;
    this.app = app;
    this.phase = "connecting";
    this.wasLive = false;
    this.catchUp = null; // after a reconnect: the events that were missed
    this.timer = null;
  }

  start() {
    const { client, state, app } = this;
    if (!client) {
      this.show("failed");
      return;
    }
    const on = (event, handler) =>
      client.on(event, (data) => {
        handler(data || {});
        app.changed();
      });

    on("connected", () => this.connected());
    on("disconnected", () => this.show(this.phase === "failed" ? "failed" : this.wasLive ? "reconnecting" : "connecting"));
    on("reconnect_failed", () => this.show("failed"));
    on("recovered", ({ count }) => {
      this.noteMissed((missed) => (missed.updates += Number(count) || 0));
      this.reportArrived();
    });
    on("resync", ({ conversation_id: id }) => {
      this.noteMissed((missed) => (missed.reloaded = true));
      this.reportArrived();
      app.reload(id);
    });
    on("error", (error) => {
      console.warn("chatws:", error);
      if (error.request && error.request.type === "subscribe") app.subscribed(state.open); // show the messages, even without events
    });

    // From now on the conversation's events are complete, so load the earlier messages. After a reconnect the client
    // emits `resync` if that is needed.
    on("subscribed", ({ conversation_id: id, recovered }) => recovered === undefined && app.subscribed(id));

    on("new_message", ({ conversation_id: id, message }) => {
      if (id === undefined || !state.addMessage(id, message)) return;
      if (message.sender_type !== "note" && !sameId(message.sender_id, state.me)) {
        this.noteMissed((missed) => missed.messages.add(idKey(message.id)));
        app.arrived(id, message);
      }
    });
    on("conversation_updated", ({ conversation_id: id, conversation }) => {
      if (!conversation || id === undefined) return;
      const before = state.mergeConversation(id, conversation);
      if (before === undefined) return;
      const last = conversation.last_message;
      const isNew = last && !sameId(last.sender_id, state.me) && before && !sameId((before.last_message || {}).id, last.id);
      if (isNew) this.noteMissed((missed) => missed.messages.add(idKey(last.id)));
      app.updated(before, state.conversation(id));
    });
    on("new_conversation", ({ conversation }) => {
      if (!conversation || conversation.id === undefined) return;
      const before = state.mergeConversation(conversation.id, conversation);
      if (before === null) {
        if (conversation.last_message) this.noteMissed((missed) => missed.messages.add(idKey(conversation.last_message.id)));
        app.created(state.conversation(conversation.id));
      }
    });
    on("message_read", ({ conversation_id: id, message_id: message, user_id: user }) => {
      if (id !== undefined && user !== undefined) state.addRead(id, user, message);
    });
    on("typing", ({ conversation_id: id, user_id: user, is_typing: isTyping }) => {
      if (id !== undefined && user !== undefined) state.setTyping(id, user, isTyping !== false);
    });
    on("presence", ({ online, status = {} }) => {
      state.presence = new Map((online || []).map((id) => [idKey(id), status[id] || "online"]));
    });
    on("status_set", ({ status }) => state.presence.set(idKey(state.me), status));
    on("agent_status", ({ agent_id: id, status }) => {
      if (id !== undefined) state.presence.set(idKey(id), String(status));
    });

    this.show("connecting");
    client.connect(state.me, { url: socketUrl() });
  }

  connected() {
    this.client.send({ type: "presence" });
    if (!this.state.presence.has(idKey(this.state.me))) this.state.presence.set(idKey(this.state.me), "online");
    if (!this.wasLive) {
      this.wasLive = true;
      this.show("live");
      return;
    }
    // The client reports once for the user's events, and once for the open conversation.
    const reports = this.state.open === null ? 1 : 2;
    this.catchUp = { until: Date.now() + CATCH_UP_MS, reports, updates: 0, messages: new Set(), reloaded: false };
    this.show("back");
    this.app.returned();
  }

  /** Set the agent's status. The server keeps it, also over a reload. */
  setStatus(status) {
    this.client.send({ type: "status", status });
  }

  /** Record something that was missed, if the client has just reconnected. */
  noteMissed(record) {
    if (!this.catchUp || Date.now() > this.catchUp.until) return;
    record(this.catchUp);
    this.show("back");
  }

  /** Handle `recovered` or `resync`. Events after the last of them were not missed. */
  reportArrived() {
    if (this.catchUp && (this.catchUp.reports -= 1) <= 0) this.catchUp.until = 0;
  }

  reconnect() {
    this.show("connecting");
    this.client.connect(this.state.me, { url: socketUrl() });
  }

  show(phase) {
    this.phase = phase;
    clearTimeout(this.timer);
    if (phase === "back") this.timer = setTimeout(() => this.show("live"), STATUS_MS);
    this.draw();
  }

  draw() {
    $("status").dataset.state = this.phase;
    $("inbox").dataset.connection = this.phase;
    $("status-retry").hidden = this.phase !== "failed" || !this.client;
    const text = this.text();
    if ($("status-text").textContent !== text) $("status-text").textContent = text;
  }

  text() {
    if (this.phase === "failed") return this.client ? t("offline") : t("no_client");
    if (this.phase !== "back") return t(this.phase);
    const { updates, messages, reloaded } = this.catchUp;
    if (reloaded) return t("back_reloaded");
    if (messages.size) return tn("back_messages", messages.size);
    return updates ? tn("back_updates", updates) : t("back_nothing");
  }
}
