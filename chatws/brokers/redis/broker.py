"""The log in Redis, for any number of nodes. See chatws.brokers.redis for the parts, docs/design.md for the proof."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from chatws.brokers.contract import KEY_SECONDS, Bounds, Draft, Event, Leased, Listener
from chatws.brokers.delivery import Delivery
from chatws.brokers.redis.connection import Lost, Refused, one_line
from chatws.brokers.redis.follower import Call, Follower
from chatws.brokers.redis.keeper import Keeper
from chatws.brokers.redis.location import Location
from chatws.brokers.redis.scripts import APPEND, BOUNDS, LEASE, ONLINE, READ, Keys
from chatws.brokers.redis.session import Session
from chatws.brokers.redis.wire import Reply, Stored, decode_reply, decode_stored, encode_drafts
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["RedisBroker"]

T = TypeVar("T")

#: Drafts, and bytes of their data, that go to Redis at once, if several publishes wait; one is never divided.
MAX_DRAFTS = 500
MAX_BYTES = 1024 * 1024
#: Bytes of a batch above which its events go through the log alone: Redis closes a subscriber that owes it 32 MB.
MAX_MESSAGE = 4 * 1024 * 1024
#: Bytes of events that are read at once.
MAX_READ = 4 * 1024 * 1024
#: What everybody is told while there is no session.
UNREACHABLE = "the log cannot be reached now"

_encode_id = msgspec.json.Encoder().encode
_decode_id: Callable[[bytes], Id] = msgspec.json.Decoder(int | str).decode


class RedisBroker:
    """A broker (see chatws.brokers.contract). While Redis cannot be reached everything fails at once.

    :param location: see chatws.brokers.redis.location.
    :param bounds: how much is kept. Nodes should agree on it; the narrowest counts.
    :param reactor: a real one.
    :param now: seconds since 1970, where that is to count instead of Redis' clock.
    :param timeout: seconds within which Redis has to answer.
    """

    _log = Logger()
    shared = True

    def __init__(
        self,
        location: Location,
        bounds: Bounds,
        *,
        reactor: Any,
        now: Callable[[], float] | None = None,
        timeout: float = 5.0,
    ) -> None:
        self.epoch = ""
        self._location = location
        self._bounds = (repr(bounds.events), repr(bounds.seconds), repr(bounds.size))
        self._now = now
        self._timeout = timeout
        self._keys = Keys(location.prefix)
        self._delivery = Delivery()
        self._follower = Follower(self._tell, self._read_page, self._drop)
        self._keeper = Keeper(
            location,
            self._keys,
            self._follower,
            timeout=timeout,
            reactor=reactor,
            time=self._time,
            on_anew=self._started_anew,
            on_lost=self._give_up,
        )
        self._listener: Listener | None = None
        self._name = secrets.token_urlsafe(6)
        self._count = 0
        self._open = False
        self._stopping: Deferred[None] | None = None
        self._waiting: list[tuple[Sequence[Draft], Deferred[list[Event]]]] = []
        self._writing = False
        self._publishing = 0
        self._asking = 0
        self._idle: list[Deferred[None]] = []
        self._problem = ""

    # Beginning and end

    def start(self, listener: Listener) -> Deferred[None]:
        """See `Broker.start`. Tries for the time-out to reach Redis."""
        self._listener = listener
        self._delivery.start(listener)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        await self._keeper.start()
        self.epoch = self._follower.epoch
        self._open = True
        await self._warn_of_eviction()

    async def _warn_of_eviction(self) -> None:
        session = self._keeper.session
        if session is None:
            return
        try:
            told: bytes = await session.ask("INFO", "memory")
        except (Lost, Refused):
            return
        facts = dict(line.split(":", 1) for line in told.decode().splitlines() if ":" in line)
        policy = facts.get("maxmemory_policy", "noeviction")
        if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
            self._log.warn(
                "Redis may evict the event log or its idempotency keys: maxmemory-policy is {policy}, set noeviction",
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
        while self._keeper.is_ready and (self._publishing or self._asking):
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        await self._keeper.stop()
        self._follower.hold()
        self._give_up("the log is closed")

    def _started_anew(self, epoch: str) -> None:
        self.epoch = epoch
        assert self._listener is not None
        try:
            self._listener.reset(epoch)
        except Exception:
            self._log.failure("listener failed on a new epoch")

    def _give_up(self, reason: str = UNREACHABLE) -> None:
        """There is no session any more: nobody waits for one."""
        self._problem = ""
        waiting, self._waiting = self._waiting, []
        for _, fired in waiting:
            fired.errback(Unavailable(reason))
        self._wake()

    def _wake(self) -> None:
        idle, self._idle = self._idle, []
        for one in idle:
            one.callback(None)

    # Publishing

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `Broker.publish`. What is published while Redis has not answered shares the next script."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        if not self._keeper.is_ready:
            return fail(Unavailable(UNREACHABLE))
        if not drafts:
            return succeed([])
        fired: Deferred[list[Event]] = Deferred()
        self._publishing += 1
        fired.addBoth(self._published)
        self._waiting.append((drafts, fired))
        self._write_waiting()
        return fired

    def _published(self, outcome: T) -> T:
        self._publishing -= 1
        self._wake()
        return outcome

    def _write_waiting(self) -> None:
        session = self._keeper.session
        if self._writing or not self._waiting or session is None:
            return
        self._writing = True
        writing = Deferred.fromCoroutine(self._write(session))
        writing.addErrback(lambda failure: self._log.failure("Fault in writing to Redis", failure))
        writing.addBoth(self._written)

    def _written(self, _: object) -> None:
        self._writing = False
        if self._keeper.is_ready:
            self._write_waiting()

    async def _write(self, session: Session) -> None:
        """Publish all that waits, one script after the other."""
        while self._waiting and session is self._keeper.session:
            groups = self._take_waiting()
            call = Call(self._next_name(), groups)
            follower = self._follower
            follower.sent(call)
            try:
                reply, acknowledged = await self._append(session, call)
            except (Lost, Refused) as error:
                follower.answered(call, None, self._explain(error))
                if isinstance(error, Refused) and error.code == "OOM":
                    await self._trim(session)
                continue
            except BaseException:
                follower.answered(call, None, "the log cannot be written now")
                raise
            if reply is None:
                session.drop("it is not the log that it was")
                follower.answered(call, None, "the log cannot be written now")
                return
            missing = self._location.replicas - acknowledged
            follower.answered(call, reply, f"{missing} replicas did not take it in time" if missing > 0 else "")
            if reply.more and not self._waiting:
                await self._trim(session)
            self._problem = ""

    def _take_waiting(self) -> list[tuple[Sequence[Draft], Deferred[list[Event]]]]:
        count = size = taken = 0
        for drafts, _ in self._waiting:
            count += len(drafts)
            size += sum(len(draft.data) for draft in drafts)
            if taken and (count > MAX_DRAFTS or size > MAX_BYTES):
                break
            taken += 1
        groups = self._waiting[:taken]
        del self._waiting[:taken]
        return groups

    async def _append(self, session: Session, call: Call) -> tuple[Reply | None, int]:
        """What the script answers, and how many replicas have it."""
        keys = tuple(self._keys.key(draft.key) for draft in call.drafts if draft.key is not None)
        kinds, bodies = encode_drafts(call.drafts)
        follower = self._follower
        running = session.run(
            APPEND,
            self._keys.log + keys,
            follower.epoch,
            follower.last,
            follower.tip,
            call.name,
            self._time(),
            *self._bounds,
            self._keys.channel,
            round(KEY_SECONDS),
            MAX_MESSAGE,
            int(self._location.replicas > 0),
            kinds,
            *bodies,
        )
        if not self._location.replicas:
            return decode_reply(await running), 0
        reply = decode_reply(await running)
        acknowledged = await session.ask("WAIT", self._location.replicas, round(self._timeout * 500))
        return reply, int(acknowledged)

    async def _trim(self, session: Session) -> None:
        """Have more of the oldest events dropped; all that is due, a thousand at a time."""
        more = True
        while more and session is self._keeper.session:
            try:
                reply, _ = await self._append(session, Call("", []))
            except (Lost, Refused):
                return
            more = reply is not None and reply.more and not self._waiting

    def _explain(self, error: Exception) -> str:
        """What to tell a publisher. The log is told once, not with every event that a full Redis turns away."""
        if isinstance(error, Refused) and one_line(error) != self._problem:
            self._problem = one_line(error)
            self._log.error("Redis does not take events: {reason}", reason=self._problem)
        return "the log cannot be written now"

    def _drop(self, reason: str) -> None:
        self._keeper.drop(reason)

    def _tell(self, events: list[Event]) -> None:
        self._delivery.tell(events, events)

    # Reading

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return self._ask(self._read, after, limit)

    async def _read(self, session: Session, after: int, limit: int) -> list[Event]:
        found: list[Event] = []
        ended = limit <= 0
        while not ended and len(found) < limit:
            ended, page = await self._read_page(after, min(limit - len(found), 1000))
            found += [one.event for one in page]
            after = found[-1].offset if found else after
        return found

    async def _read_page(self, after: int, limit: int) -> tuple[bool, list[Stored]]:
        """Whether that is the log's end, and some events, up to `limit`."""
        session = self._keeper.session
        if session is None:
            raise Lost("the connection was closed")
        answer = await session.run(READ, self._keys.log, self._follower.epoch, after, limit, MAX_READ)
        if answer is None:
            session.drop("it is not the log that it was")
            raise Lost("the log started anew")
        return answer[0] == b"1", [decode_stored(*answer[n : n + 3]) for n in range(1, len(answer), 3)]

    def bounds(self) -> Deferred[tuple[int, int]]:
        """See `Broker.bounds`."""
        return self._ask(self._bounds_now)

    async def _bounds_now(self, session: Session) -> tuple[int, int]:
        answer = await session.run(BOUNDS, self._keys.log, self._follower.epoch)
        if answer is None:
            session.drop("it is not the log that it was")
            raise Lost("the log started anew")
        stored, last = answer
        return int(last) + 1 - int(stored), int(last)

    # Leases

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """See `Broker.lease`."""
        return self._ask(self._lease, node, dict(tabs), seconds)

    async def _lease(self, session: Session, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Leased:
        changes: list[bytes | int] = []
        for user_id, count in tabs.items():
            changes += (_encode_id(user_id), b"" if count is None else count)
        held, online, *news = await session.run(
            LEASE, self._keys.leases, self._time(), node, repr(float(seconds)), *changes
        )
        changed = [(_decode_id(news[n]), news[n + 1] == b"1") for n in range(0, len(news), 2)]
        return Leased(changed, held, online)

    def online(self) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return self._ask(self._online)

    async def _online(self, session: Session) -> list[Id]:
        return [_decode_id(one) for one in await session.run(ONLINE, self._keys.leases, self._time())]

    # What they have in common

    def _ask(self, question: Callable[..., Awaitable[T]], *arguments: Any) -> Deferred[T]:
        """Ask Redis, if it is there."""
        session = self._keeper.session
        if not self._open:
            return fail(Unavailable("the log is closed"))
        if not self._keeper.is_ready or session is None:
            return fail(Unavailable(UNREACHABLE))

        async def ask() -> T:
            self._asking += 1
            try:
                return await question(session, *arguments)
            except Lost as lost:
                raise Unavailable(UNREACHABLE) from lost
            except Refused as refused:
                raise Unavailable(self._explain(refused)) from refused
            finally:
                self._asking -= 1
                self._wake()

        return Deferred.fromCoroutine(ask())

    def _time(self) -> str:
        return "" if self._now is None else repr(float(self._now()))

    def _next_name(self) -> str:
        """A name that no other batch has, of this node or any other."""
        self._count += 1
        return f"{self._name}{self._count}"
