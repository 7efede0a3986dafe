"""Protocols of what the chat gets from outside, so that it imports neither `chatws.auth` nor `chatws.database`."""

from __future__ import annotations

from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from chatws.ids import Id
from chatws.server.component import HttpRequest

__all__ = ["ActivitySink", "Authenticator", "Authorizer", "Credentials", "Identity"]


class Credentials(msgspec.Struct, frozen=True):
    """The credentials in an `auth` message and in its connection's HTTP request.

    :ivar user_id: the user id that the page claims, or None.
    :ivar token: the token, or None (docs/protocol.md §5).
    :ivar http_request: the request that opened the connection, with its cookies.
    :ivar remote_address: the client's address; behind a trusted proxy, the one that the proxy reports.
    """

    user_id: Id | None
    token: str | None
    http_request: HttpRequest
    remote_address: str


class Identity(msgspec.Struct, frozen=True):
    """The result of authentication.

    :ivar user_id: the id of the agent, or of the contact. Agent 7 and contact 7 are different.
    :ivar method: the method that verified it: `token`, `callback`, `database` or `trust`.
    :ivar expires_at: when it expires, in seconds since 1970, or None.
    :ivar conversations: the only conversations that it covers, or None for no such limit.
    :ivar is_contact: whether it is a contact (a customer in a widget) and not an agent.
    :ivar groups: the groups of an agent; None if the credentials name none.
    :ivar role: the role that the credentials name, as they spell it, or None.
    :ivar renew_after: seconds after which the server authenticates the connection's request again, or None for never.
    """

    user_id: Id
    method: str
    expires_at: float | None = None
    conversations: frozenset[Id] | None = None
    is_contact: bool = False
    groups: tuple[str, ...] | None = None
    role: str | None = None
    renew_after: float | None = None

    def covers(self, conversation_id: Id) -> bool:
        """Return whether the identity covers a conversation."""
        return self.conversations is None or conversation_id in self.conversations

    def may_read(self, conversation_id: Id) -> bool:
        """Return whether the user may read a conversation if no query decides. A contact needs a list of its own."""
        return self.covers(conversation_id) and not (self.is_contact and self.conversations is None)

    def is_same_user(self, other: Identity) -> bool:
        """Return whether both are the same agent or the same contact."""
        return self.user_id == other.user_id and self.is_contact is other.is_contact


class Authenticator(Protocol):
    """Authenticates clients."""

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """Return the identity that the credentials prove, now or later.

        :raises AuthenticationFailed: The credentials are invalid. Raised directly or through the Deferred.
        :raises Unavailable: The check cannot be performed now.
        """
        ...

    def forget(self, user_id: Id, *, is_contact: bool = False) -> None:
        """Drop all cached results for an agent or a contact: a backend has disconnected them."""
        ...


class Authorizer(Protocol):
    """Checks permissions."""

    def may_read(self, identity: Identity, conversation_id: Id) -> bool | Deferred[bool]:
        """Return whether an agent or a contact may read a conversation, now or later.

        :raises Unavailable: The check cannot be performed now. Raised directly or through the Deferred.
        """
        ...

    def forget(self, user_id: Id, conversation_id: Id | None = None, *, is_contact: bool = False) -> None:
        """Drop the cached permission of an agent or a contact for a conversation, or for all: it is revoked."""
        ...


class ActivitySink(Protocol):
    """Receives heartbeats and activities. Its methods return at once and never raise."""

    def connected(self, user_id: Id) -> None:
        """Record that a connection of an agent is authenticated."""
        ...

    def disconnected(self, user_id: Id) -> None:
        """Record the end of such a connection."""
        ...

    def heartbeat(self, user_id: Id, last_activity: float | None) -> None:
        """Record a `ping`.

        :param last_activity: when the user was last active according to the page, in seconds since 1970, or None.
        """
        ...

    def activity(self, user_id: Id, activity_type: str) -> None:
        """Record an `activity` message."""
        ...
