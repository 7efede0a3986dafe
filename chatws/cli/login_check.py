"""`chatws check --user`: a login as the server would decide it, step by step."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from chatws.auth.factory import build_authenticator, build_authorizer
from chatws.auth.methods import Method, Stoppable
from chatws.chat.interfaces import Credentials, Identity
from chatws.config import validate
from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.database.interface import Database, Row, Values
from chatws.errors import ClientError, Forbidden
from chatws.ids import Id
from chatws.interfaces import Reactor

__all__ = ["LoginResult", "Step", "check_login"]

T = TypeVar("T")


class Step(NamedTuple):
    """One step of the login.

    :ivar name: a method, or the setting of a query.
    :ivar seconds: its duration, or None if it was skipped.
    """

    name: str
    result: str
    seconds: float | None


class LoginResult(NamedTuple):
    """The result of a login.

    :ivar identity: None if the login is refused.
    :ivar error: why it is refused, or may not read the conversation.
    :ivar notes: the warnings that the server would have logged.
    """

    identity: Identity | None
    error: ClientError | None
    steps: list[Step]
    notes: list[str]


class _Recorder:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    async def record(self, name: str, awaitable: Awaitable[T], describe: Callable[[T], str]) -> T:
        began = time.perf_counter()
        try:
            result = await awaitable
        except Exception as error:
            message = error.message if isinstance(error, ClientError) else str(error)
            self.steps.append(Step(name, message, time.perf_counter() - began))
            raise
        self.steps.append(Step(name, describe(result), time.perf_counter() - began))
        return result


class _RecordedMethod:
    """A method whose results are recorded. See `Method`."""

    def __init__(self, method: Method, recorder: _Recorder) -> None:
        self._method = method
        self._recorder = recorder
        self.name, self.required_credential, self.verifies_identity = (
            method.name,
            method.required_credential,
            method.verifies_identity,
        )

    def can_handle(self, credentials: Credentials) -> bool:
        if self._method.can_handle(credentials):
            return True
        self._recorder.steps.append(Step(self.name, f"skipped: it needs {self.required_credential}", None))
        return False

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        async def ask() -> Identity:
            result = self._method.authenticate(credentials)
            return await result if isinstance(result, Deferred) else result

        return Deferred.fromCoroutine(
            self._recorder.record(self.name, ask(), lambda identity: f"user {identity.user_id}")
        )

    def stop(self) -> Deferred[None]:
        return self._method.stop() if isinstance(self._method, Stoppable) else succeed(None)


class _RecordedDatabase:
    """The part of a `Database` that a login uses, with its queries recorded by the name of their setting."""

    def __init__(self, database: Database, names: Mapping[str, str], recorder: _Recorder) -> None:
        self._database = database
        self.engine = database.engine
        self._names = names
        self._recorder = recorder

    async def query(self, sql: str, values: Values) -> list[Row]:
        def describe(rows: Sequence[Row]) -> str:
            return "a row" if rows else "no row"

        return await self._recorder.record(self._names[sql], self._database.query(sql, values), describe)


async def check_login(
    config: Config, credentials: Credentials, conversation_id: Id | None, reactor: Reactor
) -> LoginResult:
    """Decide a login, and whether its user may read a conversation.

    :raises ConfigError: the settings do not suffice.
    """
    recorder = _Recorder()
    notes: list[str] = []

    def note(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.warn:
            notes.append(formatEvent(event))

    observer: Any = note

    url = validate.database_url(config)
    database = None
    recorded: Any = None
    if url:
        database = open_database(url, pool=1, timeout=config.auth_timeout, reactor=reactor)
        names = {config.user_query: "user_query", config.conversation_query: "conversation_query"}
        recorded = _RecordedDatabase(database, names, recorder)
    authenticator = build_authenticator(config, recorded, reactor)
    authenticator.methods = tuple(_RecordedMethod(method, recorder) for method in authenticator.methods)
    authorizer = build_authorizer(config, recorded, reactor)
    globalLogPublisher.addObserver(observer)
    identity: Identity | None = None
    error: ClientError | None = None
    try:
        if database is not None:
            await database.start()
            await recorder.record("connection", database.query("SELECT 1", {}), lambda _: "the database answers")
        result = authenticator.authenticate(credentials)
        identity = await result if isinstance(result, Deferred) else result
        if conversation_id is not None:
            allowed = authorizer.may_read(identity, conversation_id)
            if not (await allowed if isinstance(allowed, Deferred) else allowed):
                error = Forbidden(f"the user may not read conversation {conversation_id}")
    except ClientError as rejection:
        error = rejection
    finally:
        globalLogPublisher.removeObserver(observer)
        await authenticator.stop()
        if database is not None:
            await database.stop()
    return LoginResult(identity, error, recorder.steps, list(dict.fromkeys(notes)))
