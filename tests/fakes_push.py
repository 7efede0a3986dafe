"""A chat server that records the commands of backends, for tests of the push API."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, succeed

from chatws.brokers.interface import Event, NewEvent
from chatws.chat.audience import AudienceTable
from chatws.ids import Id


class FakeTarget:
    """Remembers what was done, in order, in `done`.

    :ivar failing: what every publish fails with.
    :ivar waiting: if set to a list, `publish` adds Deferreds to it, with their new events. `settle` fires them.
    :ivar delivered: how many connections each event reaches.
    :ivar online_ids: the agents online.
    """

    def __init__(self) -> None:
        self.audiences = AudienceTable()
        self.done: list[object] = []
        self.batches: list[list[NewEvent]] = []
        self.waiting: list[tuple[Deferred[list[Event]], list[NewEvent]]] | None = None
        self.failing: Exception | None = None
        self.delivered = 1
        self.online_ids: list[Id] = []
        self.agent_statuses: dict[str, str] = {}
        self.keys: dict[str, int] = {}
        self.offset = 0

    @property
    def published(self) -> list[NewEvent]:
        """All new events, in order."""
        return [new_event for batch in self.batches for new_event in batch]

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        self.batches.append(list(new_events))
        if self.failing is not None:
            failed: Deferred[list[Event]] = Deferred()
            failed.errback(self.failing)
            return failed
        if self.waiting is not None:
            later: Deferred[list[Event]] = Deferred()
            self.waiting.append((later, list(new_events)))
            return later
        return succeed(self.accept(new_events))

    def accept(self, new_events: Sequence[NewEvent]) -> list[Event]:
        events = []
        for new_event in new_events:
            duplicate = new_event.key is not None and new_event.key in self.keys
            if duplicate:
                offset = self.keys[new_event.key]
            elif new_event.transient:
                offset = 0
            else:
                self.offset += 1
                offset = self.offset
                if new_event.key is not None:
                    self.keys[new_event.key] = offset
            if not duplicate:
                self.done.append(new_event)
            delivered = 0 if duplicate else self.delivered
            events.append(Event(offset, new_event.name, new_event.audience, new_event.data, 0.0, duplicate, delivered))
        return events

    def settle(self, position: int = 0) -> None:
        """Let one of the publishes in `waiting` succeed."""
        later, new_events = self.waiting.pop(position)
        later.callback(self.accept(new_events))

    def disconnect(self, user_id: Id, reason: str, ban: bool, *, is_contact: bool = False) -> int | Deferred[int]:
        self.done.append(("disconnect_contact" if is_contact else "disconnect", user_id, reason, ban))
        return 2

    def unsubscribe(self, user_id: Id, conversation_id: Id, *, is_contact: bool = False) -> int | Deferred[int]:
        self.done.append(("unsubscribe_contact" if is_contact else "unsubscribe", user_id, conversation_id))
        return 1

    def set_status(self, user_id: Id, status: str) -> None:
        self.done.append(("status", user_id, status))
        self.agent_statuses[str(user_id)] = status

    def statuses(self) -> dict[str, str]:
        return self.agent_statuses

    def set_groups(self, user_id: Id, groups: tuple[str, ...]) -> int | Deferred[int]:
        self.done.append(("groups", user_id, groups))
        return 1

    def sync_webhooks(self) -> Deferred[None]:
        return succeed(None)

    def online(self) -> list[Id] | Deferred[list[Id]]:
        return list(self.online_ids)

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        return [(f"c-{user_id}", "192.0.2.1")]

    def event_id(self, event: Event) -> str | None:
        return f"E:{event.offset}" if event.offset else None
