"""The interface of an authentication method (docs/security.md)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from twisted.internet.defer import Deferred

from chatws.chat.interfaces import Credentials, Identity
from chatws.errors import AuthenticationFailed
from chatws.ids import Id

__all__ = ["Method", "Revocable", "Stoppable", "require_same_user"]


@runtime_checkable
class Stoppable(Protocol):
    """A method with resources to close, such as connections."""

    def stop(self) -> Deferred[None]:
        """Close them."""
        ...


@runtime_checkable
class Revocable(Protocol):
    """A method whose requests in progress a revocation invalidates."""

    def forget(self, user_id: Id) -> None:
        """Let no later `authenticate` share a request that has started before."""
        ...


class Method(Protocol):
    """One authentication method.

    :ivar name: the name in `--auth` and in `Identity.method`.
    :ivar required_credential: the credential that it needs, for the error when a client sends none.
    :ivar verifies_identity: whether success proves the identity of the client. `trust` and `database` believe the
        `user_id` of the message.
    """

    name: str
    required_credential: str
    verifies_identity: bool

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether it can decide on these credentials. If so, its decision is final.

        An invalid token is therefore not followed by an attempt with the cookie.
        """
        ...

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """Authenticate, as `Authenticator.authenticate`. Only called if `can_handle` returned True."""
        ...


def require_same_user(credentials: Credentials, user_id: Id) -> None:
    """Check the `user_id` of the message, where it has one, against the authenticated one.

    :raises AuthenticationFailed: they differ.
    """
    if credentials.user_id is not None and credentials.user_id != user_id:
        raise AuthenticationFailed("user_id is not the user of these credentials")
