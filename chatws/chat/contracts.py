"""What the chat is given from outside: small protocols, so that `chat/` imports neither `auth/` nor `database/`."""

from __future__ import annotations

from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from chatws.ids import Id
from chatws.server.component import HttpRequest

__all__ = ["ActivitySink", "Authenticator", "Authorizer", "Credentials", "Identity"]


class Credentials(msgspec.Struct, frozen=True):
    """What an `auth` message and its connection offer.

    :ivar user_id: whom the page says it is, or None.
    :ivar token: the ticket, or None (docs/protocol.md §5).
    :ivar http_request: the request that opened the connection, with its cookies.
    :ivar remote_address: the client's real address.
    """

    user_id: Id | None
    token: str | None
    http_request: HttpRequest
    remote_address: str


class Identity(msgspec.Struct, frozen=True):
    """Who somebody is.

    :ivar method: what it was proved by: `ticket`, `callback`, `database`, `trust`.
    :ivar expires_at: seconds since 1970 after which it no longer holds, or None.
    :ivar conversations: the only ones this connection may subscribe to, or None for no such limit.
    """

    user_id: Id
    method: str
    expires_at: float | None = None
    conversations: frozenset[Id] | None = None

    def covers(self, conversation_id: Id) -> bool:
        """Whether the conversation is among them, or there is no such limit."""
        return self.conversations is None or conversation_id in self.conversations


class Authenticator(Protocol):
    """Says who is calling."""

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """An identity, now or later.

        :raises AuthenticationFailed: the credentials are no good (directly or through the Deferred).
        :raises Unavailable: who knows cannot be asked now.
        """
        ...

    def forget(self, user_id: Id) -> None:
        """A backend has sent this user away: no answer from before may let them in again."""
        ...


class Authorizer(Protocol):
    """Says whether somebody may read a conversation."""

    def may_read(self, identity: Identity, conversation_id: Id) -> bool | Deferred[bool]:
        """:raises Unavailable: it cannot be asked now (directly or through the Deferred)."""
        ...

    def forget(self, user_id: Id, conversation_id: Id | None = None) -> None:
        """A backend has taken the conversation (or all of them) from the user: no answer from before counts."""
        ...


class ActivitySink(Protocol):
    """Where heartbeats and activities go. Both return at once and never raise."""

    def heartbeat(self, user_id: Id, last_activity: float | None) -> None:
        """A `ping` came. `last_activity`: seconds since 1970 when the page says the person last did something."""
        ...

    def activity(self, user_id: Id, activity_type: str) -> None:
        """An `activity` message came."""
        ...
