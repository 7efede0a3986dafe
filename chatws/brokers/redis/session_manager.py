"""Keeps a session with Redis: opens another one whenever it ends, and delivers what was published meanwhile.

The manager also checks that Redis still has the history that this node knows (verify.lua), and that it still responds.
docs/adr/0013-redis-lineage.md has the proof.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.redis.batch_consumer import BatchConsumer
from chatws.brokers.redis.connection import CommandError, ConnectionLost, one_line
from chatws.brokers.redis.scripts import VERIFY, KeyNames
from chatws.brokers.redis.sentinel import find_master
from chatws.brokers.redis.session import RedisSession, open_session
from chatws.brokers.redis.url import RedisUrl
from chatws.errors import ConfigError, StartError
from chatws.interfaces import Reactor, zope_clock
from chatws.runtime.backoff import backoff

__all__ = ["SessionManager"]

#: Seconds: the first and the longest pause between attempts to connect.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
#: Checks of a silent connection within the time-out.
CHECKS_PER_TIMEOUT = 3
#: Error codes that a retry does not fix.
_FINAL = frozenset({"NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE"})


class SessionManager:
    """Owns the session.

    :param consumer: receives the batches, and holds this node's position in the history.
    :param timeout: seconds within which Redis has to answer.
    :param time: the time as the scripts take it.
    :param on_anew: called with the new epoch when the history was reset.
    :param on_lost: called when a session that was ready has ended.
    :ivar session: the present session, ready or not. None if there is none.
    :ivar is_ready: whether it can be used.
    """

    _log = Logger()

    def __init__(
        self,
        location: RedisUrl,
        keys: KeyNames,
        consumer: BatchConsumer,
        *,
        timeout: float,
        reactor: Reactor,
        time: Callable[[], str],
        on_anew: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.session: RedisSession | None = None
        self.is_ready = False
        self._url = location
        self._keys = keys
        self._consumer = consumer
        self._timeout = timeout
        self._reactor = reactor
        self._time = time
        self._on_anew = on_anew
        self._on_lost = on_lost
        self._stopping = False
        self._starting: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Open the first session. Retries until the time-out has passed.

        :raises ConfigError: through the Deferred: Redis is unreachable, or rejects this node (a wrong password).
        """
        self._starting = Deferred.fromCoroutine(self._start())
        return self._starting.addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):
            raise StartError("--broker: stopped before Redis was reached")
        failure.raiseException()

    async def _start(self) -> None:
        deadline = self._reactor.seconds() + self._timeout
        attempt = 0
        while True:
            try:
                session = await self._connect()
                break
            except (ConnectionLost, CommandError) as error:
                pause = backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE)
                is_final = isinstance(error, CommandError) and error.code in _FINAL
                if is_final or self._reactor.seconds() + pause > deadline:
                    error_type = ConfigError if is_final else StartError
                    raise error_type(f"--broker: Redis at {self._url.name} cannot be used: {one_line(error)}") from None
            attempt += 1
            await deferLater(zope_clock(self._reactor), pause)
        self._running = Deferred.fromCoroutine(self._keep_going(session))
        self._running.addErrback(self._stopped_running)

    def drop(self, reason: str) -> None:
        """End the present session for that reason. Another one follows."""
        if self.session is not None:
            self.session.drop(reason)

    async def stop(self) -> None:
        """End the session for good. Returns when the connections are closed."""
        self._stopping = True
        self.is_ready = False
        session, self.session = self.session, None
        for task in (self._starting, self._running):
            if task is not None:
                task.cancel()
        if session is not None:
            session.drop("the broker is stopping")
            await session.closed

    def _stopped_running(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("the connection to Redis failed", failure)

    async def _keep_going(self, session: RedisSession) -> None:
        """Open another session whenever one ends."""
        while True:
            reason = await self._watch(session)
            self.is_ready = False
            self.session = None
            self._consumer.hold()
            self._on_lost()
            self._log.warn("Redis at {address} is lost: {reason}", address=self._url.name, reason=reason)
            attempt = 0
            failure_reason = ""
            while True:
                try:
                    session = await self._connect()
                    break
                except (ConnectionLost, CommandError, ConfigError) as error:
                    if one_line(error) != failure_reason:
                        failure_reason = one_line(error)
                        self._log.warn("Redis cannot be reached: {reason}", reason=failure_reason)
                except CancelledError:
                    raise
                except Exception:
                    self._log.failure("connecting to Redis failed")
                await deferLater(zope_clock(self._reactor), backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE))
                attempt += 1
            self._log.info("Redis at {address} is available again", address=self._url.name)

    async def _connect(self) -> RedisSession:
        """Open a session, and deliver everything that was published meanwhile."""
        try:
            session = await open_session(self._url, timeout=self._timeout, reactor=self._reactor)
        except ConnectionLost:
            if self._stopping:
                raise CancelledError from None  # some endpoints report a cancelled attempt as another error
            raise
        self.session = session
        try:
            await self._begin(session)
            if not session.is_open:
                raise ConnectionLost("the connection was closed")
        except BaseException as error:
            self.session = None
            self._consumer.hold()
            session.drop(one_line(error))
            raise
        self.is_ready = True
        return session

    async def _begin(self, session: RedisSession) -> None:
        consumer = self._consumer
        sync_marker = secrets.token_urlsafe(9)
        synced = consumer.expect(sync_marker)
        await session.subscriber.subscribe_to(self._keys.channel, consumer.receive, consumer.flush)
        epoch, _, last_batch_id = await self._verify(session, sync_marker)
        synced.addTimeout(self._timeout, zope_clock(self._reactor))
        session.ended.addCallback(_and_cancel, synced)
        try:
            await synced
        except DeferredTimeout:
            raise ConnectionLost("published messages do not arrive") from None
        except CancelledError:
            if session.is_open:
                raise
            raise ConnectionLost("the connection was closed") from None
        is_new = not consumer.epoch
        if is_new:
            consumer.epoch, consumer.last_batch_id = epoch, last_batch_id
        elif epoch != consumer.epoch:
            self._log.warn(
                "Redis has lost the event history: epoch {old_epoch} ends at offset {offset}, epoch {epoch} begins, "
                "pages reload; reason: Redis restarted without its data, or a replica that lagged took over",
                old_epoch=consumer.epoch,
                offset=consumer.last,
                epoch=epoch,
            )
            consumer.epoch, consumer.last, consumer.last_batch_id = epoch, 0, ""
            self._on_anew(epoch)
        await consumer.catch_up(sync_marker, is_new=is_new)

    async def _verify(self, session: RedisSession, sync_marker: str) -> tuple[str, int, str]:
        """Check that Redis has the history that this node knows. Returns its epoch, last offset and last batch id."""
        consumer = self._consumer
        new_epoch = secrets.token_urlsafe(8)
        epoch, _, last, last_batch_id = await session.run(
            VERIFY,
            self._keys.history,
            consumer.epoch,
            consumer.last,
            consumer.last_batch_id,
            new_epoch,
            sync_marker,
            self._keys.channel,
            self._time(),
        )
        if not consumer.epoch and epoch.decode() == new_epoch:
            self._log.warn(
                "Redis holds no history in this format, a new one begins: epoch {epoch}; if there was one before, "
                "Redis has lost it, and pages reload",
                epoch=new_epoch,
            )
            if await session.ask("EXISTS", self._keys.earlier_head):
                self._log.warn(
                    "the history at the Redis key {key} is of an earlier version of chatws: it is set aside and not "
                    "read; nodes of that version share no events with this one; delete its keys once none runs",
                    key=self._keys.earlier_head.decode(),
                )
        return epoch.decode(), int(last), last_batch_id.decode()

    async def _watch(self, session: RedisSession) -> str:
        """Wait for the end of the session and return the reason. A connection that stays silent is ended."""
        stuck = 0

        def check() -> None:
            nonlocal stuck
            stuck = stuck + 1 if self._consumer.waits else 0
            if stuck > CHECKS_PER_TIMEOUT:
                session.drop("batches of other nodes do not arrive")
            elif not session.is_checking:
                checking = Deferred.fromCoroutine(self._check(session))
                checking.addErrback(lambda failure: self._log.failure("a check of Redis failed", failure))

        ticks = LoopingCall(check)
        ticks.clock = zope_clock(self._reactor)
        ticks.start(self._timeout / CHECKS_PER_TIMEOUT, now=False)
        try:
            return await session.ended
        finally:
            ticks.stop()

    async def _check(self, session: RedisSession) -> None:
        """Check that Redis responds, still has the history of this node, and is still the master."""
        session.is_checking = True
        try:
            epoch, _, _ = await self._verify(session, "")
            if epoch != self._consumer.epoch:
                session.drop("the history was reset")
            await session.subscriber.ask("PING")
            if self._url.service:
                address = await find_master(self._url, timeout=self._timeout, reactor=self._reactor)
                if address != session.address:
                    session.drop("Sentinel names another master")
        except (ConnectionLost, CommandError):
            pass  # the session has ended, or the next publish fails and reports it
        finally:
            session.is_checking = False


def _and_cancel(reason: str, deferred: Deferred[None]) -> str:
    deferred.cancel()
    return reason
