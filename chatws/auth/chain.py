"""Authentication by several methods, in order: the first method that can handle the credentials decides.

- `token` handles messages with a token.
- `callback` handles connections whose request has a Cookie or an Authorization header.
- `database` and `trust` handle messages with a `user_id`.

`token,trust` therefore accepts old pages unchanged and new pages with a token. A client with an invalid token is
rejected; `trust` is not tried for it. If no method can handle the credentials, the client is rejected. With a
`user_query`, an agent verified by `token` or `callback` must also be active in the database, and with a
`contact_query` a contact.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, DeferredList

from chatws.auth.auth_stats import AuthStats
from chatws.auth.cache import SingleFlightCache
from chatws.auth.methods import Method, Revocable, Stoppable
from chatws.auth.roles import Roles, identity_from_row
from chatws.chat.interfaces import Credentials, Identity
from chatws.database.interface import Row
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode
from chatws.ids import Id
from chatws.interfaces import Clock

__all__ = ["AuthenticatorChain"]


class AuthenticatorChain:
    """See `chatws.chat.interfaces.Authenticator`. Returns an `Identity` at once if no step has to wait.

    :param users: returns the row of an active agent, or None to skip that check.
    :param contacts: returns the row of an active contact, or None to skip that check.
    :param roles: decides who is an agent and who a contact.
    :ivar methods: in the order in which they are tried.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        users: SingleFlightCache[Id, Row | None] | None,
        clock: Clock,
        *,
        contacts: SingleFlightCache[Id, Row | None] | None = None,
        roles: Roles | None = None,
    ) -> None:
        self.methods = tuple(methods)
        self.stats = AuthStats(clock)
        self._users = users
        self._contacts = contacts
        self._roles = roles or Roles()

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        """See `chatws.chat.interfaces.Authenticator.authenticate`."""
        for method in self.methods:
            if method.can_handle(credentials):
                break
        else:
            error = self._missing_credentials()
            self.stats.failed("none", error)
            raise error
        try:
            identity = method.authenticate(credentials)
            # not isinstance(…, Deferred): Deferred is an abstract class with a slow __instancecheck__
            if not isinstance(identity, Identity):
                return Deferred.fromCoroutine(self._finish_method(method, identity))
            identity = self._assign_role(method, identity)
            row = self._look_up(method, identity)
            if isinstance(row, Deferred):
                return Deferred.fromCoroutine(self._finish_lookup(method, identity, row))
            return self._accept(method, identity, row)
        except ClientError as error:
            self.stats.failed(method.name, error)
            raise

    def forget(self, user_id: Id, *, is_contact: bool = False) -> None:
        """See `chatws.chat.interfaces.Authenticator.forget`."""
        cache = self._contacts if is_contact else self._users
        if cache is not None:
            cache.forget(lambda key: key == user_id)
        for method in self.methods:
            if isinstance(method, Revocable):
                method.forget(user_id)

    def stop(self) -> Deferred[None]:
        """Stop the methods and write the last log lines."""
        self.stats.stop()
        stops = [method.stop() for method in self.methods if isinstance(method, Stoppable)]
        return DeferredList(stops).addCallback(lambda _: None)

    def _missing_credentials(self) -> ClientError:
        required = list(dict.fromkeys(method.required_credential for method in self.methods))
        if required == ["user_id"]:
            # an incomplete message, not failed authentication: the connection stays open
            return ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing")
        return AuthenticationFailed(f"auth needs {' or '.join(required)}")

    async def _finish_method(self, method: Method, pending: Deferred[Identity]) -> Identity:
        try:
            identity = self._assign_role(method, await pending)
            row = self._look_up(method, identity)
            return self._accept(method, identity, await row if isinstance(row, Deferred) else row)
        except Exception as error:
            self.stats.failed(method.name, error)
            raise

    async def _finish_lookup(self, method: Method, identity: Identity, row: Deferred[Row | None]) -> Identity:
        try:
            return self._accept(method, identity, await row)
        except Exception as error:
            self.stats.failed(method.name, error)
            raise

    def _assign_role(self, method: Method, identity: Identity) -> Identity:
        identity = self._roles.assign(identity)
        if identity.is_contact and not method.verifies_identity:
            raise AuthenticationFailed("a contact needs a token or a session")
        return identity

    def _look_up(self, method: Method, identity: Identity) -> Row | Deferred[Row | None] | None:
        """Return the user's row in the database, None if there is none, and an empty one if nothing is looked up."""
        cache = self._contacts if identity.is_contact else self._users
        if cache is None or not method.verifies_identity:
            return {}
        owner = ("contact" if identity.is_contact else "user", identity.user_id)
        return cache.get(identity.user_id, owner=owner)

    def _accept(self, method: Method, identity: Identity, row: Row | None) -> Identity:
        if row is None:
            raise AuthenticationFailed(f"the {'contact' if identity.is_contact else 'user'} is unknown or not active")
        identity = self._roles.finish(identity_from_row(identity, row) if row else identity)
        self.stats.accepted(identity, is_verified=method.verifies_identity)
        return identity
