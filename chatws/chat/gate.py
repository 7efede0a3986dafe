"""Who is this, and may they? The questions that a session has, put to those who know.

An answer may come at once or later. What a backend does meanwhile counts: one whose `auth` is still being looked up
when their user is sent away does not get in by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.chat.client import Client
from chatws.chat.contracts import Authenticator, Authorizer, Credentials, Identity
from chatws.chat.effects import Authenticate, Check, Close, Effect
from chatws.chat.journal import Journal
from chatws.errors import ClientError, CloseCode, ErrorCode, Unavailable
from chatws.ids import Id

__all__ = ["Gate"]

log = Logger()

#: What the answer leads to.
Decided: TypeAlias = Callable[[Any], list[Effect]]


class Gate:
    """
    :param authenticator: says who is calling; None takes everybody's word.
    :param authorizer: says who may read what; None lets everybody read what their identity allows.
    :param carry_out: called with the client and the effects of an answer that came later.
    """

    def __init__(
        self,
        authenticator: Authenticator | None,
        authorizer: Authorizer | None,
        journal: Journal,
        carry_out: Callable[[Client, list[Effect]], None],
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._journal = journal
        self._carry_out = carry_out
        # clients whose `auth` is being looked up, with the users that a backend sent away meanwhile
        self._deciding: dict[Client, dict[Id, Close]] = {}

    def authenticate(self, client: Client, effect: Authenticate) -> list[Effect] | None:
        """Find out who the client is.

        :returns: what follows, or None when the answer comes later.
        """
        message = effect.message
        if self._authenticator is None:
            if message.user_id is None:
                return client.session.auth_decided(message, ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing"))
            return client.session.auth_decided(message, Identity(message.user_id, "trust"))
        connection = client.connection
        credentials = Credentials(message.user_id, message.token, connection.http_request, connection.remote_address)
        authenticate = self._authenticator.authenticate

        def decided(answer: Identity | ClientError) -> list[Effect]:
            sent_away = self._deciding.pop(client)
            if isinstance(answer, Identity) and answer.user_id in sent_away:
                return client.session.close(*sent_away[answer.user_id])
            if isinstance(answer, ClientError):
                self._journal.refused(connection, message.user_id, answer.code, answer.message)
            return client.session.auth_decided(message, answer)

        self._deciding[client] = {}
        return self._ask(client, lambda: authenticate(credentials), decided)

    def check(self, client: Client, effect: Check) -> list[Effect] | None:
        """Find out whether the client may read the conversation. Returns what `authenticate` does."""
        conversation_id = effect.message.conversation_id
        if self._authorizer is None:
            return client.session.check_decided(effect, effect.identity.covers(conversation_id))
        may_read = self._authorizer.may_read
        return self._ask(
            client,
            lambda: may_read(effect.identity, conversation_id),
            lambda answer: client.session.check_decided(effect, answer),
        )

    def send_away(self, user_id: Id, close: Close) -> None:
        """A backend sends this user away: also whoever is about to be found to be them."""
        if self._authenticator is not None:
            self._authenticator.forget(user_id)
        if self._authorizer is not None:
            self._authorizer.forget(user_id)
        for sent_away in self._deciding.values():
            sent_away[user_id] = close

    def take_away(self, user_id: Id, conversation_id: Id) -> None:
        """A backend takes the conversation from this user: no answer from before counts."""
        if self._authorizer is not None:
            self._authorizer.forget(user_id, conversation_id)

    def _ask(self, client: Client, question: Callable[[], Any], decided: Decided) -> list[Effect] | None:
        """Put a question whose answer comes at once, or later; a refusal is an answer too."""
        try:
            answer = question()
        except ClientError as refusal:
            return decided(refusal)
        # first what it mostly is: abstract classes, as that of Deferreds, take their time to say no
        if isinstance(answer, Identity | bool) or not isinstance(answer, Deferred):
            return decided(answer)

        def arrived(answer: Any) -> None:
            self._carry_out(client, decided(answer))

        def failed(failure: Failure) -> None:
            if isinstance(failure.value, ClientError):
                arrived(failure.value)
            else:
                log.failure("Fault on connection {connection_id}", failure, connection_id=client.connection.resource_id)
                arrived(Unavailable("internal error"))

        def broken(failure: Failure) -> None:
            log.failure("Fault on connection {connection_id}", failure, connection_id=client.connection.resource_id)
            client.connection.close(int(CloseCode.INTERNAL_ERROR), "internal error")

        answer.addCallbacks(arrived, failed).addErrback(broken)
        return None
