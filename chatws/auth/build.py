"""From the settings to who decides."""

from __future__ import annotations

from typing import Any, Protocol

from chatws.auth.activity import BatchedActivity
from chatws.auth.authorizer import ConversationAuthorizer
from chatws.auth.callback import CallbackMethod
from chatws.auth.chain import Chain
from chatws.auth.lookup import Lookup, Question
from chatws.auth.methods import DatabaseMethod, Method, TrustMethod
from chatws.auth.secrets import SecretSettings, load_secrets
from chatws.auth.ticket import TicketMethod
from chatws.database.contract import Database
from chatws.errors import OperatorError
from chatws.ids import Id

__all__ = ["AuthSettings", "build_activity", "build_authenticator", "build_authorizer", "default_methods"]


class AuthSettings(SecretSettings, Protocol):
    """The settings (chatws.config.Config) that are looked at here."""

    @property
    def auth(self) -> tuple[str, ...]: ...
    @property
    def ticket_audience(self) -> str: ...
    @property
    def auth_url(self) -> str: ...
    @property
    def auth_timeout(self) -> float: ...
    @property
    def auth_cache(self) -> float: ...
    @property
    def database(self) -> str: ...
    @property
    def database_file(self) -> str: ...
    @property
    def user_query(self) -> str: ...
    @property
    def conversation_query(self) -> str: ...
    @property
    def heartbeat_query(self) -> str: ...
    @property
    def activity_query(self) -> str: ...


def default_methods(config: AuthSettings) -> tuple[str, ...]:
    """The methods that are named, else the strongest one that is configured."""
    if config.auth:
        return config.auth
    if config.secret or config.secret_file:
        return ("ticket",)
    if config.auth_url:
        return ("callback",)
    return ("database",) if config.database or config.database_file else ("trust",)


def build_authenticator(config: AuthSettings, database: Database | None, reactor: Any) -> Chain:
    """Who says who is calling.

    :param database: already open, or None.
    :raises OperatorError: the settings do not suffice, or are wrong.
    """
    users: Lookup[Id, bool] | None = None
    if database is not None and config.user_query:
        question = Question(database, "user_query", config.user_query, ["user_id"], reactor)

        async def ask(user_id: Id) -> bool:
            return await question.ask({"user_id": user_id})

        users = Lookup(ask, keep=config.auth_cache, timeout=config.auth_timeout, clock=reactor)
    methods = [_method(name, config, users, reactor) for name in default_methods(config)]
    return Chain(methods, users, reactor)


def _method(name: str, config: AuthSettings, users: Lookup[Id, bool] | None, reactor: Any) -> Method:
    if name == "trust":
        return TrustMethod()
    if name == "ticket":
        secrets = load_secrets(config)
        if not secrets:
            raise OperatorError(
                "--auth ticket needs the secret: --secret-file FILE, or CHATWS_SECRET in the environment"
            )
        return TicketMethod(secrets, clock=reactor, audience=config.ticket_audience)
    if name == "callback":
        return CallbackMethod(config.auth_url, timeout=config.auth_timeout, reactor=reactor)
    if name == "database":
        if users is None:
            raise OperatorError("--auth database needs a database and a user_query")
        return DatabaseMethod(users)
    raise OperatorError(f'--auth: "{name}" is none of ticket, callback, database, trust')


def build_authorizer(config: AuthSettings, database: Database | None, reactor: Any) -> ConversationAuthorizer:
    """Who says what somebody may read.

    :raises OperatorError: the query has a placeholder that is not known.
    """
    return ConversationAuthorizer(
        database, config.conversation_query, keep=config.auth_cache, timeout=config.auth_timeout, clock=reactor
    )


def build_activity(config: AuthSettings, database: Database | None, reactor: Any) -> BatchedActivity:
    """Where heartbeats and activities go.

    :raises OperatorError: a query has a placeholder that is not known.
    """
    return BatchedActivity(
        database, heartbeat_query=config.heartbeat_query, activity_query=config.activity_query, clock=reactor
    )
