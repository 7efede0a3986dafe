"""What a way to say who one is looks like, and the two that take a browser's word: `database` and `trust`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from twisted.internet.defer import Deferred

from chatws.auth.lookup import Lookup
from chatws.chat.contracts import Credentials, Identity
from chatws.errors import AuthenticationFailed
from chatws.ids import Id

__all__ = ["DatabaseMethod", "Method", "Stoppable", "TrustMethod", "agree"]


@runtime_checkable
class Stoppable(Protocol):
    """A method that keeps something open."""

    def stop(self) -> Deferred[None]:
        """Close it."""
        ...


class Method(Protocol):
    """One way to say who one is.

    :ivar name: as in `--auth` and `Identity.method`.
    :ivar wants: what a browser must send, for the sentence when it sent nothing that any method could judge.
    :ivar proves: whether a yes proves who is calling.
    """

    name: str
    wants: str
    proves: bool

    def has_opinion(self, credentials: Credentials) -> bool:
        """Whether it can judge these credentials. If so, its answer is final: a bad ticket is not tried as a cookie."""
        ...

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """As `Authenticator.authenticate`. Only called where it has an opinion."""
        ...


def agree(credentials: Credentials, user_id: Id) -> None:
    """:raises AuthenticationFailed: the message names a user, and another than the one that was proved."""
    if credentials.user_id is not None and credentials.user_id != user_id:
        raise AuthenticationFailed("user_id is not the user of these credentials")


class TrustMethod:
    """Everybody is who they say they are."""

    name = "trust"
    wants = "user_id"
    proves = False

    def has_opinion(self, credentials: Credentials) -> bool:
        return credentials.user_id is not None

    def authenticate(self, credentials: Credentials) -> Identity:
        assert credentials.user_id is not None
        return Identity(user_id=credentials.user_id, method=self.name)


class DatabaseMethod:
    """Everybody is who they say they are, provided that such a user exists and is active."""

    name = "database"
    wants = "user_id"
    proves = False

    def __init__(self, users: Lookup[Id, bool]) -> None:
        self._users = users

    def has_opinion(self, credentials: Credentials) -> bool:
        return credentials.user_id is not None

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        assert credentials.user_id is not None
        user_id = credentials.user_id

        def decide(is_active: bool) -> Identity:
            if not is_active:
                raise AuthenticationFailed("the user is unknown or not active")
            return Identity(user_id=user_id, method=self.name)

        found = self._users.get(user_id)
        return found.addCallback(decide) if isinstance(found, Deferred) else decide(found)
