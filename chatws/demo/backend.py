"""The demo's backend: a small but complete application that uses the push API.

It stores each change first and publishes events afterwards, over TCP like any backend. The HTTP response is sent when
the change is stored, so a failed notification loses no message. The push client retries it, and a page that missed it
recovers or reads the API.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from twisted.enterprise import adbapi
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.demo import store
from chatws.demo.store import Row, StoreChange
from chatws.errors import ConfigError
from chatws.interfaces import Reactor, zope_clock
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["TYPING_SECONDS", "DemoBackend", "Pool", "Push"]

#: Seconds for which a customer types before the message: long enough to be noticed.
TYPING_SECONDS = 1.6
#: Seconds that the shutdown waits for pending notifications.
DRAIN_SECONDS = 2.0


class Push(Protocol):
    """The push client: chatws.clients.twisted.PushClient."""

    def publish(
        self, event: str, data: Any, *, to: Any = None, except_user_id: Any = None, key: str | None = None
    ) -> Deferred[Any]:
        """Publish an event. Fires when the server has accepted it."""
        ...

    def close(self) -> Deferred[Any]:
        """Close the connection. Fires when it is closed."""
        ...


class Pool(Protocol):
    """The database pool: twisted.enterprise.adbapi.ConnectionPool."""

    def runInteraction(self, interaction: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]: ...

    def close(self) -> None: ...


class DemoBackend:
    """The application's use cases. Every method that changes data publishes the events for it.

    :param push: the client of the push API.
    :param database_path: an SQLite file, created if it does not exist; the empty string for a database in memory.
    :param reactor: runs timers and the database's thread.
    :param make_pool: replaces the database pool in tests.
    :param wall_clock: seconds since 1970.
    """

    _log = Logger()

    def __init__(
        self,
        push: Push,
        database_path: str,
        *,
        reactor: Reactor,
        make_pool: Callable[[dict[str, Any]], Pool] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.push = push
        self.reactor = reactor
        self._throttled_log = ThrottledLog(self._log, reactor)
        self._wall_clock = wall_clock
        self.instance = ""
        self._path = database_path
        self._make_pool = make_pool or self._make_single_thread_pool
        self._pool: Pool | None = None
        self._open_connection: sqlite3.Connection | None = None
        self._notifications: set[Deferred[Any]] = set()
        self._customers: set[Deferred[Any]] = set()

    def start(self) -> None:
        """Open the database and fill it if it is empty.

        :raises ConfigError: the database cannot be opened.
        """
        # A database in memory exists while a connection to it is open, so one connection stays open.
        name = f"file:chatws-demo-{uuid.uuid4().hex}?mode=memory&cache=shared" if not self._path else self._path
        arguments: dict[str, Any] = {
            "database": name,
            "uri": not self._path,
            "check_same_thread": False,
            "timeout": 10.0,
        }
        try:
            self._open_connection = sqlite3.connect(**arguments)
            self.instance = store.prepare(self._open_connection, self._wall_clock())
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot open the demo's database {self._path!r} (--demo-database): {error}") from error
        self._pool = self._make_pool(arguments)

    def _make_single_thread_pool(self, arguments: dict[str, Any]) -> Pool:
        def configure(connection: sqlite3.Connection) -> None:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")

        pool: Pool = adbapi.ConnectionPool(  # type: ignore[no-untyped-call]
            "sqlite3", cp_min=1, cp_max=1, cp_openfun=configure, cp_reactor=self.reactor, cp_noisy=False, **arguments
        )
        return pool

    async def stop(self) -> None:
        """Wait shortly for pending notifications, then close the database. Idempotent."""
        for customer in list(self._customers):
            customer.cancel()
        if self._notifications:
            pending = DeferredList(list(self._notifications), consumeErrors=True)
            pending.addTimeout(DRAIN_SECONDS, zope_clock(self.reactor), onTimeoutCancel=lambda result, timeout: None)
            await pending
        pool, self._pool = self._pool, None
        connection, self._open_connection = self._open_connection, None
        if pool is not None:
            pool.close()
        if connection is not None:
            connection.close()

    # Queries

    async def agents(self) -> list[Row]:
        return await self._transact(store.agents)  # type: ignore[no-any-return]

    async def conversations(self, agent_id: int | None) -> list[Row]:
        return await self._transact(store.conversations, agent_id)  # type: ignore[no-any-return]

    async def messages(self, conversation_id: int) -> tuple[Row, list[Row], Row]:
        return await self._transact(store.messages, conversation_id)  # type: ignore[no-any-return]

    # Changes

    async def send(self, conversation_id: int, agent_id: int, content: str, client_id: str | None) -> StoreChange:
        """Store an agent's message and publish it.

        A repeated message is published again, because the first notification may have been lost with its process. The
        idempotency key prevents a second delivery.
        """
        change = await self._transact(store.send, conversation_id, agent_id, content, client_id, self._now())
        return self._announce(change)

    async def assign(self, conversation_id: int, agent_id: int | None, by: int | None) -> StoreChange:
        return self._announce(await self._transact(store.assign, conversation_id, agent_id, by, self._now()))

    async def set_status(self, conversation_id: int, status: str, by: int | None) -> StoreChange:
        return self._announce(await self._transact(store.set_status, conversation_id, status, by, self._now()))

    async def mark_read(self, conversation_id: int, agent_id: int, message_id: int | None) -> Row:
        conversation, last_read = await self._transact(store.mark_read, conversation_id, agent_id, message_id)
        if last_read is not None:
            read = {"conversation_id": conversation_id, "message_id": last_read, "user_id": agent_id}
            self._notify("message_read", read)
            # the agent's other windows update their unread counts
            self._notify_conversation(conversation, to={"user_id": agent_id})
        return conversation  # type: ignore[no-any-return]

    async def customer_writes(
        self, conversation_id: int | None, *, new: bool = False, content: str | None = None, typing: bool = False
    ) -> StoreChange:
        """Let a customer write a message.

        :param conversation_id: None for a conversation that the demo chooses, or for a new contact.
        :param new: a new contact writes.
        :param content: the text; None for a prepared one.
        :param typing: publish typing first, for `TYPING_SECONDS`.
        """
        if conversation_id is None and not new:
            conversation_id = await self._transact(store.choose_customer)
        if typing and conversation_id is not None:
            await self._transact(store.conversation, conversation_id)
            await self._show_typing(conversation_id)
        change = await self._transact(store.customer_writes, conversation_id, content, self._now())
        return self._announce(change)

    async def _show_typing(self, conversation_id: int) -> None:
        data = {"conversation_id": conversation_id, "user_id": f"customer-{conversation_id}"}
        self._notify("typing", {**data, "is_typing": True})
        wait: Deferred[None] = deferLater(zope_clock(self.reactor), TYPING_SECONDS)
        self._customers.add(wait)
        try:
            await wait
        except CancelledError:
            pass  # the server stops: the message is stored if the database is still open
        finally:
            self._customers.discard(wait)
            self._notify("typing", {**data, "is_typing": False})

    # Notifications

    def _announce(self, change: StoreChange) -> StoreChange:
        conversation, message = change.conversation, change.message
        if change.created:
            self._notify("new_conversation", {"conversation": conversation})
        if message is not None:
            self._notify(
                "new_message",
                {"conversation_id": conversation["id"], "message": message},
                key=f"demo-{self.instance}-message-{message['id']}",
            )
            if not change.created:
                self._notify_conversation(conversation)
        return change

    def _notify_conversation(self, conversation: Row, to: Any = None) -> None:
        data = {"conversation_id": conversation["id"], "conversation": conversation}
        self._notify("conversation_updated", data, to=to)

    def _notify(self, event: str, data: Row, *, to: Any = None, key: str | None = None) -> None:
        def log_failure(failure: Failure) -> None:
            self._log.warn("notification failed: {event}: {reason}", event=event, reason=str(failure.value))

        def forget(result: Any) -> None:
            self._notifications.discard(pending)

        pending = maybeDeferred(self.push.publish, event, data, to=to, key=key)
        self._notifications.add(pending)
        pending.addErrback(log_failure)
        pending.addBoth(forget)

    def _transact(self, interaction: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._pool is None:
            raise store.DemoError(503, "unavailable", "the demo is starting or stopping, try again")
        transaction: Deferred[Any] = self._pool.runInteraction(interaction, *arguments)
        return transaction.addErrback(self._translate_error)

    def _translate_error(self, failure: Failure) -> Failure:
        """Turn an error of the disk into a `DemoError`, because the next request may succeed."""
        error = failure.value
        if not (isinstance(error, sqlite3.Error) and store.is_temporary(error)):
            return failure
        self._throttled_log.warn(str(error), "the demo's database is unavailable: {reason}", reason=str(error))
        return Failure(store.DemoError(503, "unavailable", f"the demo's database is unavailable ({error}), try again"))  # type: ignore[no-untyped-call]

    def _now(self) -> str:
        return store.timestamp(self._wall_clock())
