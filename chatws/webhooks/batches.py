"""Decides what the next request contains, without any I/O.

`Batches` holds the events that the sender has taken from the queue, in the order in which they are sent. An event gets
its sequence number with its first attempt, and keeps it. A receiver that ignores lower numbers than it has seen ends
right, also if a request that timed out is still running there, or a paused sender sends after its lease.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import msgspec

from chatws.brokers.webhook_queue import WebhookItem
from chatws.ids import Id

__all__ = ["MAX_EVENTS", "POISON_FAILURES", "Agents", "Batches", "Delivery", "Snapshot", "body_of"]

#: Events in one request (docs/protocol.md §8).
MAX_EVENTS = 1000
#: Failures of a single event after which an empty request is sent, and if that is acknowledged the event is dropped.
POISON_FAILURES = 5
#: Bytes of a request besides its events.
_ENVELOPE = 64

_encode = msgspec.json.Encoder().encode
_decode_id: msgspec.json.Decoder[Id] = msgspec.json.Decoder(int | str)
_decode_member = msgspec.json.Decoder(tuple[int | str, int | str]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


class Delivery(Enum):
    """The result of a request."""

    ACKNOWLEDGED = "acknowledged"
    #: The receiver is away, or refuses all requests: the size of the request is not the reason.
    REFUSED = "refused"
    FAILED = "failed"


class Agents(Protocol):
    """What is known about agents."""

    def status(self, user_id: Id) -> str:
        """Return the status of an agent online."""
        ...

    def last_active(self, user_id: Id) -> int | None:
        """Return when an agent was last active, in milliseconds since 1970, or None if that is unknown."""
        ...

    def last_seen(self, user_id: Id) -> int | None:
        """Return when an agent was last connected, in milliseconds since 1970, or None if that is unknown."""
        ...


class Snapshot(msgspec.Struct, frozen=True):
    """The whole state, for `presence_reset`.

    :ivar online: the agents online, sorted.
    :ivar status: the statuses of those whose status is not `online`, by the text of the id.
    :ivar contacts: (contact, conversation) pairs; None if they are not selected.
    """

    online: Sequence[Id]
    status: Mapping[str, str] = {}
    contacts: Sequence[tuple[Id, Id]] | None = None


class _Event:
    """An event to be sent.

    :ivar position: its place in the queue, 0 if it is not from there.
    :ivar fields: None for an event of the queue that is not to be sent.
    :ivar number: its sequence number, 0 before its first attempt.
    :ivar failures: failures of requests that contained only this event.
    """

    __slots__ = ("encoded", "failures", "fields", "id", "is_last_part", "name", "number", "position", "time_ms")

    def __init__(self, name: str, time_ms: int, fields: dict[str, Any] | None, position: int = 0) -> None:
        self.name = name
        self.time_ms = time_ms
        self.fields = fields
        self.position = position
        self.id = ""
        self.number = self.failures = 0
        self.is_last_part = False
        self.encoded = b""

    def assign(self, number: int, queue: str) -> None:
        """Give it its number, and encode it."""
        self.number = number
        self.id = f"{queue}-{self.position}" if self.position else f"{queue}-s{number}"
        self.encoded = _encode(
            {"id": self.id, "seq": number, "event": self.name, "time_ms": self.time_ms, **(self.fields or {})}
        )


def body_of(events: Iterable[bytes], now: float) -> bytes:
    """Return the body of a request with encoded events.

    :param now: seconds since 1970.
    """
    return b'{"time_ms":%d,"events":[%s]}' % (int(now * 1000), b",".join(events))


class Batches:
    """The events that wait to be sent, and how many of them the next request has.

    :param selected: the names of the events to send.
    :param max_body: bytes of a request body.
    :param agents: knows the fields of their events.
    :ivar acked: the position up to which the receiver has acknowledged everything.
    :ivar loaded: the position up to which events of the queue have been added.
    :ivar reset_done: the number of the last reset that the receiver has acknowledged; 0 for none.
    :ivar reset: the number of the reset that is being sent; 0 for none.
    :ivar sent: events acknowledged, by name.
    :ivar rejected: events dropped because the receiver fails with them, by name.
    """

    def __init__(self, selected: Collection[str], max_body: int, agents: Agents) -> None:
        self._selected = frozenset(selected)
        self._max_body = max_body
        self._agents = agents
        self.sent: dict[str, int] = {}
        self.rejected: dict[str, int] = {}
        self.clear("")

    def clear(self, queue: str) -> None:
        """Forget everything: this node was not the sender, or the queue has another name now.

        :param queue: the name of the queue.
        """
        self.queue = queue
        self.acked = self.loaded = self.reset_done = self.reset = 0
        self.limit = MAX_EVENTS
        self._events: deque[_Event] = deque()
        self._attempt = 0  # number of events in the last request
        self._snapshot: Snapshot | None = None
        self._snapshot_position = 0
        self._reset_begun = False
        self._contacts: set[tuple[Id, Id]] = set()
        self.view: set[Id] = set()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def room(self) -> int:
        """Number of events of the queue that may be added."""
        return MAX_EVENTS - sum(1 for event in self._events if event.position)

    # Adding

    def needs_reset(self, reset: int) -> bool:
        """Return whether a snapshot is needed for the reset of this number."""
        return reset > self.reset_done and (not self.reset or (self.reset < reset and not self._reset_begun))

    def start_reset(self, reset: int, snapshot: Snapshot, position: int, now: float) -> None:
        """Send the whole state before anything else.

        :param position: of the newest event of the queue when the snapshot was taken, or earlier.
        """
        # what was not acknowledged is in the queue, and is added again
        self._events.clear()
        self.loaded = self.acked
        self.reset, self._reset_begun = reset, False
        self._snapshot, self._snapshot_position = snapshot, position
        self.view = set(snapshot.online)
        self._contacts = set(snapshot.contacts or ())
        if "presence_reset" in self._selected:
            for fields in _parts(snapshot, self._max_body - _ENVELOPE - 200):
                self._events.append(_Event("presence_reset", int(now * 1000), fields))
        if self._events:
            self._events[-1].is_last_part = True
        else:
            self.reset_done, self.reset = reset, 0

    def start_from(self, online: Iterable[Id]) -> None:
        """Set the agents that are online according to the broker. Events of the queue change it."""
        self.view = set(online)

    def add(self, items: Iterable[WebhookItem]) -> None:
        """Add events of the queue."""
        for item in items:
            if item.position > self.loaded:
                self.loaded = item.position
                self._events.append(_Event(item.kind, item.time_ms, self._fields(item), item.position))
        self._skip()

    def _fields(self, item: WebhookItem) -> dict[str, Any] | None:
        """Return the fields of an event, or None if it is not to be sent."""
        is_older = self._snapshot is not None and item.position <= self._snapshot_position
        if item.kind in ("contact_online", "contact_offline"):
            conversation_id, contact_id = _decode_member(str(_decode_id.decode(item.data)))
            is_there = (contact_id, conversation_id) in self._contacts
            if is_older and (item.kind == "contact_online") is not is_there:
                return None
            fields = {"contact_id": contact_id, "conversation_id": conversation_id}
            return fields if item.kind in self._selected else None
        if item.kind not in ("agent_online", "agent_offline"):
            fields = _decode_fields(item.data)
            if item.kind == "agent_status" and is_older and fields["status"] != self._agents.status(fields["user_id"]):
                return None
            return fields if item.kind in self._selected else None
        user_id = _decode_id.decode(item.data)
        is_online = item.kind == "agent_online"
        if is_older and is_online is not (user_id in self.view):
            return None  # the receiver has the later state already
        if is_online:
            self.view.add(user_id)
            fields = {"user_id": user_id, "status": self._agents.status(user_id)}
        else:
            self.view.discard(user_id)
            last_seen = self._agents.last_seen(user_id)
            fields = {"user_id": user_id, "last_seen_ms": item.time_ms if last_seen is None else last_seen}
        return fields if item.kind in self._selected else None

    def remove_heartbeats(self) -> None:
        """Remove the heartbeats that were not acknowledged: later ones replace them."""
        if any(event.name == "heartbeat" for event in self._events):
            self._events = deque(event for event in self._events if event.name != "heartbeat")

    def add_heartbeats(self, now: float) -> None:
        """Add a heartbeat of each agent online."""
        for user_id in self.view:
            last_active = self._agents.last_active(user_id)
            if last_active is not None:
                fields = {"user_id": user_id, "last_activity_ms": last_active}
                self._events.append(_Event("heartbeat", int(now * 1000), fields))

    # Sending

    def next(self, first_number: int) -> list[bytes]:
        """Return the encoded events of the next request.

        :param first_number: the first of `MAX_EVENTS` reserved sequence numbers.
        """
        encoded: list[bytes] = []
        size, number = _ENVELOPE, first_number
        self._attempt = 0
        for event in self._events:
            if event.fields is not None:
                if len(encoded) >= self.limit:
                    break
                if not event.number:
                    event.assign(number, self.queue)
                    number += 1
                size += len(event.encoded) + 1
                if encoded and size > self._max_body:
                    break
                encoded.append(event.encoded)
            self._attempt += 1
        return encoded

    def done(self, outcome: Delivery) -> None:
        """Take the result of the last request of `next`."""
        attempted = sum(1 for _, event in zip(range(self._attempt), self._events, strict=False) if event.fields)
        if outcome is Delivery.ACKNOWLEDGED:
            for _ in range(self._attempt):
                event = self._events.popleft()
                if event.fields is not None:
                    self.sent[event.name] = self.sent.get(event.name, 0) + 1
                self._passed(event)
            self._skip()
            self.limit = min(MAX_EVENTS, self.limit * 2)
        elif outcome is Delivery.FAILED:
            if attempted == 1:
                next(event for event in self._events if event.fields is not None).failures += 1
            self.limit = max(1, attempted // 2)

    @property
    def has_poison(self) -> bool:
        """Whether the first event has failed so often on its own that it may be the reason."""
        return bool(self._events) and self._events[0].failures >= POISON_FAILURES

    def drop_poison(self) -> str:
        """Drop the first event, and return its name and id."""
        event = self._events.popleft()
        self.rejected[event.name] = self.rejected.get(event.name, 0) + 1
        self._passed(event)
        self._skip()
        return f"{event.name} {event.id}"

    def _passed(self, event: _Event) -> None:
        """Note that an event is done with."""
        self.acked = max(self.acked, event.position)
        if event.name == "presence_reset":
            self._reset_begun = True
            if event.is_last_part:
                self.reset_done, self.reset = self.reset, 0

    def _skip(self) -> None:
        """Pass the first events if they are not to be sent."""
        while self._events and self._events[0].fields is None:
            self._passed(self._events.popleft())


def _parts(snapshot: Snapshot, max_size: int) -> list[dict[str, Any]]:
    """Return the fields of `presence_reset`, in parts of at most `max_size` bytes."""
    parts: list[dict[str, Any]] = []
    part: dict[str, Any] = {}
    size = max_size

    def put(key: str, entry: Any, length: int) -> None:
        nonlocal part, size
        if size + length > max_size:
            part = {"online": [], "status": {}}
            if snapshot.contacts is not None:
                part["contacts"] = []
            parts.append(part)
            size = 0
        size += length
        if key == "status":
            part[key][str(entry[0])] = entry[1]
        else:
            part[key].append(entry)

    for user_id in snapshot.online:
        status = snapshot.status.get(str(user_id))
        put("online", user_id, 2 * len(_encode(user_id)) + (len(status) if status else 0) + 12)
        if status:
            put("status", (user_id, status), 0)
    for contact_id, conversation_id in snapshot.contacts or ():
        contact = {"contact_id": contact_id, "conversation_id": conversation_id}
        put("contacts", contact, len(_encode(contact)) + 1)
    if not parts:
        part = {"online": [], "status": {}}
        if snapshot.contacts is not None:
            part["contacts"] = []
        parts.append(part)
    for number, one in enumerate(parts, 1):
        one |= {"part": number, "parts": len(parts)}
    return parts
