"""Parses a backend's lines (docs/protocol.md §3).

- A key whose value is null counts as omitted. Unknown keys are ignored, but their JSON must be valid.
- A line with both `event` and `op` is rejected (`bad_message`).
- Valid JSON that is not an object is `bad_json`, as is invalid JSON.
- A `\\u` escape of a lone surrogate is `bad_json`: RFC 8259 §8.2 calls its effect unpredictable.
- An `op` may have an `id` too, which is echoed. As an idempotency key, the integer 5 and the string "5" are the same.

`msgspec` skips the values that are not decoded here (`data` and unknown keys). It checks their grammar (RFC 8259) but
not the UTF-8 of their strings, so a line is decoded as UTF-8 first. tests/test_push_lines.py compares the result with
Python's parser.

`parse_simple_batch` is on the hot path and processes a batch field by field with `map`, so that the loops run in C.
`parse_line` is its plain reference, and the same test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import Any, TypeAlias

import msgspec

from chatws.chat.audience import (
    AGENTS_AUDIENCE,
    CONTACTS_EXCLUDED,
    EVERYONE,
    connection_channel,
    contact_channel,
    conversation_channel,
    conversation_contacts_channel,
    excluding,
    group_channel,
    user_channel,
)
from chatws.chat.messages import RESERVED_EVENTS
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_groups, parse_id, parse_ids
from chatws.push.operations import MAX_KEY_CHARACTERS, Op, RequestId, check_key

__all__ = ["MAX_USER_IDS", "SIMPLE", "LineError", "PublishLine", "To", "parse_line", "parse_simple_batch"]

#: Users in one `to`: bounds the audience that an event carries to every node.
MAX_USER_IDS = 10_000
#: Cached line beginnings, each with its event name: more than a backend has event names.
MAX_CACHED_STARTS = 1024

#: The channels that a `to` stands for.
To: TypeAlias = tuple[str, ...]


class LineError(ClientError):
    """An invalid line.

    :ivar request_id: the `id` of the line, to echo; None if it has no valid one.
    """

    def __init__(self, code: ErrorCode, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(code, message)
        self.request_id = request_id


class PublishLine(msgspec.Struct, frozen=True, gc=False):
    """An event to publish.

    :ivar data: the JSON object, byte for byte as the backend sent it.
    :ivar to: the channels of its audience, or None for the event's default.
    :ivar excluded: channels that exclude a contact or a connection.
    :ivar request_id: the `id`, to echo.
    :ivar key: the `id` as an idempotency key.
    :ivar ack: whether success is answered too.
    """

    event: str
    data: bytes
    to: To | None = None
    except_user_id: Id | None = None
    request_id: RequestId | None = None
    key: str | None = None
    ack: bool = False
    transient: bool = False
    excluded: tuple[str, ...] = ()


#: Stands for any line of `parse_simple_batch` where only its options matter: it has none.
SIMPLE = PublishLine("", b"")


_MISSING = msgspec.Raw(b"")


class _To(msgspec.Struct, gc=False):
    conversation_id: Id | None = None
    role: str | None = None
    user_id: Id | None = None
    user_ids: list[Id] | dict[str, Id] | None = None  # an object is a PHP array with gaps, see `parse_ids`
    contact_id: Id | None = None
    contact_ids: list[Id] | dict[str, Id] | None = None
    group: str | None = None
    groups: list[str] | dict[str, str] | None = None


class _Line(msgspec.Struct, gc=False):
    """The fields of a publish, and `op` to recognise other lines."""

    event: str | None = None
    data: msgspec.Raw = _MISSING
    ack: bool | None = None
    id: RequestId | None = None
    to: _To | str | None = None
    except_user_id: Id | None = None
    except_contact_id: Id | None = None
    except_connection_id: str | None = None
    transient: bool | None = None
    op: msgspec.Raw = _MISSING


class _Fields(msgspec.Struct):
    """The fields of an invalid line that determine its error."""

    event: msgspec.Raw = _MISSING
    op: msgspec.Raw = _MISSING
    id: msgspec.Raw = _MISSING


_decode_line = msgspec.json.Decoder(_Line).decode
_event_of, _data_of = attrgetter("event"), attrgetter("data")
_options_of = attrgetter(
    "ack", "id", "to", "except_user_id", "except_contact_id", "except_connection_id", "transient", "op"
)
_NO_OPTIONS = _options_of(_Line())
_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_operation: Any = msgspec.json.Decoder(Op).decode
_decode_id: Any = msgspec.json.Decoder(RequestId).decode

_BRACE = ord("{")
_LINE_START, _BEFORE_DATA = re.compile(rb'\{"event":"([A-Za-z0-9_.:-]{1,64})"'), b',"data":'
_event_names: dict[bytes, str] = {}
_first_of, _last_of = itemgetter(0), itemgetter(2)
_EVENT_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
#: The field in msgspec's messages: `$.field`, or the name of a missing one.
_FIELD = re.compile(r"`\$\.([^`]+)`|required field `(\w+)`")
_OPERATIONS = "auth, disconnect, unsubscribe, groups, status, presence, nodes, rebalance, ping"
_TARGETS = "conversation_id, user_id, user_ids, contact_id, contact_ids, group, groups"
_MUST_BE = {
    "event": "a string",
    "id": "an integer or a string",
    "ack": "true or false",
    "transient": "true or false",
    "ban": "true or false",
    "detail": "true or false",
    "except_connection_id": "a string",
    "to": f'"agents", "everyone" or an object with one of {_TARGETS}',
    "to.role": '"agent" or "contact"',
    "to.user_ids": "an array of ids",
    "to.contact_ids": "an array of ids",
    "to.group": "a string",
    "to.groups": "an array of strings",
    "op": "a string",
    "secret": "a string",
    "reason": "a string",
    "status": "a string",
}


def parse_line(line: bytes) -> PublishLine | Op:
    """Parse one line, without its newline.

    :raises LineError: `bad_json` (not one JSON object in valid UTF-8), `bad_message` with the field's name,
        `unknown_type` (an unknown `op`), or `reserved_event`.
    """
    try:
        if not line.isascii():
            line.decode()
        fields = _decode_line(line)
        if fields.op is _MISSING:
            return _to_publish_line(fields)
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # msgspec stops at the first invalid field, and an `op` or invalid JSON may follow it
    return _diagnose(line)


def parse_simple_batch(lines: Sequence[bytes]) -> tuple[list[str], list[bytes]] | None:
    """Parse lines that have only `event` and `data`, as most do.

    :return: the event names, and the bytes of `data`. The caller must check that these are JSON objects. None if any
        line has other fields or is invalid: use `parse_line` for each.
    """
    whole = b"\n".join(lines)
    if b'"ack"' in whole:
        return None  # most other lines have an ack: do not decode them twice
    try:
        if not whole.isascii():
            whole.decode()
        # In the form of PHP's json_encode, `data` extends from its key to the last brace but one.
        parts = [*map(bytes.partition, lines, repeat(_BEFORE_DATA))]
        starts, ends = [*map(_first_of, parts)], [*map(_last_of, parts)]
        names = [*map(_event_names.get, starts)]
        if None in names:
            names = [*map(_parse_start, starts)]
        if (
            None not in names
            and all(map(bytes.startswith, ends, repeat(b"{")))
            and all(map(bytes.endswith, ends, repeat(b"}}")))
        ):
            return names, [*map(bytes.removesuffix, ends, repeat(b"}"))]  # type: ignore[return-value]
        decoded = [*map(_decode_line, lines)]
        if [*map(_options_of, decoded)].count(_NO_OPTIONS) != len(decoded):
            return None
        return [*map(_check_event, map(_event_of, decoded))], [*map(bytes, map(_data_of, decoded))]
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _parse_start(start: bytes) -> str | None:
    """Return the event name of a line that starts with `start`, or None if it has another form.

    :raises ClientError: the name is invalid.
    """
    match = _LINE_START.fullmatch(start)
    if match is None:
        return None
    if len(_event_names) >= MAX_CACHED_STARTS:
        _event_names.clear()
    name = _event_names[start] = _check_event(match[1].decode())
    return name


def _diagnose(line: bytes) -> PublishLine | Op:
    """Parse an `op`, or find the error of an invalid line."""
    try:
        line.decode()
        fields = _decode_fields(line)
    except UnicodeDecodeError:
        raise LineError(ErrorCode.BAD_JSON, "the line is not valid UTF-8") from None
    except msgspec.DecodeError:
        raise LineError(ErrorCode.BAD_JSON, "the line is not a JSON object") from None
    except RecursionError:
        raise LineError(ErrorCode.BAD_JSON, "the line is nested too deeply") from None
    try:
        if _is_given(fields.op):
            if _is_given(fields.event):
                raise ClientError(ErrorCode.BAD_MESSAGE, "a line has either event or op, not both")
            operation: Op = _decode_operation(line)
            return operation
        return _to_publish_line(_decode_line(line))
    except msgspec.ValidationError as error:
        code, message = _explain(str(error))
        raise LineError(code, message, _request_id(fields.id)) from None
    except ClientError as error:
        raise LineError(error.code, error.message, _request_id(fields.id)) from None


def _to_publish_line(fields: _Line) -> PublishLine:
    event = _check_event(fields.event)
    data = bytes(fields.data)
    if not data or data[0] != _BRACE:
        raise ClientError(ErrorCode.BAD_MESSAGE, "data must be an object" if data else "data is missing")
    request_id = fields.id
    return PublishLine(
        event,
        data,
        None if fields.to is None else _channels(fields.to),
        None if fields.except_user_id is None else parse_id(fields.except_user_id, "except_user_id"),
        request_id,
        None if request_id is None else check_key(request_id),
        fields.ack is True,
        fields.transient is True,
        _excluded(fields),
    )


def _excluded(fields: _Line) -> tuple[str, ...]:
    excluded: list[str] = []
    if fields.except_contact_id is not None:
        excluded.append(excluding(contact_channel(parse_id(fields.except_contact_id, "except_contact_id"))))
    if fields.except_connection_id is not None:
        if not 1 <= len(fields.except_connection_id) <= MAX_KEY_CHARACTERS:
            text = f"except_connection_id must have 1 to {MAX_KEY_CHARACTERS} characters"
            raise ClientError(ErrorCode.BAD_MESSAGE, text)
        excluded.append(excluding(connection_channel(fields.except_connection_id)))
    return tuple(excluded)


@lru_cache(1024)
def _check_event(name: str | None) -> str:
    """Return the name if it is valid. The cache returns one string for all events of a name, which saves memory."""
    if name is None:
        raise ClientError(ErrorCode.BAD_MESSAGE, "event or op is missing")
    if _EVENT_NAME.fullmatch(name) is None:
        raise ClientError(ErrorCode.BAD_MESSAGE, "event must be 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    if name in RESERVED_EVENTS:
        raise ClientError(ErrorCode.RESERVED_EVENT, f"{name} is reserved for the server")
    return name


def _channels(to: _To | str) -> To:
    if isinstance(to, str):
        if to == "agents":
            return AGENTS_AUDIENCE.channels
        if to != "everyone":
            raise ClientError(ErrorCode.BAD_MESSAGE, f"to must be {_MUST_BE['to']}")
        return EVERYONE
    targets = (to.conversation_id, to.user_id, to.user_ids, to.contact_id, to.contact_ids, to.group, to.groups)
    if len(targets) - targets.count(None) != 1:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"to must name one of {_TARGETS}")
    if to.conversation_id is not None:
        return _conversation_channels(parse_id(to.conversation_id, "to.conversation_id"), to.role)
    if to.role is not None:
        raise ClientError(ErrorCode.BAD_MESSAGE, "to.role goes with to.conversation_id only")
    if to.user_id is not None:
        return (user_channel(parse_id(to.user_id, "to.user_id")),)
    if to.contact_id is not None:
        return (contact_channel(parse_id(to.contact_id, "to.contact_id")),)
    if to.group is not None:
        return (group_channel(parse_groups([to.group], "to.group")[0]),)
    if to.groups is not None:
        names = list(to.groups.values()) if isinstance(to.groups, dict) else to.groups
        if not names:
            raise ClientError(ErrorCode.BAD_MESSAGE, "to.groups must not be empty")
        return tuple(map(group_channel, parse_groups(names, "to.groups")))
    if to.user_ids is not None:
        return tuple(dict.fromkeys(map(user_channel, _parse_targets(to.user_ids, "to.user_ids"))))
    return tuple(dict.fromkeys(map(contact_channel, _parse_targets(to.contact_ids, "to.contact_ids"))))


def _conversation_channels(conversation_id: Id, role: str | None) -> To:
    channel = conversation_channel(conversation_id)
    if role is None:
        return (channel,)
    if role == "agent":
        return channel, CONTACTS_EXCLUDED
    if role == "contact":
        return (conversation_contacts_channel(conversation_id),)
    raise ClientError(ErrorCode.BAD_MESSAGE, f"to.role must be {_MUST_BE['to.role']}")


def _parse_targets(ids: list[Id] | dict[str, Id] | None, field: str) -> list[Id]:
    if not ids or len(ids) > MAX_USER_IDS:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"{field} must have 1 to {MAX_USER_IDS} ids")
    return parse_ids(ids, field)


def _is_given(value: msgspec.Raw) -> bool:
    return value is not _MISSING and bytes(value) != b"null"


def _request_id(value: msgspec.Raw) -> RequestId | None:
    """Return the `id` of an invalid line, or None if that is invalid too."""
    try:
        request_id: RequestId = _decode_id(value)
        check_key(request_id)
    except (ClientError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return request_id


def _explain(error: str) -> tuple[ErrorCode, str]:
    """Return the code and the message for a validation error of msgspec."""
    match = _FIELD.search(error)
    if match is None:
        return ErrorCode.BAD_MESSAGE, "a field of the line has the wrong type"
    if match[2]:
        return ErrorCode.BAD_MESSAGE, f"{match[2]} is missing"
    field = match[1].partition("[")[0]
    if field == "op" and error.startswith("Invalid value"):
        return ErrorCode.UNKNOWN_TYPE, f"op must be one of {_OPERATIONS}"
    return ErrorCode.BAD_MESSAGE, f"{field} must be {_MUST_BE.get(field, 'an integer or a string')}"
