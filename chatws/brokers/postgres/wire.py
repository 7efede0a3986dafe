"""What is said to the functions of the schema `chatws`, and what they answer: one JSON text each way.

Channels and ids travel as JSON. A NUL may stand in an id or a key, as JSON can spell it, but not in PostgreSQL's
`text`: it is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec

from chatws.brokers.contract import Audience, Draft, Event
from chatws.ids import Id, parse_id

__all__ = [
    "Appended",
    "Leased",
    "Page",
    "Polled",
    "Row",
    "decode_appended",
    "decode_leased",
    "decode_page",
    "decode_polled",
    "decode_users",
    "encode_draft",
    "encode_tabs",
    "to_event",
]

#: What takes a lock must see what was committed before it had it, so it needs READ COMMITTED, whatever the role's or
#: the database's default is. Both statements travel as one message, and are one transaction.
_LOCKING = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "

APPEND = (
    f"{_LOCKING}SELECT chatws.append(%(drafts)s, %(epoch)s, %(place)s, %(offset)s, %(stamp)s, %(wait)s, %(notify)s,"
    " %(awake)s, %(now)s) AS answer"
)
POLL = "SELECT chatws.poll(%(epoch)s, %(place)s, %(offset)s, %(stamp)s, %(limit)s, %(size)s) AS answer"
READ = "SELECT chatws.read(%(after)s, %(limit)s, %(size)s)::text AS answer"
BOUNDS = "SELECT first, last FROM chatws.bounds()"
HEAD = "SELECT epoch, place, log_offset, stamp FROM chatws.head()"
TRIM = f"{_LOCKING}SELECT chatws.trim(%(events)s, %(seconds)s, %(size)s, %(limit)s, %(now)s) AS deleted"
LEASE = f"{_LOCKING}SELECT chatws.lease(%(node)s, %(tabs)s, %(seconds)s, %(now)s) AS answer"
ONLINE = "SELECT chatws.online(%(now)s) AS answer"
STAY_AWAKE = "SELECT chatws.stay_awake(%(seconds)s)"
NOTIFY = "SELECT pg_notify('chatws', %(payload)s)"
LISTEN = "LISTEN chatws"


class _Draft(msgspec.Struct, omit_defaults=True, gc=False):
    e: str
    c: str
    d: str
    x: str | None = None
    k: str | None = None
    t: bool = False


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An event as it is stored. `offset` is 0 for a transient one."""

    place: int
    offset: int
    time: float
    stamp: int
    name: str
    channels: str
    except_user_id: str | None
    data: str


class Polled(msgspec.Struct):
    """
    :ivar upto: nothing up to this place is missing in `events`.
    :ivar more: there is more behind it.
    :ivar lost: the log does not hold what this node has seen of it.
    :ivar outbox: something waits for its place.
    """

    epoch: str
    upto: int
    more: bool = False
    lost: bool = False
    outbox: bool = False
    events: list[Row] = []


class Page(msgspec.Struct):
    """:ivar more: it was cut for its size."""

    events: list[Row]
    more: bool


class Appended(msgspec.Struct):
    """
    :ivar busy: nothing was done, as somebody else is appending.
    :ivar own_place: the place before the first new event of ours, and :ivar own_offset: its offset.
    :ivar moved: how many came out of the outbox.
    :ivar duplicates: (index among the drafts, offset, time) of each that was known.
    :ivar missed: what lies between the place that we named and `own_place`, if that is little.
    """

    busy: bool = False
    epoch: str = ""
    own_place: int = 0
    own_offset: int = 0
    time: float = 0.0
    stamp: int = 0
    moved: int = 0
    duplicates: list[tuple[int, int, float]] | None = None
    missed: list[Row] | None = None


class Leased(msgspec.Struct):
    """The users who are online now and were not, those who were and are not, as `user_key`s."""

    came: list[str]
    went: list[str]
    held: int
    online: int


decode_appended = msgspec.json.Decoder(Appended).decode
decode_polled = msgspec.json.Decoder(Polled).decode
decode_page = msgspec.json.Decoder(Page).decode
_decode_leased = msgspec.json.Decoder(Leased).decode
_decode_keys = msgspec.json.Decoder(list[str]).decode
_decode_channels = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_id: msgspec.json.Decoder[Id] = msgspec.json.Decoder(int | str)
_encode = msgspec.json.Encoder().encode
_ESCAPED = re.compile(r"\\(.)")


def _escape(text: str) -> str:
    """`text` as PostgreSQL can hold it."""
    if "\\" in text or "\0" in text:
        text = text.replace("\\", "\\\\").replace("\0", "\\0")
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: "\0" if found[1] == "0" else found[1], text) if "\\" in text else text


@lru_cache(4096)
def _audience_as_json(audience: Audience) -> tuple[str, str | None]:
    excepted = audience.except_user_id
    return _encode(audience.channels).decode(), None if excepted is None else _encode(excepted).decode()


@lru_cache(4096)
def _to_audience(channels: str, except_user_id: str | None) -> Audience:
    return Audience(_decode_channels(channels), None if except_user_id is None else _decode_id.decode(except_user_id))


def encode_draft(draft: Draft) -> bytes:
    """One draft; several of them, between brackets, are what `chatws.append` takes.

    :raises UnicodeDecodeError: its data is not UTF-8.
    """
    channels, excepted = _audience_as_json(draft.audience)
    key = None if draft.key is None else _escape(draft.key)
    return _encode(_Draft(draft.name, channels, draft.data.decode(), excepted, key, draft.transient))


def to_event(row: Row) -> Event:
    """What the listener is told of."""
    audience = _to_audience(row.channels, row.except_user_id)
    return Event(row.offset, row.name, audience, row.data.encode(), row.time)


def encode_tabs(tabs: Mapping[Id, int | None]) -> str:
    """The argument of `chatws.lease`."""
    return _encode(
        [(_escape(str(user_id)), user_id if isinstance(user_id, int) else None, n) for user_id, n in tabs.items()]
    ).decode()


def decode_leased(answer: str) -> tuple[list[tuple[Id, bool]], int, int]:
    """What `chatws.lease` answers: who has changed, how many this node holds, how many are online."""
    leased = _decode_leased(answer)
    changed = [(one, True) for one in _to_ids(leased.came)] + [(one, False) for one in _to_ids(leased.went)]
    return changed, leased.held, leased.online


def decode_users(answer: str) -> list[Id]:
    """What `chatws.online` answers."""
    return _to_ids(_decode_keys(answer))


def _to_ids(keys: Sequence[str]) -> list[Id]:
    # canonical since they came in: digits are an integer
    return [parse_id(_unescape(key), "user_id") for key in keys]
