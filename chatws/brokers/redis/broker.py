"""The event history in Redis, for any number of nodes. See chatws.brokers.redis for its modules."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from chatws.brokers.base import CLOSED, NO_WEBHOOKS, BaseBroker, requires_open
from chatws.brokers.interface import (
    AGENT_SPACE,
    KEY_SECONDS,
    Event,
    EventHandler,
    LeaseResult,
    MemberData,
    NewEvent,
    Retention,
)
from chatws.brokers.listener_queue import ListenerQueue
from chatws.brokers.publish_queue import PublishBatch, PublishQueue
from chatws.brokers.redis.batch_consumer import BatchConsumer, PendingBatch
from chatws.brokers.redis.batches import AppendReply, StoredEvent, decode_reply, decode_stored, encode_new_events
from chatws.brokers.redis.connection import CommandError, ConnectionLost, one_line
from chatws.brokers.redis.presence import PresenceQueries
from chatws.brokers.redis.scripts import ADD_WEBHOOKS, APPEND, EXCHANGE_WEBHOOKS, OFFSET_RANGE, READ, KeyNames
from chatws.brokers.redis.session import RedisSession
from chatws.brokers.redis.session_manager import SessionManager
from chatws.brokers.redis.url import RedisUrl
from chatws.brokers.redis.webhooks import decode_webhooks
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    WebhookQueueSettings,
    WebhookReply,
    WebhookRequest,
)
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Reactor

__all__ = ["RedisBroker"]

T = TypeVar("T")

#: New events in one script, and bytes of their data, unless one publish has more: Redis serves nobody else meanwhile.
MAX_DRAFTS = 500
MAX_BYTES = 1024 * 1024
#: Bytes of a batch above which nodes read its events from the history: Redis disconnects a subscriber with 32 MB unread
#: (client-output-buffer-limit).
MAX_MESSAGE = 4 * 1024 * 1024
#: Bytes of events in one read: Redis serves nobody else meanwhile.
MAX_READ = 4 * 1024 * 1024
#: Error text while there is no session.
UNREACHABLE = "the event history cannot be reached now"


class RedisBroker(BaseBroker):
    """A broker (see chatws.brokers.interface). While Redis cannot be reached everything fails at once.

    :param location: see chatws.brokers.redis.url.
    :param retention: limits of what is kept. Nodes should agree on them: the narrowest apply.
    :param reactor: a real one.
    :param now: returns seconds since 1970. By default the clock of Redis.
    :param timeout: seconds within which Redis has to answer.
    :param webhook_queue: settings of the queue of webhooks.
    """

    _log = Logger()
    shared = True

    def __init__(
        self,
        location: RedisUrl,
        retention: Retention,
        *,
        reactor: Reactor,
        now: Callable[[], float] | None = None,
        timeout: float = 5.0,
        webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
    ) -> None:
        super().__init__()
        self.epoch = ""
        self._url = location
        self._retention = (repr(retention.events), repr(retention.seconds), repr(retention.size))
        self._now = now
        self._timeout = timeout
        self._webhook_limit = webhook_queue.limit
        self._keys = KeyNames(location.prefix)
        self._presence = PresenceQueries(self._keys, self._time, webhook_queue)
        self._listener_queue = ListenerQueue()
        self._consumer = BatchConsumer(self._deliver, self._read_page, self._drop)
        self._sessions = SessionManager(
            location,
            self._keys,
            self._consumer,
            timeout=timeout,
            reactor=reactor,
            time=self._time,
            on_anew=self._started_anew,
            on_lost=self._fail_waiting,
        )
        self._listener: EventHandler | None = None
        self._name = secrets.token_urlsafe(6)
        self._count = 0
        self._stopping: Deferred[None] | None = None
        self._queue = PublishQueue(MAX_DRAFTS, MAX_BYTES)
        self._writing = False
        self._publishing = 0
        self._asking = 0
        self._problem = ""

    # Start and stop

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`. Tries for the time-out to reach Redis."""
        self._listener = listener
        self._listener_queue.start(listener)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        await self._sessions.start()
        self.epoch = self._consumer.epoch
        self._open = True
        await self._warn_of_eviction()

    async def _warn_of_eviction(self) -> None:
        session = self._sessions.session
        if session is None:
            return
        try:
            response: bytes = await session.ask("INFO", "memory")
        except (ConnectionLost, CommandError):
            return
        facts = dict(line.split(":", 1) for line in response.decode().splitlines() if ":" in line)
        policy = facts.get("maxmemory_policy", "noeviction")
        if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
            self._log.warn(
                "Redis may evict the event history or its idempotency keys: maxmemory-policy is {policy}, "
                "set noeviction",
                policy=policy,
            )

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Fires when the connections are closed."""
        self._open = False
        if self._stopping is None:
            self._stopping = Deferred.fromCoroutine(self._stop())
        done: Deferred[None] = Deferred()
        self._stopping.addCallback(done.callback)
        return done

    async def _stop(self) -> None:
        while self._sessions.is_ready and (self._publishing or self._asking):
            await self._wait_until_idle()
        await self._sessions.stop()
        self._consumer.hold()
        self._fail_waiting(CLOSED)

    def _started_anew(self, epoch: str) -> None:
        self.epoch = epoch
        assert self._listener is not None
        try:
            self._listener.reset(epoch)
        except Exception:
            self._log.failure("listener failed on a new epoch")

    def _fail_waiting(self, reason: str = UNREACHABLE) -> None:
        """Fail the publishes that wait, because the session has ended."""
        self._problem = ""
        self._queue.fail(Unavailable(reason))
        self._signal_idle()

    # Publishing

    @requires_open
    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`. Publishes that arrive before Redis has responded share the next script."""
        if not self._sessions.is_ready:
            return fail(Unavailable(UNREACHABLE))
        if not new_events:
            return succeed([])
        self._publishing += 1
        published = self._queue.add(new_events)
        published.addBoth(self._published)
        self._write_waiting()
        return published

    def _published(self, outcome: T) -> T:
        self._publishing -= 1
        self._signal_idle()
        return outcome

    def _write_waiting(self) -> None:
        session = self._sessions.session
        if self._writing or not self._queue or session is None:
            return
        self._writing = True
        writing = Deferred.fromCoroutine(self._write(session))
        writing.addErrback(lambda failure: self._log.failure("writing to Redis failed", failure))
        writing.addBoth(self._written)

    def _written(self, _: object) -> None:
        self._writing = False
        if self._sessions.is_ready:
            self._write_waiting()

    async def _write(self, session: RedisSession) -> None:
        """Send the batches that wait, one script after the other."""
        while self._queue and session is self._sessions.session:
            batch = PendingBatch(self._next_name(), self._queue.pop())
            consumer = self._consumer
            consumer.sent(batch)
            try:
                reply, acknowledged = await self._append(session, batch)
            except (ConnectionLost, CommandError) as error:
                consumer.answered(batch, None, self._explain(error))
                if isinstance(error, CommandError) and error.code == "OOM":
                    await self._trim(session)
                continue
            except BaseException:
                consumer.answered(batch, None, "the event history cannot be written now")
                raise
            if reply is None:
                session.drop("the history was replaced")
                consumer.answered(batch, None, "the event history cannot be written now")
                return
            missing = self._url.replicas - acknowledged
            consumer.answered(batch, reply, f"{missing} replicas did not take it in time" if missing > 0 else "")
            if reply.more and not self._queue:
                await self._trim(session)
            self._problem = ""

    async def _append(self, session: RedisSession, batch: PendingBatch) -> tuple[AppendReply | None, int]:
        """Run the script, and return its reply and the number of replicas that have the batch."""
        keys = tuple(self._keys.key(new_event.key) for new_event in batch.new_events if new_event.key is not None)
        kinds, bodies = encode_new_events(batch.new_events)
        consumer = self._consumer
        running = session.run(
            APPEND,
            self._keys.history + keys,
            consumer.epoch,
            consumer.last,
            consumer.last_batch_id,
            batch.name,
            self._time(),
            *self._retention,
            self._keys.channel,
            round(KEY_SECONDS),
            MAX_MESSAGE,
            int(self._url.replicas > 0),
            kinds,
            *bodies,
        )
        if not self._url.replicas:
            return decode_reply(await running), 0
        reply = decode_reply(await running)
        acknowledged = await session.ask("WAIT", self._url.replicas, round(self._timeout * 500))
        return reply, int(acknowledged)

    async def _trim(self, session: RedisSession) -> None:
        """Drop the oldest events past their retention, about a thousand at a time."""
        more = True
        while more and session is self._sessions.session:
            try:
                reply, _ = await self._append(session, PendingBatch("", PublishBatch()))
            except (ConnectionLost, CommandError):
                return
            more = reply is not None and reply.more and not self._queue

    def _explain(self, error: Exception) -> str:
        """Return the error text for publishers. Log the reason once, not for each event that a full Redis rejects."""
        if isinstance(error, CommandError) and one_line(error) != self._problem:
            self._problem = one_line(error)
            self._log.error("Redis does not take events: {reason}", reason=self._problem)
        return "the event history cannot be written now"

    def _drop(self, reason: str) -> None:
        self._sessions.drop(reason)

    def _deliver(self, events: list[Event]) -> None:
        self._listener_queue.notify(events, events)

    # Reading

    @requires_open
    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return self._ask(self._read, after, limit)

    async def _read(self, session: RedisSession, after: int, limit: int) -> list[Event]:
        events: list[Event] = []
        ended = limit <= 0
        while not ended and len(events) < limit:
            ended, page = await self._read_page(after, min(limit - len(events), 1000))
            events += [stored.event for stored in page]
            after = events[-1].offset if events else after
        return events

    async def _read_page(self, after: int, limit: int) -> tuple[bool, list[StoredEvent]]:
        """Return whether the end of the history is reached, and up to `limit` events."""
        session = self._sessions.session
        if session is None:
            raise ConnectionLost("the connection was closed")
        answer = await session.run(READ, self._keys.history, self._consumer.epoch, after, limit, MAX_READ)
        if answer is None:
            session.drop("the history was replaced")
            raise ConnectionLost("the history was reset")
        return answer[0] == b"1", [decode_stored(*answer[n : n + 3]) for n in range(1, len(answer), 3)]

    @requires_open
    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`."""
        return self._ask(self._read_offset_range)

    async def _read_offset_range(self, session: RedisSession) -> tuple[int, int]:
        answer = await session.run(OFFSET_RANGE, self._keys.history, self._consumer.epoch)
        if answer is None:
            session.drop("the history was replaced")
            raise ConnectionLost("the history was reset")
        stored, last = answer
        return int(last) + 1 - int(stored), int(last)

    # Presence

    @requires_open
    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        return self._ask(self._presence.lease, node, dict(connection_counts), seconds, space)

    @requires_open
    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return self._ask(self._presence.online, space)

    @requires_open
    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """See `Broker.nodes_without`."""
        return self._ask(self._presence.nodes_without, space)

    @requires_open
    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """See `Broker.set_data`."""
        return self._ask(self._presence.set_data, space, member, data, seconds)

    @requires_open
    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return self._ask(self._presence.data, space)

    # Webhooks

    @requires_open
    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        return self._ask(self._add_webhooks, webhooks, reset) if self._webhook_limit else fail(Unavailable(NO_WEBHOOKS))

    async def _add_webhooks(self, session: RedisSession, webhooks: Sequence[NewWebhook], reset: bool) -> None:
        parts = [part for webhook in webhooks for part in webhook]
        keys = (self._keys.webhooks,)
        await session.run(ADD_WEBHOOKS, keys, self._time(), self._webhook_limit, int(reset), *parts)

    @requires_open
    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        return self._ask(self._exchange_webhooks, request) if self._webhook_limit else fail(Unavailable(NO_WEBHOOKS))

    async def _exchange_webhooks(self, session: RedisSession, request: WebhookRequest) -> WebhookReply:
        reply = await session.run(
            EXCHANGE_WEBHOOKS,
            (self._keys.webhooks,),
            self._time(),
            secrets.token_urlsafe(6),
            self.epoch,
            request.owner,
            repr(float(request.seconds)),
            request.name,
            request.acked,
            request.after,
            request.limit,
            request.reset_done,
            request.numbers,
        )
        return decode_webhooks(reply, request.limit)

    # Common parts

    def _ask(self, question: Callable[..., Awaitable[T]], *arguments: Any) -> Deferred[T]:
        """Query Redis, if there is a session."""
        session = self._sessions.session
        if not self._sessions.is_ready or session is None:
            return fail(Unavailable(UNREACHABLE))

        async def ask() -> T:
            self._asking += 1
            try:
                return await question(session, *arguments)
            except ConnectionLost as lost:
                raise Unavailable(UNREACHABLE) from lost
            except CommandError as refused:
                raise Unavailable(self._explain(refused)) from refused
            finally:
                self._asking -= 1
                self._signal_idle()

        return Deferred.fromCoroutine(ask())

    def _time(self) -> str:
        return "" if self._now is None else repr(float(self._now()))

    def _next_name(self) -> str:
        """Return a batch id that is unique among all nodes."""
        self._count += 1
        return f"{self._name}{self._count}"
