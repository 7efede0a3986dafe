"""The state machine of tests/recovery_cluster.py on real engines.

The chat servers use a `Clock`. Their connections to the engine are real sockets, which pass a firewall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from hypothesis.stateful import RuleBasedStateMachine
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Broker, Retention
from chatws.errors import ConfigError, Unavailable
from tests.postgres import ForgetfulFirewall
from tests.recovery_cluster import ClusterRecovery, Node

__all__ = ["blocking", "machine_on"]

DEADLINE = 20.0
#: Seconds that nodes wait for a response. It is short because many waits end with a timeout.
TIMEOUT = 0.5


def blocking(function: Callable[[], object]) -> Deferred[None]:
    """Call a function that uses `block_on` while the reactor runs, as hypothesis does not support Deferreds."""
    done: Deferred[None] = Deferred()

    def run() -> None:
        try:
            function()
        except BaseException:
            reactor.callLater(0, done.errback, Failure())
        else:
            reactor.callLater(0, done.callback, None)

    greenlet(run).switch()
    return done


def block_on(deferred: Deferred[Any]) -> Any:
    """Wait for a Deferred within `blocking`, and return its result."""
    here = getcurrent()
    results: list[Any] = []
    is_waiting = False

    def fired(result: Any) -> None:
        results.append(result)
        if is_waiting:
            here.switch()

    deferred.addBoth(fired)
    if not results:
        is_waiting = True
        assert here.parent is not None
        here.parent.switch()
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class _OnEngine(ClusterRecovery):
    """The state machine on an engine.

    :ivar url: the URL of a new, empty history.
    :ivar port: the port of the engine.
    :ivar forget: makes the engine lose the history.
    """

    knows_presence = False
    new_url: Callable[[], str]
    port: int
    forget: Callable[[str], None]

    def open_engine(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.url = type(self).new_url()
        self.firewalls: dict[Broker, ForgetfulFirewall] = {}
        self.recording = self._record()
        self.recorder.begin(self.recording.epoch)

    def _record(self) -> Broker:
        for _ in range(5):
            broker = self._open(self.url, 3 * TIMEOUT)
            try:
                self.wait(broker.start(self.recorder))
                return broker
            except ConfigError:  # as in `open_node`
                self.wait(broker.stop())
        raise AssertionError("the recorder cannot start")

    def _open(self, url: str, timeout: float) -> Broker:
        # More than the nodes store, so that no node detects a trimmed history late.
        return open_broker(url, Retention(events=10_000), reactor=reactor, timeout=timeout)

    def open_broker(self) -> Broker:
        firewall = ForgetfulFirewall(reactor, self.port)
        broker = self._open(self.url.replace(f":{self.port}", f":{firewall.port}"), TIMEOUT)
        self.firewalls[broker] = firewall
        return broker

    def cut(self, node: Node) -> None:
        firewall = self.firewalls[node.broker]
        firewall.closed = True
        firewall.forget()

    def lose_answers(self, node: Node) -> None:
        firewall = self.firewalls[node.broker]
        firewall.end_forgotten()  # else the engine has them open for ever
        firewall.forget_answers()

    lag = lose_answers

    def restore(self, node: Node) -> None:
        firewall = self.firewalls[node.broker]
        firewall.closed = False
        firewall.end_forgotten()

    def lose_data(self) -> None:
        before = self.recorder.epoch
        type(self).forget(self.url)
        self.until(lambda: self.recorder.epoch != before, "the recorder to notice the new epoch")
        self.all_caught_up()

    def wait(self, deferred: Deferred[Any]) -> Any:
        return block_on(deferred.addTimeout(DEADLINE, reactor))

    def pause(self) -> None:
        self.wait(deferLater(reactor, 0.01))

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"timed out waiting for {what}"
            self.pause()

    def all_caught_up(self) -> None:
        self.until(self._recorder_caught_up, "the recorder to read the whole history")
        for node in self.nodes:
            if not self.firewalls[node.broker].closed:
                self.until(lambda node=node: self._caught_up(node), "a node to catch up")

    def _recorder_caught_up(self) -> bool:
        try:
            _, last = self.wait(self.recording.offset_range())
        except Unavailable:
            return False
        return self.recording.epoch == self.recorder.epoch and last == self.recorder.last

    def _caught_up(self, node: Node) -> bool:
        try:
            self.wait(node.broker.offset_range())
        except Unavailable:
            return False
        history = node.chat.history
        return (history.epoch, history.last) == (self.recorder.epoch, self.recorder.last)

    def publish_the_rest(self) -> None:
        def try_publish() -> bool:
            self.publish_again(0)
            return not self.unanswered

        # A response may take longer than the short timeout.
        self.until(try_publish, "a node to acknowledge all events")

    def open_node(self, number: int) -> Node:
        for _ in range(5):
            try:
                return super().open_node(number)
            except (ConfigError, Unavailable):  # no response in the short timeout, so start the node again
                broker = list(self.firewalls)[-1]
                self.wait(broker.stop())
                self.wait(Deferred.fromCoroutine(self.firewalls.pop(broker).stop()))
        raise AssertionError("a node cannot start")

    def close_node(self, node: Node) -> None:
        super().close_node(node)
        self.wait(Deferred.fromCoroutine(self.firewalls.pop(node.broker).stop()))

    def close_engine(self) -> None:
        self.wait(self.recording.stop())
        assert self.clock.getDelayedCalls() == []


def machine_on(port: int, new_url: Callable[[], str], forget: Callable[[str], None]) -> type[RuleBasedStateMachine]:
    """Return the state machine on an engine.

    :param new_url: makes an empty history and returns its URL.
    :param forget: makes the engine lose the history at a URL.
    """
    fields = {"port": port, "new_url": staticmethod(new_url), "forget": staticmethod(forget)}
    return type("OnEngine", (_OnEngine,), fields)
