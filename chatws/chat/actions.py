"""The actions that a `Session` returns. `ChatServer` executes them in order."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from chatws.chat.interfaces import Identity
from chatws.chat.messages import Activity, Auth, Ping, Status, Subscribe, Typing
from chatws.errors import CloseCode, ErrorCode
from chatws.ids import Id

__all__ = [
    "AcceptAuth",
    "Action",
    "AddSubscription",
    "Authenticate",
    "BroadcastTyping",
    "ChangeGroups",
    "CheckPermission",
    "Close",
    "ListPresence",
    "PauseReading",
    "RecordActivity",
    "RemoveSubscription",
    "ScheduleRenewal",
    "SendReply",
    "SetStatus",
]


class SendReply(NamedTuple):
    """Send a text message to the client.

    :ivar payload: the message, as UTF-8.
    :ivar error: the error code if the message is an `error`, else None.
    """

    payload: bytes
    error: ErrorCode | None = None


class Authenticate(NamedTuple):
    """Authenticate the client, and pass the result to `Session.on_auth_result`."""

    message: Auth


class AcceptAuth(NamedTuple):
    """Register the connection for its user, send `authenticated`, and replay the events after `last_event_id`.

    :ivar renewed: the connection was authenticated before and has sent new credentials.
    """

    identity: Identity
    last_event_id: str | None
    renewed: bool


class ScheduleRenewal(NamedTuple):
    """Authenticate the connection's request again in about `seconds`, and pass the result to `Session.on_renewal`."""

    seconds: float


class CheckPermission(NamedTuple):
    """Check that the user may read the conversation, and pass the result to `Session.on_check_result`."""

    message: Subscribe | Typing
    identity: Identity


class AddSubscription(NamedTuple):
    """Subscribe the connection, send `subscribed`, and replay the events after `last_event_id`."""

    conversation_id: Id
    last_event_id: str | None


class RemoveSubscription(NamedTuple):
    """Unsubscribe the connection, and send `unsubscribed`."""

    conversation_id: Id


class BroadcastTyping(NamedTuple):
    """Publish that the user has started or stopped typing to the conversation's other subscribers.

    :ivar is_contact: the user is a contact.
    :ivar agents_only: contacts do not get the event.
    """

    conversation_id: Id
    user_id: Id
    is_typing: bool
    is_contact: bool = False
    agents_only: bool = False


class ChangeGroups(NamedTuple):
    """Replace the groups whose events the agent's connection gets, and tell the client."""

    groups: tuple[str, ...]


class ListPresence(NamedTuple):
    """Send the list of agents online."""


class SetStatus(NamedTuple):
    """Set the agent's status, and pass the result to `Session.on_status_result`."""

    user_id: Id
    message: Status


class RecordActivity(NamedTuple):
    """Report a heartbeat (`Ping`) or an activity (`Activity`) of the user to the activity sink."""

    user_id: Id
    message: Ping | Activity


class PauseReading(NamedTuple):
    """Read nothing from the client for `seconds`, then call `Session.read_delay` again."""

    seconds: float


class Close(NamedTuple):
    """Close the connection.

    :ivar drop_unsent: send nothing of what waits, because the user may not read it any more.
    """

    code: CloseCode
    reason: str
    drop_unsent: bool = False


Action: TypeAlias = (
    SendReply | Authenticate | AcceptAuth | ScheduleRenewal | CheckPermission
    | AddSubscription | RemoveSubscription | BroadcastTyping | ChangeGroups | ListPresence
    | SetStatus | RecordActivity | PauseReading | Close
)  # fmt: skip
