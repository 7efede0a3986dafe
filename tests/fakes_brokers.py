"""A log that several nodes share, in this process: the least that passes the broker contract, and faults at will."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed

from chatws.brokers.event_buffer import EventBuffer
from chatws.brokers.idempotency import IdempotencyCache, assign_offsets
from chatws.brokers.interface import AGENT_SPACE, Event, EventHandler, LeaseResult, MemberData, NewEvent, Retention
from chatws.brokers.leases import Spaces
from chatws.brokers.listener_queue import ListenerQueue
from chatws.errors import Unavailable
from chatws.ids import Id

T = TypeVar("T")


class SharedHistory:
    """What the engine keeps. `now`: the clock of times, keys and leases."""

    def __init__(self, now: Callable[[], float], retention: Retention | None = None) -> None:
        self.now = now
        self.epoch = secrets.token_hex(4)
        self.retention = retention or Retention()
        self.window = EventBuffer(self.retention)
        self.keys = IdempotencyCache()
        self.spaces = Spaces()
        self.nodes: list[SharedBroker] = []

    def start_anew(self) -> None:
        """Lose everything."""
        self.epoch = secrets.token_hex(4)
        self.window = EventBuffer(self.retention)
        self.keys = IdempotencyCache()
        self.spaces = Spaces()
        for node in self.nodes:
            node.read_on()


class SharedBroker:
    """One node's broker.

    :ivar cut: cannot reach the log; `heal` ends that.
    :ivar lose_answers: what it publishes is stored, but it does not learn of that, as when the link breaks in between.
    :ivar behind: reads nothing on until `read_on` is called, though it can publish.
    """

    shared = True
    epoch: str

    def __init__(self, log: SharedHistory) -> None:
        self.log = log
        self.cut = self.lose_answers = self.behind = False
        self._listener_queue = ListenerQueue()
        self._listener: EventHandler | None = None
        self._delivered = 0

    def start(self, listener: EventHandler) -> Deferred[None]:
        self._listener = listener
        self._listener_queue.start(listener)
        self.epoch = self.log.epoch
        self._delivered = self.log.window.last
        self.log.nodes.append(self)
        return succeed(None)

    def _problem(self) -> Unavailable | None:
        if self.cut or self not in self.log.nodes:
            return Unavailable("the log cannot be reached")
        return None

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        problem = self._problem()
        if problem is not None:
            return fail(problem)
        log = self.log
        for node in list(log.nodes):
            node.read_on()  # also what a node has stored without learning of it
        batch = assign_offsets(new_events, log.window.last, log.keys, log.now())
        stored = [event for event in batch.fresh if event.offset]
        if stored:
            log.window.extend(stored, log.now())
        for key, event in (batch.keys or {}).items():
            log.keys.remember(key, event.offset, log.now(), batch.extra.get(key, 0.0))
        copies = [
            [Event(item.offset, item.name, item.audience, item.data, item.time) for item in batch.fresh]
            for _ in log.nodes
        ]
        for node, events in zip(list(log.nodes), copies, strict=True):
            if node is not self and not node.cut and not node.behind:
                node._deliver(events)
        if self.lose_answers or self.behind:
            return fail(Unavailable("no answer in time"))
        self._delivered = batch.last
        return self._listener_queue.notify(batch.fresh, batch.receipts)

    def _deliver(self, events: list[Event]) -> None:
        self._delivered = max([self._delivered, *(event.offset for event in events)])
        self._listener_queue.notify(events, [])

    def heal(self) -> None:
        """The log can be reached again."""
        self.cut = self.lose_answers = self.behind = False
        self.read_on()

    def read_on(self) -> None:
        """Tell of what has come meanwhile."""
        if self.cut or self.behind:
            return
        if self.epoch != self.log.epoch:
            self.epoch = self.log.epoch
            self._delivered = 0
            assert self._listener is not None
            self._listener.reset(self.epoch)
        events = [
            Event(item.offset, item.name, item.audience, item.data, item.time)
            for item in self.log.window.read(self._delivered, 1_000_000)
        ]
        if events:
            self._deliver(events)

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed(self.log.window.read(after, limit))

    def offset_range(self) -> Deferred[tuple[int, int]]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed((self.log.window.first, self.log.window.last))

    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        return self._ask(lambda spaces, now: spaces.lease(space, node, connection_counts, seconds, now))

    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        return self._ask(lambda spaces, now: spaces.online(space, now))

    def nodes_without(self, space: str) -> Deferred[list[str]]:
        return self._ask(lambda spaces, now: spaces.nodes_without(space, now))

    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        return self._ask(lambda spaces, now: spaces.set_data(space, member, data, seconds, now))

    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        return self._ask(lambda spaces, now: spaces.data(space, now))

    def _ask(self, ask: Callable[[Spaces, float], T]) -> Deferred[T]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed(ask(self.log.spaces, self.log.now()))

    def stop(self) -> Deferred[None]:
        if self in self.log.nodes:
            self.log.nodes.remove(self)
        return succeed(None)
