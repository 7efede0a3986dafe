"""Parse clients' messages and encode replies and events (docs/protocol.md §1, §2).

Hot path: `event_payloads` processes a batch by columns. Its reference is `event_payload` in tests/chat_reference.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

import msgspec

from chatws.brokers.interface import Event
from chatws.chat.interfaces import Identity
from chatws.chat.presence.changes import ONLINE
from chatws.chat.presence.statuses import parse_status
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
    "Status",
    "Subscribe",
    "Typing",
    "Unsubscribe",
    "authenticated",
    "available",
    "contact_status_data",
    "error",
    "event_payloads",
    "groups",
    "parse",
    "presence",
    "status_data",
    "status_set",
    "subscribed",
    "typing_data",
    "unsubscribed",
]

#: Event names that backends may not publish: the server's replies and the client library's own events.
RESERVED_EVENTS = frozenset(
    [
        "authenticated",
        "subscribed",
        "unsubscribed",
        "presence",
        "status_set",
        "error",
        "pong",
        "contact_status",
        "groups",
        "available",
        "connected",
        "disconnected",
        "reconnect_failed",
        "resync",
        "recovered",
        "identity_changed",
        "token_failed",
    ]
)


#: Characters of a `last_event_id`: an epoch has 32 at most, an offset 16. Messages with longer ones would take memory
#: while they wait for a check.
MAX_POSITION_LENGTH = 64


class Position(msgspec.Struct, frozen=True, gc=False):
    """A position in the event history: "EPOCH:OFFSET" on the wire."""

    epoch: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parse a position. An invalid text becomes a position that no history can recover from."""
        epoch, colon, offset = text.rpartition(":")
        if colon and len(offset) <= 16 and offset.isascii() and offset.isdigit():
            return cls(epoch, int(offset))
        return cls("", -1)


class _Message(msgspec.Struct, tag_field="type", gc=False):
    """Base of the messages: `type` selects the class."""


class Auth(_Message, tag="auth"):
    """Authenticate, and recover the events after `last_event_id`."""

    user_id: int | str | None = None
    token: str | None = None
    last_event_id: str | None = None


class Subscribe(_Message, tag="subscribe"):
    """Subscribe to a conversation, and recover its events after `last_event_id`."""

    conversation_id: int | str
    last_event_id: str | None = None


class Unsubscribe(_Message, tag="unsubscribe"):
    """Unsubscribe from a conversation."""

    conversation_id: int | str


class Typing(_Message, tag="typing"):
    """Report that the user has started or stopped typing.

    :ivar role: "agent" tells only agents, as for an internal note; None tells all subscribers.
    """

    conversation_id: int | str
    is_typing: bool = True
    role: Literal["agent"] | None = None


class Ping(_Message, tag="ping"):
    """Heartbeat.

    :ivar last_activity: when the user was last active, in milliseconds since 1970, or None.
    :ivar idle_ms: milliseconds since then, or None. It does not depend on the page's clock, and precedes
        `last_activity`.
    """

    last_activity: float | None = None
    idle_ms: float | None = None


class Activity(_Message, tag="activity"):
    """Report an activity of the user."""

    activity_type: str = ""


class Presence(_Message, tag="presence"):
    """Ask for the agents online."""


class Status(_Message, tag="status"):
    """Set the agent's status."""

    status: str


Message = Auth | Subscribe | Unsubscribe | Typing | Ping | Activity | Presence | Status

_decode: Any = msgspec.json.Decoder(Message).decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_encode = msgspec.json.Encoder().encode
#: The field in an error of msgspec: `$.field`, or the name of a missing one.
_FIELD = re.compile(r"`\$\.(\w+)[^`]*`|required field `(\w+)`")
#: All types, for the error text.
_TYPES = "auth, subscribe, unsubscribe, typing, ping, activity, presence, status"


def parse(text: str | bytes) -> Message:
    """Parse a text message.

    :raises ClientError: `bad_json`, `bad_message` with the name of the field, or `unknown_type`.
    """
    try:
        message: Message = _decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as exception:
        raise _explain(text, exception) from None
    message_type = type(message)
    if message_type is Subscribe or message_type is Auth:
        last_event_id = message.last_event_id  # type: ignore[union-attr]
        if last_event_id is not None and len(last_event_id) > MAX_POSITION_LENGTH:
            message.last_event_id = ""  # type: ignore[union-attr]  # no position either
    if message_type is Subscribe or message_type is Unsubscribe or message_type is Typing:
        message.conversation_id = parse_id(message.conversation_id, "conversation_id")  # type: ignore[union-attr]
    elif message_type is Auth and message.user_id is not None:  # type: ignore[union-attr]
        message.user_id = parse_id(message.user_id, "user_id")  # type: ignore[union-attr]
    elif message_type is Status:
        parse_status(message.status)  # type: ignore[union-attr]
    return message


def _explain(text: str | bytes, exception: Exception) -> ClientError:
    """Return the error for a message that msgspec rejects, naming the field.

    msgspec stops at the first invalid field. Invalid JSON may follow it, and takes precedence.
    """
    try:
        _check_json(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ClientError(ErrorCode.BAD_JSON, "the message is not valid JSON")
    if not isinstance(exception, msgspec.ValidationError):  # nested too deeply to be decoded
        return ClientError(ErrorCode.BAD_JSON, "the message is not valid JSON")
    reason = str(exception)
    match = _FIELD.search(reason)
    if match is None:
        return ClientError(ErrorCode.BAD_MESSAGE, "a message must be a JSON object")
    field = match[1] or match[2]
    if match[2]:
        return ClientError(ErrorCode.BAD_MESSAGE, f"{field} is missing")
    if field == "type" and reason.startswith("Invalid value"):
        if reason.partition("'")[2].rpartition("'")[0] in _TYPES.split(", "):
            return ClientError(ErrorCode.BAD_MESSAGE, "type is given more than once")
        return ClientError(ErrorCode.UNKNOWN_TYPE, f"type must be one of {_TYPES}")
    expected = reason.partition(" - at ")[0].replace("`", "")
    return ClientError(ErrorCode.BAD_MESSAGE, f"{field}: {expected[0].lower()}{expected[1:]}")


# Replies and events

#: The reply to `ping`. Old pages compare the text, so its bytes must not change.
PONG = b'{"type":"pong"}'


def authenticated(
    identity: Identity,
    connection_id: str,
    last_event_id: str,
    replayed: int | None,
    lost: bool,
    status: str = ONLINE,
    available: bool | None = None,
) -> bytes:
    """Encode the reply to `auth`.

    :param last_event_id: the position of the history.
    :param replayed: how many missed events follow; None if the client asked for no recovery.
    :param lost: the recovery failed: the history cannot prove that no event is missing.
    :param status: of an agent.
    :param available: for a contact: whether an agent is available. None if contacts are not told.
    """
    data: dict[str, Any]
    if identity.is_contact:
        data = {"contact_id": identity.user_id, "role": "contact"}
    else:
        data = {"user_id": identity.user_id, "role": "agent"}
    data["connection_id"] = connection_id
    if identity.groups:
        data["groups"] = identity.groups
    if status != ONLINE:
        data["status"] = status
    if available is not None:
        data["available"] = available
    return _reply("authenticated", data, last_event_id, replayed, lost)


def subscribed(
    conversation_id: Id, last_event_id: str, replayed: int | None, lost: bool, contacts_online: Sequence[Id] = ()
) -> bytes:
    """Encode the reply to `subscribe`. The other parameters are those of `authenticated`.

    :param contacts_online: the contacts that are subscribed to the conversation, for an agent.
    """
    data: dict[str, Any] = {"conversation_id": conversation_id}
    if contacts_online:
        data["contacts_online"] = contacts_online
    return _reply("subscribed", data, last_event_id, replayed, lost)


def _reply(event: str, data: dict[str, Any], last_event_id: str, replayed: int | None, lost: bool) -> bytes:
    if lost:
        data["recovered"] = False
    elif replayed is not None:
        data["recovered"] = True
        data["replayed"] = replayed
    data["last_event_id"] = last_event_id
    return _encode({"event": event, "data": data})


def unsubscribed(conversation_id: Id) -> bytes:
    """Encode the reply to `unsubscribe`, which is also sent if a backend ends the subscription."""
    return _encode({"event": "unsubscribed", "data": {"conversation_id": conversation_id}})


def groups(names: Sequence[str]) -> bytes:
    """Encode the event `groups`: the groups of an agent after a change."""
    return _encode({"event": "groups", "data": {"groups": names}})


def presence(online: list[Id], statuses: Mapping[str, str]) -> bytes:
    """Encode the reply to `presence`.

    :param online: the agents online, sorted.
    :param statuses: those that are not `online`, by the text of the agent's id.
    """
    data: dict[str, Any] = {"online": online}
    if statuses:
        data["status"] = statuses
    return _encode({"event": "presence", "data": data})


def status_set(status: str) -> bytes:
    """Encode the reply to `status`."""
    return _encode({"event": "status_set", "data": {"status": status}})


def available(is_available: bool) -> bytes:
    """Encode the event `available`, which tells contacts whether an agent is available."""
    return _encode({"event": "available", "data": {"available": is_available}})


def error(problem: ClientError, text: str | bytes = b"", message: Message | None = None) -> bytes:
    """Encode an `error`.

    :param text: the rejected message, for the `type` in `request`, if it could not be parsed.
    :param message: the rejected message, if it could be parsed.
    """
    request: dict[str, Any] = {"type": None}
    if message is not None:
        request["type"] = message.__struct_config__.tag
        conversation_id = getattr(message, "conversation_id", None)
        if conversation_id is not None:
            request["conversation_id"] = conversation_id
    elif problem.code is not ErrorCode.BAD_JSON and text:
        request["type"] = _type_of(text)
    return _encode({"event": "error", "data": {"code": problem.code, "message": problem.message, "request": request}})


class _MessageType(msgspec.Struct):
    type: Any = None


def _type_of(text: str | bytes) -> str | None:
    try:
        message_type = msgspec.json.decode(text, type=_MessageType).type
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    return message_type[:64] if isinstance(message_type, str) else None


def typing_data(conversation_id: Id, user_id: Id, is_typing: bool, is_contact: bool = False) -> bytes:
    """Encode the `data` of a `typing` event."""
    actor = "contact_id" if is_contact else "user_id"
    return _encode({"conversation_id": conversation_id, actor: user_id, "is_typing": is_typing})


def status_data(agent_id: Id, status: str) -> bytes:
    """Encode the `data` of an `agent_status` event."""
    return _encode({"agent_id": agent_id, "status": status})


def contact_status_data(conversation_id: Id, contact_id: Id, status: str, since_ms: int) -> bytes:
    """Encode the `data` of a `contact_status` event."""
    return _encode(
        {"conversation_id": conversation_id, "contact_id": contact_id, "status": status, "since_ms": since_ms}
    )


_name_of, _data_of, _offset_of = attrgetter("name"), attrgetter("data"), attrgetter("offset")


# An application has some dozens of event names. The limit bounds the memory if a backend invents more.
@lru_cache(1024)
def _prefix(name: str) -> bytes:
    """Return an event's text up to its data."""
    return b'{"event":%b,"data":' % _encode(name)


def event_payloads(events: Sequence[Event], epoch: str) -> list[bytes]:
    """Encode events. `data` is passed through byte for byte."""
    offsets = [*map(_offset_of, events)]
    parts = zip(map(_prefix, map(_name_of, events)), map(_data_of, events), offsets, strict=True)
    with_id = b'%%b%%b,"id":"%b:%%d"}' % epoch.encode().replace(b"%", b"%%")
    if all(offsets):
        return [*map(with_id.__mod__, parts)]
    return [with_id % (prefix, data, offset) if offset else b"%b%b}" % (prefix, data) for prefix, data, offset in parts]
