"""Several ways to say who one is, in order: the first that has an opinion decides, for good or ill.

- `ticket` has one when the message brings a token.
- `callback` has one when the request that opened the connection has a Cookie or an Authorization header.
- `database` and `trust` have one when the message names a user.

So `ticket,trust` lets old pages in as before and new ones by ticket, while a bad ticket is refused rather than taken
for no ticket. Where none has an opinion the answer is no. With a database, whoever a ticket or callback proves must
also be an active user there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from chatws.auth.lookup import Lookup
from chatws.auth.methods import Method, Stoppable
from chatws.auth.stats import AuthStats
from chatws.chat.contracts import Credentials, Identity
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode
from chatws.ids import Id

__all__ = ["Chain"]


class Chain:
    """See chatws.chat.contracts.Authenticator. Nothing that needs no waiting is made to wait.

    :param users: whether a user exists and is active; None asks nobody.
    :param reactor: an IReactorTime.
    :ivar methods: in the order in which they are asked.
    """

    def __init__(self, methods: Sequence[Method], users: Lookup[Id, bool] | None, reactor: Any) -> None:
        self.methods = tuple(methods)
        self.stats = AuthStats(reactor)
        self._users = users

    def authenticate(self, credentials: Credentials) -> Identity | Deferred[Identity]:
        for method in self.methods:
            if method.has_opinion(credentials):
                break
        else:
            error = self._nothing_offered()
            self.stats.failed("none", error)
            raise error
        try:
            found = method.authenticate(credentials)
            # not whether it is a Deferred: abstract classes take their time to say no
            if not isinstance(found, Identity):
                return Deferred.fromCoroutine(self._proved_later(method, found))
            active = self._is_active(method, found)
            if not isinstance(active, bool):
                return Deferred.fromCoroutine(self._looked_up_later(method, found, active))
            return self._let_in(method, found, active)
        except ClientError as error:
            self.stats.failed(method.name, error)
            raise

    def forget(self, user_id: Id) -> None:
        """Whoever authenticates as `user_id` from now on is looked up anew."""
        if self._users is not None:
            self._users.forget(lambda key: key == user_id)

    def stop(self) -> Deferred[None]:
        """Close what is kept open between questions."""
        self.stats.stop()
        stops = [method.stop() for method in self.methods if isinstance(method, Stoppable)]
        return DeferredList(stops).addCallback(lambda _: None)

    def _nothing_offered(self) -> ClientError:
        wanted = list(dict.fromkeys(method.wants for method in self.methods))
        if wanted == ["user_id"]:
            # nobody has been refused: the message is not complete
            return ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing")
        return AuthenticationFailed(f"auth needs {' or '.join(wanted)}")

    async def _proved_later(self, method: Method, found: Deferred[Identity]) -> Identity:
        try:
            identity = await found
            active = self._is_active(method, identity)
            return self._let_in(method, identity, await active if isinstance(active, Deferred) else active)
        except Exception as error:
            self.stats.failed(method.name, error)
            raise

    async def _looked_up_later(self, method: Method, identity: Identity, active: Deferred[bool]) -> Identity:
        try:
            return self._let_in(method, identity, await active)
        except Exception as error:
            self.stats.failed(method.name, error)
            raise

    def _is_active(self, method: Method, identity: Identity) -> bool | Deferred[bool]:
        if self._users is None or not method.proves:
            return True
        return self._users.get(identity.user_id)

    def _let_in(self, method: Method, identity: Identity, is_active: bool) -> Identity:
        if not is_active:
            raise AuthenticationFailed("the user is unknown or not active")
        self.stats.accepted(identity, proved=method.proves)
        return identity
