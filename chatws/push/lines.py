"""A backend's line as JSON (docs/protocol.md §3): the one place that knows what may come in.

How the contract is read where it leaves a choice:

- A key whose value is null counts as left out. Unknown keys are ignored, but not what is wrong with their JSON.
- A line with both `event` and `op` is refused (`bad_message`): whatever was meant, half of it would not be done.
- A line that is valid JSON but no object is `bad_json`, as one that is no JSON at all.
- A `\\u` escape of half a surrogate pair is `bad_json`. RFC 8259 §8.2 calls its effect unpredictable.
- `id` may stand on an `op` as well; it is echoed, and means nothing else there. As an idempotency key the integer 5
  and the string "5" are the same.

`msgspec` skips over what it is not asked for (here: `data`, and unknown keys), and while it does so it holds to the
grammar of RFC 8259 in everything but one: it does not look at the bytes of strings. Decoding the line as UTF-8 first
makes up for that; `tests/test_push_lines.py` compares the two with Python's parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

import msgspec

from chatws.brokers.contract import EVERYONE
from chatws.chat.audience import conversation_channel, user_channel
from chatws.chat.messages import RESERVED_EVENTS
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_id

__all__ = [
    "MAX_KEY_CHARACTERS",
    "MAX_USER_IDS",
    "PLAIN",
    "Auth",
    "Disconnect",
    "LineError",
    "Operation",
    "Ping",
    "Presence",
    "Publish",
    "RequestId",
    "To",
    "Unsubscribe",
    "parse_line",
    "parse_plain",
]

#: Users that one `to` may name.
MAX_USER_IDS = 10_000
#: Characters of an idempotency key.
MAX_KEY_CHARACTERS = 128
#: Beginnings of lines that are kept at hand, each with the name in it.
MAX_HEADS = 1024

#: The `id` of a line, as the backend wrote it.
RequestId: TypeAlias = int | str
#: The channels that a `to` stands for.
To: TypeAlias = tuple[str, ...]


class LineError(ClientError):
    """A line that cannot be honoured.

    :ivar request_id: the line's `id` where it has a proper one, to be echoed.
    """

    def __init__(self, code: ErrorCode, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(code, message)
        self.request_id = request_id


class Publish(msgspec.Struct, frozen=True, gc=False):
    """An event to publish.

    :ivar data: the JSON object to the byte as the backend wrote it.
    :ivar to: the channels of its audience, or None for the event's default.
    :ivar request_id: the `id`, to be echoed.
    :ivar key: the same as an idempotency key.
    :ivar ack: answer also when all went well.
    """

    event: str
    data: bytes
    to: To | None = None
    except_user_id: Id | None = None
    request_id: RequestId | None = None
    key: str | None = None
    ack: bool = False
    transient: bool = False


#: What a line asks for that says an event and its data: nothing but that it is published.
PLAIN = Publish("", b"")


class _Operation(msgspec.Struct, tag_field="op", kw_only=True):
    id: RequestId | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            _check_key(self.id)

    @property
    def request_id(self) -> RequestId | None:
        """To be echoed."""
        return self.id


class Auth(_Operation, tag="auth", kw_only=True):
    """Says the secret; the first line where one is configured."""

    secret: str


class Disconnect(_Operation, tag="disconnect", kw_only=True):
    """Close that user's connections. `ban`: they are told not to come back."""

    user_id: Id
    reason: str | None = None
    ban: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.user_id = parse_id(self.user_id, "user_id")


class Unsubscribe(_Operation, tag="unsubscribe", kw_only=True):
    """Take the conversation away from that user's connections."""

    user_id: Id
    conversation_id: Id

    def __post_init__(self) -> None:
        super().__post_init__()
        self.user_id = parse_id(self.user_id, "user_id")
        self.conversation_id = parse_id(self.conversation_id, "conversation_id")


class Presence(_Operation, tag="presence", kw_only=True):
    """Who is online? `detail`: with which connections."""

    detail: bool | None = None


class Ping(_Operation, tag="ping", kw_only=True):
    """Are you there?"""


Operation: TypeAlias = Auth | Disconnect | Unsubscribe | Presence | Ping

_NOTHING = msgspec.Raw(b"")


class _To(msgspec.Struct, gc=False):
    conversation_id: Id | None = None
    user_id: Id | None = None
    user_ids: list[Id] | None = None


class _Line(msgspec.Struct, gc=False):
    """A publish as it stands on the wire, and `op` to tell the other kind."""

    event: str | None = None
    data: msgspec.Raw = _NOTHING
    ack: bool | None = None
    id: RequestId | None = None
    to: _To | str | None = None
    except_user_id: Id | None = None
    transient: bool | None = None
    op: msgspec.Raw = _NOTHING


class _Kind(msgspec.Struct):
    """What can be told of a line that is no good."""

    event: msgspec.Raw = _NOTHING
    op: msgspec.Raw = _NOTHING
    id: msgspec.Raw = _NOTHING


_decode_line = msgspec.json.Decoder(_Line).decode
_event_of, _data_of = attrgetter("event"), attrgetter("data")
_rest_of = attrgetter("ack", "id", "to", "except_user_id", "transient", "op")
_NO_REST = _rest_of(_Line())
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_operation: Any = msgspec.json.Decoder(Operation).decode
_decode_id: Any = msgspec.json.Decoder(RequestId).decode

_BRACE = ord("{")
_HEAD, _BEFORE_DATA = re.compile(rb'\{"event":"([A-Za-z0-9_.:-]{1,64})"'), b',"data":'
_heads: dict[bytes, str] = {}
_first_of, _last_of = itemgetter(0), itemgetter(2)
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
#: msgspec names the field as `$.field`, or says which required one is missing.
_FIELD = re.compile(r"`\$\.([^`]+)`|required field `(\w+)`")
_OPERATIONS = "auth, disconnect, unsubscribe, presence, ping"
_MUST_BE = {
    "event": "a string",
    "id": "an integer or a string",
    "ack": "true or false",
    "transient": "true or false",
    "ban": "true or false",
    "detail": "true or false",
    "to": '"everyone" or an object with conversation_id, user_id or user_ids',
    "to.user_ids": "an array of ids",
    "op": "a string",
    "secret": "a string",
    "reason": "a string",
}


def parse_line(line: bytes) -> Publish | Operation:
    """One line, without its end.

    :raises LineError: `bad_json` (not one JSON object in valid UTF-8), `bad_message` with the field's name,
        `unknown_type` (an unknown `op`), or `reserved_event`.
    """
    try:
        if not line.isascii():
            line.decode()
        found = _decode_line(line)
        if found.op is _NOTHING:
            return _publish(found)
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # msgspec stops at the first wrong field: what stands behind it may be an `op`, or no JSON at all
    return _parse_with_care(line)


def parse_plain(lines: Sequence[bytes]) -> tuple[list[str], list[bytes]] | None:
    """Many lines that each say an event and its data and no more, as most do: in as few steps for each as can be.

    :return: the names, and what stands as `data`: each line is good if that is an object in JSON, of which nothing is
        known yet. None where any of the lines is something else, or is wrong: `parse_line` knows what.
    """
    whole = b"\n".join(lines)
    if b'"ack"' in whole:
        return None  # what most of the others say: they need not be decoded twice
    try:
        if not whole.isascii():
            whole.decode()
        # As PHP's json_encode writes it: between such a head and the last brace is the data, if it is an object.
        parts = [*map(bytes.partition, lines, repeat(_BEFORE_DATA))]
        heads, rests = [*map(_first_of, parts)], [*map(_last_of, parts)]
        names = [*map(_heads.get, heads)]
        if None in names:
            names = [*map(_name_in, heads)]
        if (
            None not in names
            and all(map(bytes.startswith, rests, repeat(b"{")))
            and all(map(bytes.endswith, rests, repeat(b"}}")))
        ):
            return names, [*map(bytes.removesuffix, rests, repeat(b"}"))]  # type: ignore[return-value]
        found = [*map(_decode_line, lines)]
        if [*map(_rest_of, found)].count(_NO_REST) != len(found):
            return None
        return [*map(_check_event, map(_event_of, found))], [*map(bytes, map(_data_of, found))]
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _name_in(head: bytes) -> str | None:
    """The event's name, if a line begins like this whose data follows.

    :raises ClientError: the name is none.
    """
    found = _HEAD.fullmatch(head)
    if found is None:
        return None
    if len(_heads) >= MAX_HEADS:
        _heads.clear()
    name = _heads[head] = _check_event(found[1].decode())
    return name


def _parse_with_care(line: bytes) -> Publish | Operation:
    try:
        line.decode()
        kind = _decode_kind(line)
    except UnicodeDecodeError:
        raise LineError(ErrorCode.BAD_JSON, "the line is not valid UTF-8") from None
    except msgspec.DecodeError:
        raise LineError(ErrorCode.BAD_JSON, "the line is not a JSON object") from None
    except RecursionError:
        raise LineError(ErrorCode.BAD_JSON, "the line is nested too deeply") from None
    try:
        if _is_given(kind.op):
            if _is_given(kind.event):
                raise ClientError(ErrorCode.BAD_MESSAGE, "a line has either event or op, not both")
            operation: Operation = _decode_operation(line)
            return operation
        return _publish(_decode_line(line))
    except msgspec.ValidationError as error:
        code, sentence = _explain(str(error))
        raise LineError(code, sentence, _request_id(kind.id)) from None
    except ClientError as error:
        raise LineError(error.code, error.message, _request_id(kind.id)) from None


def _publish(found: _Line) -> Publish:
    event = _check_event(found.event)
    data = bytes(found.data)
    if not data or data[0] != _BRACE:
        raise ClientError(ErrorCode.BAD_MESSAGE, "data must be an object" if data else "data is missing")
    request_id = found.id
    return Publish(
        event,
        data,
        None if found.to is None else _channels(found.to),
        None if found.except_user_id is None else parse_id(found.except_user_id, "except_user_id"),
        request_id,
        None if request_id is None else _check_key(request_id),
        found.ack is True,
        found.transient is True,
    )


@lru_cache(1024)
def _check_event(name: str | None) -> str:
    """The same name, and the same string for every event of that name: the log keeps thousands."""
    if name is None:
        raise ClientError(ErrorCode.BAD_MESSAGE, "event or op is missing")
    if _EVENT_NAME.fullmatch(name) is None:
        raise ClientError(ErrorCode.BAD_MESSAGE, "event must be 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    if name in RESERVED_EVENTS:
        raise ClientError(ErrorCode.RESERVED_EVENT, f"{name} is an event of the server's own")
    return name


def _check_key(request_id: RequestId) -> str:
    key = str(request_id)
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"id must have 1 to {MAX_KEY_CHARACTERS} characters")
    return key


def _channels(to: _To | str) -> To:
    if isinstance(to, str):
        if to != "everyone":
            raise ClientError(ErrorCode.BAD_MESSAGE, f"to must be {_MUST_BE['to']}")
        return (EVERYONE,)
    if (to.conversation_id is not None) + (to.user_id is not None) + (to.user_ids is not None) != 1:
        raise ClientError(ErrorCode.BAD_MESSAGE, "to must name one of conversation_id, user_id, user_ids")
    if to.conversation_id is not None:
        return (conversation_channel(parse_id(to.conversation_id, "to.conversation_id")),)
    if to.user_id is not None:
        return (user_channel(parse_id(to.user_id, "to.user_id")),)
    user_ids = to.user_ids or ()
    if not 1 <= len(user_ids) <= MAX_USER_IDS:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"to.user_ids must have 1 to {MAX_USER_IDS} ids")
    return tuple(dict.fromkeys([user_channel(parse_id(one, "to.user_ids")) for one in user_ids]))


def _is_given(value: msgspec.Raw) -> bool:
    return value is not _NOTHING and bytes(value) != b"null"


def _request_id(value: msgspec.Raw) -> RequestId | None:
    """The `id` of a line that is no good, where at least that one is."""
    try:
        request_id: RequestId = _decode_id(value)
        _check_key(request_id)
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return request_id


def _explain(complaint: str) -> tuple[ErrorCode, str]:
    found = _FIELD.search(complaint)
    if found is None:
        return ErrorCode.BAD_MESSAGE, "the line has a field of a wrong type"
    if found[2]:
        return ErrorCode.BAD_MESSAGE, f"{found[2]} is missing"
    field = found[1].partition("[")[0]
    if field == "op" and complaint.startswith("Invalid value"):
        return ErrorCode.UNKNOWN_TYPE, f"op must be one of {_OPERATIONS}"
    return ErrorCode.BAD_MESSAGE, f"{field} must be {_MUST_BE.get(field, 'an integer or a string')}"
