"""Run authentication and permission checks for sessions.

An authenticator or authorizer may return its result at once or in a Deferred. If a backend disconnects the user while
an `auth` is pending, that `auth` does not let the user in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.chat.actions import Action, Authenticate, CheckPermission, Close
from chatws.chat.client import Client
from chatws.chat.connection_log import ConnectionLog
from chatws.chat.interfaces import Authenticator, Authorizer, Credentials, Identity
from chatws.chat.session import State
from chatws.errors import ClientError, CloseCode, ErrorCode, Unavailable
from chatws.ids import Id, sort_ids

__all__ = ["AuthFlow"]

log = Logger()

#: Turns the result of a check, or its `ClientError`, into the session's actions.
ResultHandler: TypeAlias = Callable[[Any], list[Action]]


class AuthFlow:
    """Runs the checks that sessions ask for.

    :param authenticator: authenticates clients. None accepts any `user_id`.
    :param authorizer: checks permissions. None allows every conversation that the identity covers.
    :param connection_log: logs rejected `auth` messages.
    :param execute: executes the actions that follow from a result that came later.
    :param admits_contacts: returns whether contacts are admitted now.
    :ivar renewals: results of `renew`.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        authorizer: Authorizer | None,
        connection_log: ConnectionLog,
        execute: Callable[[Client, list[Action]], None],
        admits_contacts: Callable[[], bool] = lambda: True,
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._connection_log = connection_log
        self._execute = execute
        self.renewals = {"accepted": 0, "rejected": 0, "unavailable": 0}
        self._admits_contacts = admits_contacts
        # Clients whose `auth` is pending, with the users (id, is_contact) that were disconnected since it was sent.
        self._pending: dict[Client, dict[tuple[Id, bool], Close]] = {}
        self._checks: dict[Client, set[Deferred[Any]]] = {}

    def authenticate(self, client: Client, action: Authenticate) -> list[Action] | None:
        """Authenticate the client.

        :return: the session's next actions, or None if the result comes later.
        """
        message = action.message
        if self._authenticator is None:
            if message.user_id is None:
                return client.session.on_auth_result(message, ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing"))
            return client.session.on_auth_result(message, Identity(message.user_id, "trust"))
        connection = client.connection
        credentials = Credentials(message.user_id, message.token, connection.http_request, connection.remote_address)
        authenticate = self._authenticator.authenticate

        def on_result(result: Identity | ClientError) -> list[Action]:
            disconnected = self._pending.pop(client, {})
            if isinstance(result, Identity):
                close = disconnected.get((result.user_id, result.is_contact))
                if close is not None:
                    return client.session.close(*close)
                is_new = client.session.identity is None
                if result.is_contact and is_new and not self._admits_contacts():
                    result = Unavailable("contacts are admitted when all nodes know them")
            if isinstance(result, ClientError):
                self._connection_log.auth_failed(connection, message.user_id, result.code, result.message)
            return client.session.on_auth_result(message, result)

        self._pending[client] = {}
        return self._run(client, lambda: authenticate(credentials), on_result)

    def renew(self, client: Client) -> None:
        """Authenticate the request that opened the connection again, when its identity's time is over."""
        if self._authenticator is None or client.session.state is State.CLOSED:
            return
        connection = client.connection
        # without the `user_id` of the page, which other methods would believe
        credentials = Credentials(None, None, connection.http_request, connection.remote_address)

        def on_result(result: Identity | ClientError) -> list[Action]:
            identity = client.session.identity
            if identity is None or identity.renew_after is None or client.deadline is not None:
                return []  # the client has sent another `auth` meanwhile
            actions = client.session.on_renewal(result)
            close = next((action for action in actions if isinstance(action, Close)), None)
            if close is not None:
                self._connection_log.closed(connection, client.log_name, int(close.code), close.reason)
            outcome = "accepted" if isinstance(result, Identity) else "unavailable"
            self.renewals["rejected" if close is not None else outcome] += 1
            return actions

        authenticate = self._authenticator.authenticate
        self._execute(client, self._run(client, lambda: authenticate(credentials), on_result) or [])

    def check(self, client: Client, action: CheckPermission) -> list[Action] | None:
        """Check whether the client's user may read the conversation.

        :return: the session's next actions, or None if the result comes later.
        """
        conversation_id = action.message.conversation_id
        if self._authorizer is None:
            return client.session.on_check_result(action, action.identity.may_read(conversation_id))
        may_read = self._authorizer.may_read
        return self._run(
            client,
            lambda: may_read(action.identity, conversation_id),
            lambda result: client.session.on_check_result(action, result),
        )

    def check_again(self, client: Client) -> None:
        """Ask again for each subscription of the client, pending ones included. A no ends it."""
        identity = client.session.identity
        if self._authorizer is None or identity is None:
            return
        self._execute(client, client.session.repeat_checks())
        for conversation_id in sort_ids(client.session.conversations):
            check = partial(self._authorizer.may_read, identity, conversation_id)
            actions = self._run(client, check, partial(self._on_second_check, client, conversation_id))
            self._execute(client, actions or [])

    def _on_second_check(self, client: Client, conversation_id: Id, result: bool | ClientError) -> list[Action]:
        return client.session.revoke(conversation_id) if result is False else []

    def invalidate_user(self, user_id: Id, is_contact: bool, close: Close) -> None:
        """Drop all cached results for a user, and reject pending `auth` messages that turn out to be this user's.

        :param close: closes the connections of those.
        """
        if self._authenticator is not None:
            self._authenticator.forget(user_id, is_contact=is_contact)
        self.invalidate_permission(user_id, is_contact)
        for disconnected in self._pending.values():
            disconnected[user_id, is_contact] = close

    def cancel(self, client: Client) -> None:
        """Cancel the checks of a client whose connection has closed: nobody waits for their results."""
        self._pending.pop(client, None)
        for check in tuple(self._checks.pop(client, ())):
            check.cancel()

    def invalidate_permission(self, user_id: Id, is_contact: bool, conversation_id: Id | None = None) -> None:
        """Drop the cached permission of a user for a conversation, or for all."""
        if self._authorizer is not None:
            self._authorizer.forget(user_id, conversation_id, is_contact=is_contact)

    def _run(self, client: Client, check: Callable[[], Any], on_result: ResultHandler) -> list[Action] | None:
        """Run a check. Its result may come at once or later; a `ClientError` is a result too."""
        try:
            result = check()
        except ClientError as error:
            return on_result(error)
        # Test for the usual types first: `isinstance(x, Deferred)` is slow, because Deferred is an abstract class.
        if isinstance(result, (Identity, bool)) or not isinstance(result, Deferred):
            return on_result(result)

        checks = self._checks.setdefault(client, set())
        checks.add(result)

        def ended(outcome: Any) -> Any:
            checks.discard(result)
            if not checks and self._checks.get(client) is checks:
                del self._checks[client]
            return outcome

        def succeeded(outcome: Any) -> None:
            self._execute(client, on_result(outcome))

        def failed(failure: Failure) -> None:
            if isinstance(failure.value, CancelledError):
                return
            if isinstance(failure.value, ClientError):
                succeeded(failure.value)
            else:
                log.failure("Check failed on connection {connection_id}", failure, connection_id=connection_id)
                succeeded(Unavailable("internal error"))

        def broken(failure: Failure) -> None:
            log.failure("Internal error on connection {connection_id}", failure, connection_id=connection_id)
            client.connection.close(int(CloseCode.INTERNAL_ERROR), "internal error")

        connection_id = self._connection_log.connection_id(client.connection)
        result.addBoth(ended).addCallbacks(succeeded, failed).addErrback(broken)
        return None
