"""Builds the authenticator, the authorizer and the activity sink from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from chatws.auth.activity import BatchedActivity
from chatws.auth.authorizer import ConversationAuthorizer
from chatws.auth.cache import SingleFlightCache
from chatws.auth.callback import CallbackMethod
from chatws.auth.chain import AuthenticatorChain
from chatws.auth.database import DatabaseMethod
from chatws.auth.exists_query import ExistsQuery
from chatws.auth.fair_queue import FairQueue
from chatws.auth.jwks import JwksKeys
from chatws.auth.methods import Method
from chatws.auth.public_keys import load_key_files
from chatws.auth.roles import Roles
from chatws.auth.secrets import SecretSettings, load_secrets
from chatws.auth.token import TimeSource, TokenMethod
from chatws.auth.trust import TrustMethod
from chatws.database.interface import Database, QueryTest, Row
from chatws.errors import ConfigError
from chatws.ids import Id
from chatws.interfaces import Clock, Reactor
from chatws.runtime.clock import WallClock

__all__ = [
    "NO_TOKEN_KEY",
    "AuthSettings",
    "build_activity",
    "build_authenticator",
    "build_authorizer",
    "default_methods",
    "query_tests",
]

NO_TOKEN_KEY = (
    "--auth token needs the secret: --secret-file FILE, or CHATWS_SECRET in the environment. "
    "For tokens signed with a private key it needs --token-key-file FILE or --jwks-url URL"
)


class AuthSettings(SecretSettings, Protocol):
    """The settings of `chatws.config.schema.Config` that this module uses."""

    @property
    def auth_methods(self) -> tuple[str, ...]: ...
    @property
    def token_key_files(self) -> tuple[str, ...]: ...
    @property
    def jwks_url(self) -> str: ...
    @property
    def token_audience(self) -> str: ...
    @property
    def auth_url(self) -> str: ...
    @property
    def auth_ttl(self) -> float: ...
    @property
    def auth_timeout(self) -> float: ...
    @property
    def auth_cache(self) -> float: ...
    @property
    def database(self) -> str: ...
    @property
    def database_file(self) -> str: ...
    @property
    def database_pool(self) -> int: ...
    @property
    def user_query(self) -> str: ...
    @property
    def conversation_query(self) -> str: ...
    @property
    def heartbeat_query(self) -> str: ...
    @property
    def activity_query(self) -> str: ...
    @property
    def contacts(self) -> bool: ...
    @property
    def agent_roles(self) -> tuple[str, ...]: ...
    @property
    def contact_roles(self) -> tuple[str, ...]: ...
    @property
    def default_role(self) -> str: ...
    @property
    def contact_query(self) -> str: ...
    @property
    def contact_conversation_query(self) -> str: ...


def default_methods(config: AuthSettings) -> tuple[str, ...]:
    """Return the methods of `--auth`, or else the strongest one that is configured."""
    if config.auth_methods:
        return config.auth_methods
    if config.secret or config.secret_files or config.token_key_files or config.jwks_url:
        return ("token",)
    if config.auth_url:
        return ("callback",)
    return ("database",) if config.database or config.database_file else ("trust",)


def build_authenticator(
    config: AuthSettings, database: Database | None, reactor: Reactor, wall_clock: TimeSource = WallClock
) -> AuthenticatorChain:
    """Build the chain of authentication methods.

    :param database: the application's database, or None.
    :param wall_clock: `seconds()` since 1970, to compare with the times in tokens.
    :raises ConfigError: a method lacks its settings, or a setting is invalid.
    """
    users = _user_cache("user_query", config.user_query, "user_id", config, database, reactor)
    contacts = _user_cache("contact_query", config.contact_query, "contact_id", config, database, reactor)
    methods = [_method(name, config, users, reactor, wall_clock) for name in default_methods(config)]
    roles = Roles(
        contacts=config.contacts,
        agent_roles=config.agent_roles,
        contact_roles=config.contact_roles,
        default_role=config.default_role,
    )
    return AuthenticatorChain(methods, users, reactor, contacts=contacts, roles=roles)


def _user_cache(
    name: str, sql: str, placeholder: str, config: AuthSettings, database: Database | None, clock: Clock
) -> SingleFlightCache[Id, Row | None] | None:
    """Return the lookups of a query by id, or None without a database or a query."""
    if database is None or not sql:
        return None
    query = ExistsQuery(database, name, sql, [placeholder], clock)

    async def load(id: Id) -> Row | None:
        return await query.run({placeholder: id})

    queue = FairQueue(config.database_pool, config.auth_timeout, clock)
    return SingleFlightCache(load, ttl=config.auth_cache, timeout=config.auth_timeout, clock=clock, queue=queue)


def _method(
    name: str,
    config: AuthSettings,
    users: SingleFlightCache[Id, Row | None] | None,
    reactor: Reactor,
    wall_clock: TimeSource,
) -> Method:
    if name == "trust":
        return TrustMethod()
    if name == "token":
        secrets, public_keys = load_secrets(config), load_key_files(config)
        if not (secrets or public_keys or config.jwks_url):
            raise ConfigError(NO_TOKEN_KEY)
        # half of the time: tokens are still accepted with the keys of before if the URL does not respond
        timeout = config.auth_timeout / 2
        return TokenMethod(
            secrets,
            clock=wall_clock,
            audience=config.token_audience,
            public_keys=public_keys,
            key_set=JwksKeys(config.jwks_url, timeout=timeout, reactor=reactor) if config.jwks_url else None,
        )
    if name == "callback":
        return CallbackMethod(config.auth_url, timeout=config.auth_timeout, ttl=config.auth_ttl, reactor=reactor)
    if name == "database":
        if users is None:
            raise ConfigError("--auth database needs a database and a user_query")
        return DatabaseMethod(users)
    raise ConfigError(f'--auth: "{name}" is not one of token, callback, database, trust')


def build_authorizer(config: AuthSettings, database: Database | None, clock: Clock) -> ConversationAuthorizer:
    """Build the authorizer.

    :raises ConfigError: the query has an unknown placeholder.
    """
    return ConversationAuthorizer(
        database,
        config.conversation_query,
        ttl=config.auth_cache,
        timeout=config.auth_timeout,
        slots=config.database_pool,
        clock=clock,
        contact_query=config.contact_conversation_query if config.contacts else "",
    )


def build_activity(
    config: AuthSettings, database: Database | None, clock: Clock, wall_clock: Callable[[], float] = time.time
) -> BatchedActivity:
    """Build the activity sink.

    :param wall_clock: returns seconds since 1970.
    :raises ConfigError: a query has an unknown placeholder.
    """
    return BatchedActivity(
        database,
        heartbeat_query=config.heartbeat_query,
        activity_query=config.activity_query,
        clock=clock,
        wall_clock=wall_clock,
    )


def query_tests(config: AuthSettings) -> list[QueryTest]:
    """Return the configured queries, each with test values."""
    ids = {"user_id": 1, "contact_id": 1, "conversation_id": 1}
    tests = [
        QueryTest("user_query", config.user_query, ids, False),
        QueryTest("conversation_query", config.conversation_query, ids, False),
        QueryTest("contact_query", config.contact_query, ids, False),
        QueryTest("contact_conversation_query", config.contact_conversation_query, ids, False),
        QueryTest("heartbeat_query", config.heartbeat_query, {**ids, "last_activity": 0.0}, True),
        QueryTest("activity_query", config.activity_query, {**ids, "activity_type": "test"}, True),
    ]
    return [test for test in tests if test.sql]
