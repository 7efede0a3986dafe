"""A log that several nodes share, in this process: the least that passes the broker contract, and faults at will."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, fail, succeed

from chatws.brokers.contract import Bounds, Draft, Event, Leased, Listener
from chatws.brokers.delivery import Delivery
from chatws.brokers.keys import Keys, accept
from chatws.brokers.leases import Leases
from chatws.brokers.window import Window
from chatws.errors import Unavailable
from chatws.ids import Id


class SharedLog:
    """What the engine keeps. `now`: the clock of times, keys and leases."""

    def __init__(self, now: Callable[[], float], bounds: Bounds | None = None) -> None:
        self.now = now
        self.epoch = secrets.token_hex(4)
        self.bounds = bounds or Bounds()
        self.window = Window(self.bounds)
        self.keys = Keys()
        self.leases = Leases()
        self.nodes: list[SharedBroker] = []

    def start_anew(self) -> None:
        """Lose everything."""
        self.epoch = secrets.token_hex(4)
        self.window = Window(self.bounds)
        self.keys = Keys()
        self.leases = Leases()
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

    def __init__(self, log: SharedLog) -> None:
        self.log = log
        self.cut = self.lose_answers = self.behind = False
        self._delivery = Delivery()
        self._listener: Listener | None = None
        self._told = 0

    def start(self, listener: Listener) -> Deferred[None]:
        self._listener = listener
        self._delivery.start(listener)
        self.epoch = self.log.epoch
        self._told = self.log.window.last
        self.log.nodes.append(self)
        return succeed(None)

    def _problem(self) -> Unavailable | None:
        if self.cut or self not in self.log.nodes:
            return Unavailable("the log cannot be reached")
        return None

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        problem = self._problem()
        if problem is not None:
            return fail(problem)
        log = self.log
        for node in list(log.nodes):
            node.read_on()  # also what a node has stored without learning of it
        batch = accept(drafts, log.window.last, log.keys, log.now())
        stored = [event for event in batch.fresh if event.offset]
        if stored:
            log.window.extend(stored, log.now())
        for key, event in (batch.keys or {}).items():
            log.keys.remember(key, event.offset, log.now())
        copies = [
            [Event(one.offset, one.name, one.audience, one.data, one.time) for one in batch.fresh] for _ in log.nodes
        ]
        for node, events in zip(list(log.nodes), copies, strict=True):
            if node is not self and not node.cut and not node.behind:
                node._tell(events)
        if self.lose_answers or self.behind:
            return fail(Unavailable("no answer in time"))
        self._told = batch.last
        return self._delivery.tell(batch.fresh, batch.receipts)

    def _tell(self, events: list[Event]) -> None:
        self._told = max([self._told, *(event.offset for event in events)])
        self._delivery.tell(events, [])

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
            self._told = 0
            assert self._listener is not None
            self._listener.reset(self.epoch)
        events = [
            Event(one.offset, one.name, one.audience, one.data, one.time)
            for one in self.log.window.read(self._told, 1_000_000)
        ]
        if events:
            self._tell(events)

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed(self.log.window.read(after, limit))

    def bounds(self) -> Deferred[tuple[int, int]]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed((self.log.window.first, self.log.window.last))

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        problem = self._problem()
        if problem is not None:
            return fail(problem)
        return succeed(self.log.leases.lease(node, tabs, seconds, self.log.now()))

    def online(self) -> Deferred[list[Id]]:
        problem = self._problem()
        return fail(problem) if problem is not None else succeed(self.log.leases.online(self.log.now()))

    def stop(self) -> Deferred[None]:
        if self in self.log.nodes:
            self.log.nodes.remove(self)
        return succeed(None)
