"""What stands behind the push door in tests: a chat server that only remembers what backends asked of it."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, succeed

from chatws.brokers.contract import Draft, Event
from chatws.chat.audience import AudienceTable
from chatws.ids import Id


class FakeTarget:
    """Remembers what was done, in order, in `done`.

    :ivar failing: what every publish fails with.
    :ivar waiting: set to a list, `publish` returns Deferreds that stand in it, with their drafts; `settle` fires them.
    :ivar delivered: how many connections each event reaches.
    :ivar online_ids: who is online.
    """

    def __init__(self) -> None:
        self.audiences = AudienceTable()
        self.done: list[object] = []
        self.batches: list[list[Draft]] = []
        self.waiting: list[tuple[Deferred[list[Event]], list[Draft]]] | None = None
        self.failing: Exception | None = None
        self.delivered = 1
        self.online_ids: list[Id] = []
        self.keys: dict[str, int] = {}
        self.offset = 0

    @property
    def published(self) -> list[Draft]:
        """All drafts, in order."""
        return [draft for batch in self.batches for draft in batch]

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        self.batches.append(list(drafts))
        if self.failing is not None:
            failed: Deferred[list[Event]] = Deferred()
            failed.errback(self.failing)
            return failed
        if self.waiting is not None:
            later: Deferred[list[Event]] = Deferred()
            self.waiting.append((later, list(drafts)))
            return later
        return succeed(self.accept(drafts))

    def accept(self, drafts: Sequence[Draft]) -> list[Event]:
        events = []
        for draft in drafts:
            duplicate = draft.key is not None and draft.key in self.keys
            if duplicate:
                offset = self.keys[draft.key]
            elif draft.transient:
                offset = 0
            else:
                self.offset += 1
                offset = self.offset
                if draft.key is not None:
                    self.keys[draft.key] = offset
            if not duplicate:
                self.done.append(draft)
            delivered = 0 if duplicate else self.delivered
            events.append(Event(offset, draft.name, draft.audience, draft.data, 0.0, duplicate, delivered))
        return events

    def settle(self, position: int = 0) -> None:
        """Let one of the publishes in `waiting` succeed."""
        later, drafts = self.waiting.pop(position)
        later.callback(self.accept(drafts))

    def disconnect(self, user_id: Id, reason: str, ban: bool) -> int | Deferred[int]:
        self.done.append(("disconnect", user_id, reason, ban))
        return 2

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> int | Deferred[int]:
        self.done.append(("unsubscribe", user_id, conversation_id))
        return 1

    def online(self) -> list[Id] | Deferred[list[Id]]:
        return list(self.online_ids)

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        return [(f"c-{user_id}", "192.0.2.1")]

    def event_id(self, event: Event) -> str | None:
        return f"E:{event.offset}" if event.offset else None
