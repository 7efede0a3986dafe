"""The demo's backend: what an application on the other side of the push port does, small but whole.

Each change is stored first and notified afterwards, over TCP like any backend's. The request is answered when the
change is stored: a notification that fails costs nobody their message. The push client retries it, and a page that
missed it recovers or reads it by the API.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from twisted.enterprise import adbapi
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from chatws.demo import store
from chatws.demo.store import Change, Row
from chatws.errors import OperatorError

__all__ = ["TYPING_SECONDS", "DemoBackend", "Pool", "Push"]

#: For how long a customer is seen typing before the message comes.
TYPING_SECONDS = 1.6
#: How long the end waits for notifications that are on their way.
DRAIN_SECONDS = 2.0


class Push(Protocol):
    """How the backend notifies: chatws.push.client.PushClient."""

    def publish(
        self, event: str, data: Any, *, to: Any = None, except_user_id: Any = None, key: str | None = None
    ) -> Deferred[Any]:
        """Fires when the server has accepted the event."""
        ...

    def close(self) -> Deferred[Any]:
        """Fires when the connection is closed."""
        ...


class Pool(Protocol):
    """Where transactions run: twisted.enterprise.adbapi.ConnectionPool."""

    def runInteraction(self, interaction: Callable[..., Any], *args: Any, **kw: Any) -> Deferred[Any]: ...

    def close(self) -> None: ...


class DemoBackend:
    """The application's use cases. Every method that changes something notifies by itself.

    :param push: the door to chatws.
    :param database_path: an SQLite file, created when absent; the empty string for one in memory.
    :param reactor: the time, and the database's thread.
    :param make_pool: for tests: how transactions run.
    """

    _log = Logger()

    def __init__(
        self,
        push: Push,
        database_path: str,
        *,
        reactor: Any,
        make_pool: Callable[[dict[str, Any]], Pool] | None = None,
    ) -> None:
        self.push = push
        self.reactor = reactor
        self.instance = ""
        self._path = database_path
        self._make_pool = make_pool or self._one_thread
        self._pool: Pool | None = None
        self._keeper: sqlite3.Connection | None = None
        self._notifications: set[Deferred[Any]] = set()
        self._customers: set[Deferred[Any]] = set()

    def resource(self) -> Resource:
        """The page at `/`, its files under `/demo/`, and the API under `/api/`. May be asked for before `start`."""
        from chatws.demo.api import root  # the API knows the backend; the backend does not need it

        return root(self)

    def start(self) -> None:
        """Open the database and fill it when it is empty.

        :raises OperatorError: it cannot be opened.
        """
        # A database in memory lives as long as a connection to it is open: that is the keeper's work.
        name = f"file:chatws-demo-{uuid.uuid4().hex}?mode=memory&cache=shared" if not self._path else self._path
        arguments: dict[str, Any] = {
            "database": name,
            "uri": not self._path,
            "check_same_thread": False,
            "timeout": 10.0,
        }
        try:
            self._keeper = sqlite3.connect(**arguments)
            self.instance = store.prepare(self._keeper, self.reactor.seconds())
        except (sqlite3.Error, OSError) as error:
            raise OperatorError(f"the demo's database {self._path!r} cannot be used: {error}") from error
        self._pool = self._make_pool(arguments)

    def _one_thread(self, arguments: dict[str, Any]) -> Pool:
        def configure(connection: sqlite3.Connection) -> None:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")

        pool: Pool = adbapi.ConnectionPool(  # type: ignore[no-untyped-call]
            "sqlite3", cp_min=1, cp_max=1, cp_openfun=configure, cp_reactor=self.reactor, cp_noisy=False, **arguments
        )
        return pool

    async def stop(self) -> None:
        """Give notifications on their way a moment, then let go of the thread and the file. Idempotent."""
        for customer in list(self._customers):
            customer.cancel()
        if self._notifications:
            pending = DeferredList(list(self._notifications), consumeErrors=True)
            pending.addTimeout(DRAIN_SECONDS, self.reactor, onTimeoutCancel=lambda result, timeout: None)
            await pending
        pool, self._pool = self._pool, None
        keeper, self._keeper = self._keeper, None
        if pool is not None:
            pool.close()
        if keeper is not None:
            keeper.close()

    # --- what can be asked

    async def agents(self) -> list[Row]:
        return await self._transact(store.agents)  # type: ignore[no-any-return]

    async def conversations(self, agent_id: int | None) -> list[Row]:
        return await self._transact(store.conversations, agent_id)  # type: ignore[no-any-return]

    async def messages(self, conversation_id: int) -> tuple[Row, list[Row], Row]:
        return await self._transact(store.messages, conversation_id)  # type: ignore[no-any-return]

    # --- what can be done

    async def send(self, conversation_id: int, agent_id: int, content: str, client_id: str | None) -> Change:
        """A repeated one is notified again, too: perhaps the first notification was lost with its process. The event's
        key keeps it from being shown twice."""
        change = await self._transact(store.send, conversation_id, agent_id, content, client_id, self._now())
        return self._announce(change)

    async def assign(self, conversation_id: int, agent_id: int | None, by: int | None) -> Change:
        return self._announce(await self._transact(store.assign, conversation_id, agent_id, by, self._now()))

    async def set_status(self, conversation_id: int, status: str, by: int | None) -> Change:
        return self._announce(await self._transact(store.set_status, conversation_id, status, by, self._now()))

    async def mark_read(self, conversation_id: int, agent_id: int, message_id: int | None) -> Row:
        conversation, upto = await self._transact(store.mark_read, conversation_id, agent_id, message_id)
        if upto is not None:
            read = {"conversation_id": conversation_id, "message_id": upto, "user_id": agent_id}
            self._notify("message_read", read)
            # the agent's other windows take the count off their lists
            self._notify_conversation(conversation, to={"user_id": agent_id})
        return conversation  # type: ignore[no-any-return]

    async def customer_writes(
        self, conversation_id: int | None, *, new: bool = False, content: str | None = None, typing: bool = False
    ) -> Change:
        """A customer writes in.

        :param conversation_id: where; None for one that the demo chooses, or for somebody new.
        :param new: somebody new.
        :param content: what; None for something plausible.
        :param typing: be seen typing first, for `TYPING_SECONDS`.
        """
        if conversation_id is None and not new:
            conversation_id = await self._transact(store.choose_customer)
        if typing and conversation_id is not None:
            await self._transact(store.conversation, conversation_id)
            await self._be_seen_typing(conversation_id)
        change = await self._transact(store.customer_writes, conversation_id, content, self._now())
        return self._announce(change)

    async def _be_seen_typing(self, conversation_id: int) -> None:
        who = {"conversation_id": conversation_id, "user_id": f"customer-{conversation_id}"}
        self._notify("typing", {**who, "is_typing": True})
        wait: Deferred[None] = deferLater(self.reactor, TYPING_SECONDS)
        self._customers.add(wait)
        try:
            await wait
        except CancelledError:
            pass  # the server is going down: the message is stored all the same, or refused with the database
        finally:
            self._customers.discard(wait)
            self._notify("typing", {**who, "is_typing": False})

    # --- telling the others

    def _announce(self, change: Change) -> Change:
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
            self._log.warn("notification {event} was not accepted: {error}", event=event, error=failure.value)

        def done(result: Any) -> None:
            self._notifications.discard(sent)

        sent = maybeDeferred(self.push.publish, event, data, to=to, key=key)
        self._notifications.add(sent)
        sent.addErrback(log_failure)
        sent.addBoth(done)

    def _transact(self, interaction: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if self._pool is None:
            raise store.DemoError(503, "unavailable", "the demo is being started or stopped")
        return self._pool.runInteraction(interaction, *arguments)

    def _now(self) -> str:
        return store.moment(self.reactor.seconds())
