// Messages that are being sent: the page shows them at once, sends them in order, and retries after a failure.

import { api } from "./api.js";
import { toast } from "./dom.js";
import { t } from "./strings.js";

/** Milliseconds between attempts while the backend is unavailable: it restarts in a few seconds. */
const RETRY_MS = 4000;

export class Outbox {
  /** `stored(response)` receives the backend's response to a stored message. `changed()` redraws the page. */
  constructor(state, { stored, changed }) {
    this.state = state;
    this.stored = stored;
    this.changed = changed;
    this.busy = false;
    this.timer = null;
  }

  /** Queue a message and send it. The backend stores each `client_id` once, so that a retry is safe. */
  add(conversationId, content) {
    const clientId = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 12)}`;
    this.state.outbox.set(clientId, {
      client_id: clientId, conversation_id: conversationId, sender_type: "agent", sender_id: this.state.me,
      content, created_at: new Date().toISOString(), state: "sending",
    });
    this.changed();
    this.flush();
  }

  retry(clientId) {
    const message = this.state.outbox.get(clientId);
    if (message) message.state = "sending";
    this.changed();
    this.flush();
  }

  discard(clientId) {
    this.state.outbox.delete(clientId);
    this.changed();
  }

  /** Send the queued messages one after the other. Also called after a reconnect. */
  async flush() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    try {
      for (;;) {
        const message = [...this.state.outbox.values()].find(({ state }) => state !== "failed");
        if (!message) return;
        try {
          const { conversation_id: to, content, client_id } = message;
          this.stored(await api.send(to, { agent_id: this.state.me, content, client_id }));
          this.state.outbox.delete(client_id);
        } catch (error) {
          if (error.status === 0 || error.status === undefined || error.status >= 500) {
            for (const queued of this.state.outbox.values()) if (queued.state === "sending") queued.state = "waiting";
            this.timer = setTimeout(() => this.flush(), RETRY_MS);
            return;
          }
          message.state = "failed";
          toast(t("toast_failed", { reason: error.message }));
        } finally {
          this.changed();
        }
      }
    } finally {
      this.busy = false;
    }
  }
}
