"""A session with Redis, for ever: another one whenever it ends, with everything told that came meanwhile.

Here it is looked whether a Redis still has the log that we know (verify.lua), and whether it is still there at all.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.redis.connection import Lost, Refused, one_line
from chatws.brokers.redis.follower import Follower
from chatws.brokers.redis.location import Location
from chatws.brokers.redis.scripts import VERIFY, Keys
from chatws.brokers.redis.sentinel import find_master
from chatws.brokers.redis.session import Session, open_session
from chatws.errors import OperatorError

__all__ = ["Keeper"]

#: Seconds between attempts to connect: the first, and the most; each is shortened by up to a half, at random.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
#: How often within its time-out a silent connection is asked whether it is alive.
LOOKS = 3
#: Refusals that waiting does not mend.
_FINAL = frozenset({"NOAUTH", "NOPERM", "WRONGPASS", "WRONGTYPE"})


class Keeper:
    """
    :param follower: is told of batches; holds what is known of the log.
    :param timeout: seconds within which Redis has to answer.
    :param time: the time as the scripts take it.
    :param on_anew: called with the epoch of a log that started anew.
    :param on_lost: called when a session that was ready has ended.
    :ivar session: the present one, ready or not; None without.
    :ivar is_ready: whether it can be asked.
    """

    _log = Logger()

    def __init__(
        self,
        location: Location,
        keys: Keys,
        follower: Follower,
        *,
        timeout: float,
        reactor: Any,
        time: Callable[[], str],
        on_anew: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.session: Session | None = None
        self.is_ready = False
        self._location = location
        self._keys = keys
        self._follower = follower
        self._timeout = timeout
        self._reactor = reactor
        self._time = time
        self._on_anew = on_anew
        self._on_lost = on_lost
        self._stopping = False
        self._starting: Deferred[None] | None = None
        self._running: Deferred[None] | None = None

    def start(self) -> Deferred[None]:
        """Fires when there is a session. Tries for the time-out.

        :raises OperatorError: through the Deferred, when there is none by then, or cannot be for a wrong password, say.
        """
        self._starting = Deferred.fromCoroutine(self._start())
        return self._starting.addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):
            raise OperatorError("--broker: stopped before Redis was reached")
        failure.raiseException()

    async def _start(self) -> None:
        deadline = self._reactor.seconds() + self._timeout
        attempt = 0
        while True:
            try:
                session = await self._connect()
                break
            except (Lost, Refused) as error:
                pause = _backoff(attempt)
                is_final = isinstance(error, Refused) and error.code in _FINAL
                if is_final or self._reactor.seconds() + pause > deadline:
                    raise OperatorError(
                        f"--broker: Redis at {self._location.name} cannot be used: {one_line(error)}"
                    ) from None
            attempt += 1
            await deferLater(self._reactor, pause)
        self._running = Deferred.fromCoroutine(self._keep_going(session))
        self._running.addErrback(self._stopped_running)

    def drop(self, reason: str) -> None:
        """End the present session, for that reason; another one follows."""
        if self.session is not None:
            self.session.drop(reason)

    async def stop(self) -> None:
        """End it for good. Returns when the connections are closed."""
        self._stopping = True
        self.is_ready = False
        session, self.session = self.session, None
        for one in (self._starting, self._running):
            if one is not None:
                one.cancel()
        if session is not None:
            session.drop("the broker is stopping")
            await session.closed

    def _stopped_running(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("Fault in the connection to Redis", failure)

    async def _keep_going(self, session: Session) -> None:
        """Have a session, for ever."""
        while True:
            reason = await self._watch(session)
            self.is_ready = False
            self.session = None
            self._follower.hold()
            self._on_lost()
            self._log.warn("Redis at {where} is lost: {reason}", where=self._location.name, reason=reason)
            attempt = 0
            problem = ""
            while True:
                try:
                    session = await self._connect()
                    break
                except (Lost, Refused, OperatorError) as error:
                    if one_line(error) != problem:
                        problem = one_line(error)
                        self._log.warn("Redis cannot be reached: {reason}", reason=problem)
                except CancelledError:
                    raise
                except Exception:
                    self._log.failure("Fault in reaching Redis")
                await deferLater(self._reactor, _backoff(attempt))
                attempt += 1
            self._log.info("Redis at {where} is there again", where=self._location.name)

    async def _connect(self) -> Session:
        """A session in which everything has been told that was published meanwhile."""
        try:
            session = await open_session(self._location, timeout=self._timeout, reactor=self._reactor)
        except Lost:
            if self._stopping:
                raise CancelledError from None  # not every endpoint says it so
            raise
        self.session = session
        try:
            await self._begin(session)
            if not session.is_open:
                raise Lost("the connection was closed")
        except BaseException as error:
            self.session = None
            self._follower.hold()
            session.drop(one_line(error))
            raise
        self.is_ready = True
        return session

    async def _begin(self, session: Session) -> None:
        follower = self._follower
        greeting = secrets.token_urlsafe(9)
        came = follower.expect(greeting)
        await session.subscriber.subscribe_to(self._keys.channel, follower.receive, follower.flush)
        epoch, _, tip = await self._verify(session, greeting)
        came.addTimeout(self._timeout, self._reactor)
        session.ended.addCallback(_and_cancel, came)
        try:
            await came
        except DeferredTimeout:
            raise Lost("what is published does not come back") from None
        except CancelledError:
            if session.is_open:
                raise
            raise Lost("the connection was closed") from None
        anew = not follower.epoch
        if anew:
            follower.epoch, follower.tip = epoch, tip
        elif epoch != follower.epoch:
            self._log.error(
                "Redis has lost the event log: epoch {old} ends at offset {last}, epoch {new} begins",
                old=follower.epoch,
                last=follower.last,
                new=epoch,
            )
            follower.epoch, follower.last, follower.tip = epoch, 0, ""
            self._on_anew(epoch)
        await follower.catch_up(greeting, anew=anew)

    async def _verify(self, session: Session, greeting: str) -> tuple[str, int, str]:
        """The log's epoch, last offset and tip, after it was made sure that it is the one that we know."""
        follower = self._follower
        epoch, _, last, tip = await session.run(
            VERIFY,
            self._keys.log,
            follower.epoch,
            follower.last,
            follower.tip,
            secrets.token_urlsafe(8),
            greeting,
            self._keys.channel,
            self._time(),
        )
        return epoch.decode(), int(last), tip.decode()

    async def _watch(self, session: Session) -> str:
        """Wait for the session's end, and see to it that silence becomes one. Returns the reason."""
        stuck = 0

        def look() -> None:
            nonlocal stuck
            stuck = stuck + 1 if self._follower.waits else 0
            if stuck > LOOKS:
                session.drop("what others have published does not come")
            elif not session.looking:
                looking = Deferred.fromCoroutine(self._look(session))
                looking.addErrback(lambda failure: self._log.failure("Fault in looking after Redis", failure))

        ticks = LoopingCall(look)
        ticks.clock = self._reactor
        ticks.start(self._timeout / LOOKS, now=False)
        try:
            return await session.ended
        finally:
            ticks.stop()

    async def _look(self, session: Session) -> None:
        """Is it there, does it still have our log, and is it still the master?"""
        session.looking = True
        try:
            epoch, _, _ = await self._verify(session, "")
            if epoch != self._follower.epoch:
                session.drop("the log started anew")
            await session.subscriber.ask("PING")
            if self._location.service:
                address = await find_master(self._location, timeout=self._timeout, reactor=self._reactor)
                if address != session.address:
                    session.drop("Sentinel names another master")
        except (Lost, Refused):
            pass  # the session has ended, or somebody will be told: the next who publishes
        finally:
            session.looking = False


def _and_cancel(reason: str, deferred: Deferred[None]) -> str:
    deferred.cancel()
    return reason


def _backoff(attempt: int) -> float:
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 10)) * random.uniform(0.5, 1.0))
