"""A browser's messages and the server's replies as JSON (docs/protocol.md §1, §2): the one place that knows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from chatws.brokers.contract import Event
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_id

__all__ = [
    "PONG",
    "RESERVED_EVENTS",
    "Activity",
    "Auth",
    "Message",
    "Ping",
    "Position",
    "Presence",
    "Subscribe",
    "Typing",
    "Unsubscribe",
    "authenticated",
    "error",
    "event_payloads",
    "parse",
    "presence",
    "status_data",
    "subscribed",
    "typing_data",
    "unsubscribed",
]

#: Names that a backend may not push: the server's replies and the client library's own events.
RESERVED_EVENTS = frozenset(
    [
        "authenticated",
        "subscribed",
        "unsubscribed",
        "presence",
        "error",
        "pong",
        "connected",
        "disconnected",
        "reconnect_failed",
        "resync",
        "recovered",
    ]
)


class Position(msgspec.Struct, frozen=True, gc=False):
    """A place in the log, "EPOCH:OFFSET" on the wire."""

    epoch: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Never fails: what is no position becomes one that no log can recover from."""
        epoch, colon, offset = text.rpartition(":")
        if colon and len(offset) <= 16 and offset.isascii() and offset.isdigit():
            return cls(epoch, int(offset))
        return cls("", -1)


class _Message(msgspec.Struct, tag_field="type", gc=False):
    """What all have in common."""


class Auth(_Message, tag="auth"):
    """Who I am."""

    user_id: int | str | None = None
    token: str | None = None
    last_event_id: str | None = None


class Subscribe(_Message, tag="subscribe"):
    """Send me this conversation's events."""

    conversation_id: int | str
    last_event_id: str | None = None


class Unsubscribe(_Message, tag="unsubscribe"):
    """Stop sending them."""

    conversation_id: int | str


class Typing(_Message, tag="typing"):
    """Tell the others in the conversation."""

    conversation_id: int | str
    is_typing: bool = True


class Ping(_Message, tag="ping"):
    """Heartbeat. `last_activity`: milliseconds since 1970."""

    last_activity: float | None = None


class Activity(_Message, tag="activity"):
    """The person did something."""

    activity_type: str = ""


class Presence(_Message, tag="presence"):
    """Which agents are online now?"""


Message = Auth | Subscribe | Unsubscribe | Typing | Ping | Activity | Presence

_decode: Any = msgspec.json.Decoder(Message).decode
_encode = msgspec.json.Encoder().encode
#: msgspec names the field as `$.field`, or says which required one is missing.
_FIELD = re.compile(r"`\$\.(\w+)[^`]*`|required field `(\w+)`")
_TYPES = "auth, subscribe, unsubscribe, typing, ping, activity, presence"


def parse(text: str | bytes) -> Message:
    """One text message.

    :raises ClientError: `bad_json`, `bad_message` with the field's name, or `unknown_type`.
    """
    try:
        message: Message = _decode(text)
    except msgspec.ValidationError as exception:
        raise _explain(str(exception)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise ClientError(ErrorCode.BAD_JSON, "the message is not valid JSON") from None
    kind = type(message)
    if kind is Subscribe or kind is Unsubscribe or kind is Typing:
        message.conversation_id = parse_id(message.conversation_id, "conversation_id")  # type: ignore[union-attr]
    elif kind is Auth and message.user_id is not None:  # type: ignore[union-attr]
        message.user_id = parse_id(message.user_id, "user_id")  # type: ignore[union-attr]
    return message


def _explain(complaint: str) -> ClientError:
    found = _FIELD.search(complaint)
    if found is None:
        return ClientError(ErrorCode.BAD_MESSAGE, "a message must be a JSON object")
    field = found[1] or found[2]
    if found[2]:
        return ClientError(ErrorCode.BAD_MESSAGE, f"{field} is missing")
    if field == "type" and complaint.startswith("Invalid value"):
        if complaint.partition("'")[2].rpartition("'")[0] in _TYPES.split(", "):
            return ClientError(ErrorCode.BAD_MESSAGE, "type is given more than once")
        return ClientError(ErrorCode.UNKNOWN_TYPE, f"type must be one of {_TYPES}")
    expected = complaint.partition(" - at ")[0].replace("`", "")
    return ClientError(ErrorCode.BAD_MESSAGE, f"{field}: {expected[0].lower()}{expected[1:]}")


# What goes out

#: The answer to `ping`, to the byte: old pages compare it.
PONG = b'{"type":"pong"}'


def authenticated(user_id: Id, connection_id: str, last_event_id: str, replayed: int | None, lost: bool) -> bytes:
    """:param replayed: how many missed events follow; None when the page asked for no recovery.
    :param lost: it did, and the log cannot prove that nothing is missing."""
    data: dict[str, Any] = {"user_id": user_id, "connection_id": connection_id}
    return _reply("authenticated", data, last_event_id, replayed, lost)


def subscribed(conversation_id: Id, last_event_id: str, replayed: int | None, lost: bool) -> bytes:
    """The parameters are those of `authenticated`."""
    return _reply("subscribed", {"conversation_id": conversation_id}, last_event_id, replayed, lost)


def _reply(event: str, data: dict[str, Any], last_event_id: str, replayed: int | None, lost: bool) -> bytes:
    if lost:
        data["recovered"] = False
    elif replayed is not None:
        data["recovered"] = True
        data["replayed"] = replayed
    data["last_event_id"] = last_event_id
    return _encode({"event": event, "data": data})


def unsubscribed(conversation_id: Id) -> bytes:
    """The answer to `unsubscribe`; also sent when a backend took the conversation away."""
    return _encode({"event": "unsubscribed", "data": {"conversation_id": conversation_id}})


def presence(online: list[Id]) -> bytes:
    """The answer to `presence`. `online`: sorted."""
    return _encode({"event": "presence", "data": {"online": online}})


def error(problem: ClientError, text: str | bytes = b"", message: Message | None = None) -> bytes:
    """:param text: the message that could not be honoured, for the `type` in `request`; or
    :param message: the same, parsed."""
    request: dict[str, Any] = {"type": None}
    if message is not None:
        request["type"] = message.__struct_config__.tag
        conversation_id = getattr(message, "conversation_id", None)
        if conversation_id is not None:
            request["conversation_id"] = conversation_id
    elif problem.code is not ErrorCode.BAD_JSON and text:
        request["type"] = _type_of(text)
    return _encode({"event": "error", "data": {"code": problem.code, "message": problem.message, "request": request}})


class _Typed(msgspec.Struct):
    type: Any = None


def _type_of(text: str | bytes) -> str | None:
    try:
        found = msgspec.json.decode(text, type=_Typed).type
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return found[:64] if isinstance(found, str) else None


def typing_data(conversation_id: Id, user_id: Id, is_typing: bool) -> bytes:
    """The `data` of a `typing` event."""
    return _encode({"conversation_id": conversation_id, "user_id": user_id, "is_typing": is_typing})


def status_data(agent_id: Id, status: str) -> bytes:
    """The `data` of an `agent_status` event."""
    return _encode({"agent_id": agent_id, "status": status})


_name_of, _data_of, _offset_of = attrgetter("name"), attrgetter("data"), attrgetter("offset")


@lru_cache(1024)
def _before_data(name: str) -> bytes:
    return b'{"event":"%b","data":' % name.encode()


def event_payloads(events: Sequence[Event], epoch: str) -> list[bytes]:
    """Pushed events as they go out. `data` stands as the backend wrote it, to the byte."""
    offsets = [*map(_offset_of, events)]
    parts = zip(map(_before_data, map(_name_of, events)), map(_data_of, events), offsets, strict=True)
    with_id = b'%%b%%b,"id":"%b:%%d"}' % epoch.encode().replace(b"%", b"%%")
    if all(offsets):
        return [*map(with_id.__mod__, parts)]
    return [with_id % (before, data, offset) if offset else b"%b%b}" % (before, data) for before, data, offset in parts]
