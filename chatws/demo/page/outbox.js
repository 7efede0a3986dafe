// Messages on their way: shown at once, sent in order, tried again when the connection is back.

import { api } from "./api.js";
import { toast } from "./dom.js";
import { t } from "./strings.js";

const RETRY_MS = 4000;

export class Outbox {
  /** `stored(answer)` gets what the backend says of a message it has stored; `changed()` asks for a redraw. */
  constructor(state, { stored, changed }) {
    this.state = state;
    this.stored = stored;
    this.changed = changed;
    this.busy = false;
    this.timer = null;
  }

  /** Put a message in and send it. The backend takes an equal `client_id` only once, however often it is sent. */
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

  /** Send what waits, one after the other. Called again when the connection is back. */
  async flush() {
    if (this.busy) return;
    this.busy = true;
    clearTimeout(this.timer);
    try {
      for (;;) {
        const message = [...this.state.outbox.values()].find((one) => one.state !== "failed");
        if (!message) return;
        try {
          const { conversation_id: to, content, client_id } = message;
          this.stored(await api.send(to, { agent_id: this.state.me, content, client_id }));
          this.state.outbox.delete(client_id);
        } catch (error) {
          if (error.status === 0 || error.status === undefined || error.status >= 500) {
            for (const one of this.state.outbox.values()) if (one.state === "sending") one.state = "waiting";
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
