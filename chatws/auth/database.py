"""The authentication method `database`: accepts every `user_id` for which the `user_query` returns a row."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from chatws.auth.cache import SingleFlightCache
from chatws.auth.roles import identity_from_row
from chatws.chat.interfaces import Credentials, Identity
from chatws.database.interface import Row
from chatws.errors import AuthenticationFailed
from chatws.ids import Id

__all__ = ["DatabaseMethod"]


class DatabaseMethod:
    """Accept the `user_id` of the message if that user exists and is active.

    :param users: the row of a user that exists and is active, else None.
    """

    name = "database"
    required_credential = "user_id"
    verifies_identity = False

    def __init__(self, users: SingleFlightCache[Id, Row | None]) -> None:
        self._users = users

    def can_handle(self, credentials: Credentials) -> bool:
        """Return whether the message has a `user_id`."""
        return credentials.user_id is not None

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """See `Method.authenticate`."""
        assert credentials.user_id is not None
        user_id = credentials.user_id

        def decide(row: Row | None) -> Identity:
            if row is None:
                raise AuthenticationFailed("the user is unknown or not active")
            return identity_from_row(Identity(user_id=user_id, method=self.name), row)

        row = self._users.get(user_id, owner=("address", credentials.remote_address))
        return row.addCallback(decide) if isinstance(row, Deferred) else decide(row)
