"""What a session wants done: it decides, and whoever holds it carries the effects out, in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from chatws.chat.contracts import Identity
from chatws.chat.messages import Activity, Auth, Ping, Subscribe, Typing
from chatws.errors import CloseCode, ErrorCode
from chatws.ids import Id

__all__ = [
    "Authenticate",
    "Check",
    "Close",
    "Effect",
    "Enter",
    "Join",
    "Leave",
    "ListPresence",
    "Record",
    "Reply",
    "Tell",
]


class Reply(NamedTuple):
    """Send this text to the client.

    :ivar error: its code, when it is an `error`.
    """

    payload: bytes
    error: ErrorCode | None = None


class Authenticate(NamedTuple):
    """Find out who this is; the answer goes to `auth_decided`."""

    message: Auth


class Enter(NamedTuple):
    """The client is `identity` from now on: let it in, say `authenticated`, replay after `last_event_id`.

    :ivar again: it was in already, and has only shown fresh credentials.
    """

    identity: Identity
    last_event_id: str | None
    again: bool


class Check(NamedTuple):
    """Find out whether the client may read the conversation; the answer goes to `check_decided` with this check."""

    message: Subscribe | Typing
    identity: Identity


class Join(NamedTuple):
    """Subscribe, say `subscribed`, replay after `last_event_id`."""

    conversation_id: Id
    last_event_id: str | None


class Leave(NamedTuple):
    """Unsubscribe, and say `unsubscribed`."""

    conversation_id: Id


class Tell(NamedTuple):
    """Tell the conversation's others that the user is typing, or no longer."""

    conversation_id: Id
    user_id: Id
    is_typing: bool


class ListPresence(NamedTuple):
    """Say who is online."""


class Record(NamedTuple):
    """Note that the person is there (`Ping`) or did something (`Activity`)."""

    user_id: Id
    message: Ping | Activity


class Close(NamedTuple):
    """Close the connection."""

    code: CloseCode
    reason: str


Effect: TypeAlias = (
    Reply | Authenticate | Enter | Check | Join | Leave | Tell | ListPresence | Record | Close
)  # fmt: skip
