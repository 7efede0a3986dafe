"""Calls of the functions of the schema `chatws`, their arguments and their replies: one JSON text each way.

Channels and ids are sent as JSON. An id or a key may contain a NUL, which PostgreSQL's `text` cannot hold, so it is
escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from chatws.brokers.interface import KEY_SECONDS, Audience, Event, MemberData, NewEvent
from chatws.brokers.webhook_queue import NewWebhook, WebhookItem, WebhookReply
from chatws.ids import Id, parse_id

__all__ = [
    "Appended",
    "EventPage",
    "LeaseRow",
    "Polled",
    "Row",
    "decode_appended",
    "decode_data",
    "decode_leased",
    "decode_members",
    "decode_nodes",
    "decode_page",
    "decode_polled",
    "decode_webhooks",
    "encode_connection_counts",
    "encode_data",
    "encode_new_event",
    "encode_webhooks",
    "to_event",
]

#: A function that takes a lock must see what was committed before it obtained the lock, so it needs READ COMMITTED,
#: whatever the default of the role or database is. Both statements are sent as one message, and are one transaction.
_LOCKING = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "

APPEND = (
    f"{_LOCKING}SELECT chatws.append_events(%(new_events)s, %(epoch)s, %(seq)s, %(offset)s, %(append_id)s, %(wait)s,"
    " %(notify)s, %(poll_hint)s, %(now)s) AS reply"
)
POLL = "SELECT chatws.poll(%(epoch)s, %(seq)s, %(offset)s, %(append_id)s, %(limit)s, %(size)s) AS reply"
READ = "SELECT chatws.read(%(after)s, %(limit)s, %(size)s)::text AS reply"
OFFSET_RANGE = "SELECT first, last FROM chatws.offset_range()"
HEAD = "SELECT epoch, seq, event_offset, append_id FROM chatws.head()"
TRIM = f"{_LOCKING}SELECT chatws.trim(%(events)s, %(seconds)s, %(size)s, %(limit)s, %(now)s) AS deleted"
LEASE = f"{_LOCKING}SELECT chatws.renew_leases(%(space)s, %(node)s, %(connections)s, %(seconds)s, %(now)s) AS reply"
LEASE_WITH_WEBHOOKS = (
    f"{_LOCKING}SELECT chatws.renew_leases_with_webhooks(%(space)s, %(node)s, %(connections)s, %(seconds)s,"
    " %(now)s, %(limit)s) AS reply"
)
ADD_WEBHOOKS = f"{_LOCKING}SELECT chatws.add_webhooks(%(webhooks)s, %(reset)s, %(limit)s, %(now)s)"
EXCHANGE_WEBHOOKS = (
    f"{_LOCKING}SELECT chatws.exchange_webhooks(%(owner)s, %(seconds)s, %(name)s, %(acked)s, %(after)s, %(limit)s,"
    " %(reset_done)s, %(numbers)s, %(epoch)s, %(now)s) AS reply"
)
ONLINE = "SELECT chatws.online(%(space)s, %(now)s) AS reply"
NODES_WITHOUT = "SELECT chatws.nodes_without(%(space)s, %(now)s) AS reply"
SET_DATA = f"{_LOCKING}SELECT chatws.set_data(%(space)s, %(member)s, %(data)s, %(seconds)s, %(now)s) AS changed"
DATA = "SELECT chatws.data(%(space)s, %(now)s) AS reply"
EXTEND_POLL_HINT = "SELECT chatws.extend_poll_hint(%(seconds)s)"
NOTIFY = "SELECT pg_notify('chatws', %(payload)s)"
LISTEN = "LISTEN chatws"


class _NewEventRow(msgspec.Struct, omit_defaults=True, gc=False):
    e: str
    c: str
    d: str
    x: str | None = None
    k: str | None = None
    t: bool = False
    s: float = 0.0


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A stored event. `offset` is 0 for a transient one."""

    seq: int
    offset: int
    time: float
    append_id: int
    name: str
    channels: str
    except_user_id: str | None
    data: str


class Polled(msgspec.Struct):
    """The reply of `chatws.poll`.

    :ivar upto: `events` is complete up to this sequence number.
    :ivar more: there are more events after it.
    :ivar lost: the history no longer holds events that this node has read.
    :ivar outbox: events wait in the outbox.
    """

    epoch: str
    upto: int
    more: bool = False
    lost: bool = False
    outbox: bool = False
    events: list[Row] = []


class EventPage(msgspec.Struct):
    """The reply of `chatws.read`. `more`: it was cut for its size."""

    events: list[Row]
    more: bool


class Appended(msgspec.Struct):
    """The reply of `chatws.append_events`.

    :ivar busy: nothing was done, because another node is appending.
    :ivar own_seq: sequence number before the first new event of this node.
    :ivar own_offset: offset before it.
    :ivar moved: number of events taken from the outbox.
    :ivar duplicates: (index among the new events, offset, time) of each new event whose key was known.
    :ivar missed: the events between the position of this node and `own_seq`, if they are few.
    """

    busy: bool = False
    epoch: str = ""
    own_seq: int = 0
    own_offset: int = 0
    time: float = 0.0
    append_id: int = 0
    moved: int = 0
    duplicates: list[tuple[int, int, float]] | None = None
    missed: list[Row] | None = None


class LeaseRow(msgspec.Struct):
    """The reply of `chatws.renew_leases`: `user_key`s of users that came online and that went offline, and numbers."""

    joined: list[str]
    left: list[str]
    held: int
    online: int


class WebhookRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A queued event of webhooks. Of a change of presence, `data` is the key of the member, otherwise JSON."""

    position: int
    time_ms: int
    kind: str
    data: str


class WebhookPage(msgspec.Struct):
    """The reply of `chatws.exchange_webhooks`, with one more item than was asked for if there are more."""

    name: str
    first: int
    queued: int
    dropped: tuple[int, int, int]
    last: int
    reset: int
    items: list[WebhookRow]


decode_appended = msgspec.json.Decoder(Appended).decode
decode_polled = msgspec.json.Decoder(Polled).decode
decode_page = msgspec.json.Decoder(EventPage).decode
_decode_leased = msgspec.json.Decoder(LeaseRow).decode
_decode_webhooks = msgspec.json.Decoder(WebhookPage).decode
_decode_names = msgspec.json.Decoder(list[str]).decode
_decode_data = msgspec.json.Decoder(list[tuple[str, str, float]]).decode
_decode_channels = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_id: msgspec.json.Decoder[Id] = msgspec.json.Decoder(int | str)
_encode = msgspec.json.Encoder().encode
_ESCAPED = re.compile(r"\\(.)")


def _escape(text: str) -> str:
    """Return `text` in a form that PostgreSQL can store."""
    if "\\" in text or "\0" in text:
        text = text.replace("\\", "\\\\").replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: "\0" if match[1] == "0" else match[1], text) if "\\" in text else text


@lru_cache(4096)
def _audience_as_json(audience: Audience) -> tuple[str, str | None]:
    except_user_id = audience.except_user_id
    return _encode(audience.channels).decode(), None if except_user_id is None else _encode(except_user_id).decode()


@lru_cache(4096)
def _to_audience(channels: str, except_user_id: str | None) -> Audience:
    return Audience(_decode_channels(channels), None if except_user_id is None else _decode_id.decode(except_user_id))


def encode_new_event(new_event: NewEvent) -> bytes:
    """Encode one new event. Several, separated by commas and in brackets, are an argument of `chatws.append_events`.

    :raises UnicodeDecodeError: its data is not UTF-8.
    """
    channels, except_user_id = _audience_as_json(new_event.audience)
    key = None if new_event.key is None else _escape(new_event.key)
    extra = new_event.key_seconds - KEY_SECONDS
    return _encode(
        _NewEventRow(new_event.name, channels, new_event.data.decode(), except_user_id, key, new_event.transient, extra)
    )


def to_event(row: Row) -> Event:
    """Return the event of a stored row."""
    audience = _to_audience(row.channels, row.except_user_id)
    return Event(row.offset, row.name, audience, row.data.encode(), row.time)


def encode_connection_counts(connection_counts: Mapping[Id, int | None]) -> str:
    """Encode an argument of `chatws.renew_leases`."""
    return _encode(
        [
            (_escape(str(user_id)), user_id if isinstance(user_id, int) else None, n)
            for user_id, n in connection_counts.items()
        ]
    ).decode()


def decode_leased(reply: str) -> tuple[list[tuple[Id, bool]], int, int]:
    """Decode the reply of `chatws.renew_leases`: the changed users, and the numbers held by this node and online."""
    leased = _decode_leased(reply)
    changed = [(user_id, True) for user_id in _to_ids(leased.joined)]
    changed += [(user_id, False) for user_id in _to_ids(leased.left)]
    return changed, leased.held, leased.online


def decode_members(reply: str) -> list[Id]:
    """Decode the reply of `chatws.online`."""
    return _to_ids(_decode_names(reply))


def decode_nodes(reply: str) -> list[str]:
    """Decode the reply of `chatws.nodes_without`."""
    return _decode_names(reply)


def encode_data(member: Id, data: str | None) -> tuple[str, str | None]:
    """Encode a member and its data, the arguments of `chatws.set_data`."""
    return _escape(str(member)), None if data is None else _escape(data)


def decode_data(reply: str) -> dict[Id, MemberData]:
    """Decode the reply of `chatws.data`."""
    rows = _decode_data(reply)
    members = _to_ids([member for member, _, _ in rows])
    return {
        member: MemberData(_unescape(data), expires_at)
        for member, (_, data, expires_at) in zip(members, rows, strict=True)
    }


def _to_ids(keys: Sequence[str]) -> list[Id]:
    # keys were canonical when they were stored: digits are an integer
    return [parse_id(_unescape(key), "user_id") for key in keys]


def encode_webhooks(webhooks: Sequence[NewWebhook]) -> str:
    """Encode an argument of `chatws.add_webhooks`."""
    return _encode([(kind, data.decode()) for kind, data in webhooks]).decode()


def decode_webhooks(reply: str | None, limit: int) -> WebhookReply:
    """Decode the reply of `chatws.exchange_webhooks`.

    :param limit: number of events that were asked for.
    """
    if reply is None:
        return WebhookReply()
    page = _decode_webhooks(reply)
    items = [
        WebhookItem(row.position, row.time_ms, row.kind, _webhook_data(row.kind, row.data))
        for row in page.items[:limit]
    ]
    more = len(page.items) > limit
    return WebhookReply(True, page.name, items, more, page.first, page.reset, 0.0, page.queued, page.dropped, page.last)


def _webhook_data(kind: str, data: str) -> bytes:
    return _encode(_to_ids([data])[0]) if kind.endswith(("_online", "_offline")) else data.encode()
