"""The operations of a backend: the lines with `op` (docs/protocol.md §3). Each checks its values when it is made."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from chatws.chat.presence.statuses import parse_status
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id, parse_groups, parse_id

__all__ = [
    "MAX_KEY_CHARACTERS",
    "AuthOp",
    "DisconnectOp",
    "GroupsOp",
    "NodesOp",
    "Op",
    "PingOp",
    "PresenceOp",
    "RebalanceOp",
    "RequestId",
    "StatusOp",
    "UnsubscribeOp",
    "WebhookSyncOp",
    "check_key",
]

#: Characters of an idempotency key: bounds the memory of the cache, and room for a UUID with a prefix.
MAX_KEY_CHARACTERS = 128
#: Seconds that a rebalance may take: a day, far more than an operator waits for.
MAX_REBALANCE_SECONDS = 86400

#: The `id` of a line, as the backend wrote it.
RequestId: TypeAlias = int | str


def check_key(request_id: RequestId) -> str:
    key = str(request_id)
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise ClientError(ErrorCode.BAD_MESSAGE, f"id must have 1 to {MAX_KEY_CHARACTERS} characters")
    return key


class _Op(msgspec.Struct, tag_field="op", kw_only=True):
    id: RequestId | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            check_key(self.id)

    @property
    def request_id(self) -> RequestId | None:
        """The `id`, to echo."""
        return self.id


class AuthOp(_Op, tag="auth", kw_only=True):
    """Authenticate: the first line of a connection if a secret is configured."""

    secret: str


class _UserOp(_Op, kw_only=True):
    """An `op` that concerns the connections of an agent, or of a contact.

    :ivar user: the id of either.
    """

    user_id: Id | None = None
    contact_id: Id | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.user_id is None) is (self.contact_id is None):
            raise ClientError(ErrorCode.BAD_MESSAGE, "user_id or contact_id is needed, and not both")
        if self.user_id is not None:
            self.user_id = parse_id(self.user_id, "user_id")
        if self.contact_id is not None:
            self.contact_id = parse_id(self.contact_id, "contact_id")

    @property
    def is_contact(self) -> bool:
        """Whether it concerns a contact."""
        return self.contact_id is not None

    @property
    def user(self) -> Id:
        """The id of the agent or contact."""
        id = self.user_id if self.contact_id is None else self.contact_id
        assert id is not None
        return id


class DisconnectOp(_UserOp, tag="disconnect", kw_only=True):
    """Close the user's connections. `ban` tells the clients not to reconnect."""

    reason: str | None = None
    ban: bool | None = None


class UnsubscribeOp(_UserOp, tag="unsubscribe", kw_only=True):
    """Unsubscribe the user's connections from the conversation."""

    conversation_id: Id

    def __post_init__(self) -> None:
        super().__post_init__()
        self.conversation_id = parse_id(self.conversation_id, "conversation_id")


class GroupsOp(_Op, tag="groups", kw_only=True):
    """Replace the groups of the agent's connections."""

    user_id: Id
    groups: object

    def __post_init__(self) -> None:
        super().__post_init__()
        self.user_id = parse_id(self.user_id, "user_id")
        self.groups = parse_groups(self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, each once."""
        return self.groups  # type: ignore[return-value]  # parsed


class StatusOp(_Op, tag="status", kw_only=True):
    """Set an agent's status."""

    user_id: Id
    status: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self.user_id = parse_id(self.user_id, "user_id")
        parse_status(self.status)


class PresenceOp(_Op, tag="presence", kw_only=True):
    """List the agents that are online. `detail` adds their connections."""

    detail: bool | None = None


class NodesOp(_Op, tag="nodes", kw_only=True):
    """List the nodes that share the broker."""


class RebalanceOp(_Op, tag="rebalance", kw_only=True):
    """Close connections of a node over some seconds. `drain`: it accepts no WebSockets until the next rebalance."""

    node: str
    count: int = 0
    seconds: float = 30.0
    drain: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.count < 2**31 or not 0 <= self.seconds <= MAX_REBALANCE_SECONDS:
            raise ValueError(f"count and seconds must be 0 or more, seconds at most {MAX_REBALANCE_SECONDS}")


class PingOp(_Op, tag="ping", kw_only=True):
    """Check the connection."""


class WebhookSyncOp(_Op, tag="webhook_sync", kw_only=True):
    """Send the whole state to the receiver of webhooks."""


Op: TypeAlias = (
    AuthOp
    | DisconnectOp
    | UnsubscribeOp
    | GroupsOp
    | StatusOp
    | PresenceOp
    | NodesOp
    | RebalanceOp
    | PingOp
    | WebhookSyncOp
)
