"""A broker that is measured: whether it stores events, how long its calls take, and how many of them fail.

An engine that is full still answers queries. Only a publish shows that it stores nothing. The first call that fails
starts a **probe**, the publish of an event for no client, which is repeated until one succeeds. The end of a failure is
therefore noticed without any traffic.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import (
    AGENT_SPACE,
    NODES,
    Audience,
    Broker,
    Event,
    EventHandler,
    LeaseResult,
    MemberData,
    NewEvent,
)
from chatws.brokers.webhook_queue import NewWebhook, WebhookReply, WebhookRequest
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle
from chatws.runtime.log_levels import is_debugged
from chatws.runtime.measurements import STORE_BUCKETS, Histogram

__all__ = ["PROBE_INTERVAL", "MeasuredBroker", "make_probe"]

T = TypeVar("T")
P = ParamSpec("P")

log = Logger()
#: Calls of every engine are under one name, so that `--log-level chatws.brokers=debug` shows them.
calls_log = Logger("chatws.brokers.calls")

#: Seconds between two probes: the end of a failure is noticed soon, and a full engine has little to reject.
PROBE_INTERVAL = 2.0
#: Kinds of calls that are measured.
KINDS = (
    "publish",
    "read",
    "offset_range",
    "lease",
    "online",
    "nodes_without",
    "set_data",
    "data",
    "add_webhooks",
    "exchange_webhooks",
)
#: Bytes of a probe: several pages of any engine, so that a full one has no room for it. Random, against compression.
PROBE_SIZE = 16 * 1024


def make_probe() -> NewEvent:
    """Return an event for no client. Nodes ignore commands of unknown names.

    It is stored, because a transient event would not reach the file of SQLite.
    """
    return NewEvent("probe", Audience((NODES,)), b'{"padding":"%s"}' % secrets.token_hex(PROBE_SIZE // 2).encode())


class MeasuredBroker:
    """Measures the calls of a broker. Implements `chatws.brokers.interface.Broker`.

    :param broker: not started yet.
    :param clock: measures seconds, and schedules probes.
    :ivar histograms: seconds until the result or error, by kind of call.
    :ivar errors: failed calls, by kind.
    :ivar problem: why events cannot be stored, or "".
    """

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self.histograms = {kind: Histogram(STORE_BUCKETS) for kind in KINDS}
        self.errors = dict.fromkeys(KINDS, 0)
        self.problem = ""
        self._broker = broker
        self._clock = clock
        self._is_open = False
        self._failed_since = 0.0
        self._failed_publishes = 0
        self._probe_timer: TimerHandle | None = None
        self._probing = False

    @property
    def epoch(self) -> str:
        return getattr(self._broker, "epoch", "")  # an engine has none before its start

    @property
    def shared(self) -> bool:
        return self._broker.shared

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`."""

        def started(result: None) -> None:
            self._is_open = True

        return self._broker.start(listener).addCallback(started)

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`."""
        self._is_open = False
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        return self._broker.stop()

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        return self._measured("publish", self._broker.publish, new_events)

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return self._measured("read", self._broker.read, after, limit)

    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`."""
        return self._measured("offset_range", self._broker.offset_range)

    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        return self._measured("lease", self._broker.lease, node, connection_counts, seconds, space)

    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return self._measured("online", self._broker.online, space)

    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """See `Broker.nodes_without`."""
        return self._measured("nodes_without", self._broker.nodes_without, space)

    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """See `Broker.set_data`."""
        return self._measured("set_data", self._broker.set_data, space, member, data, seconds)

    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return self._measured("data", self._broker.data, space)

    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        return self._measured("add_webhooks", self._broker.add_webhooks, webhooks, reset=reset)

    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        return self._measured("exchange_webhooks", self._broker.exchange_webhooks, request)

    async def check(self) -> None:
        """Check that the broker responds, and that it stores events.

        :raises Unavailable: it does not.
        """
        if self.problem:
            raise Unavailable(self.problem)
        await self.offset_range()

    def _measured(
        self, kind: str, call: Callable[P, Deferred[T]], *arguments: P.args, **named: P.kwargs
    ) -> Deferred[T]:
        started = self._clock.seconds()  # an engine in this process may respond before the call returns
        return call(*arguments, **named).addCallbacks(
            self._succeeded, self._failed, callbackArgs=(kind, started), errbackArgs=(kind, started)
        )

    def _succeeded(self, result: T, kind: str, started: float) -> T:
        now = self._clock.seconds()
        self.histograms[kind].observe(now - started)
        if is_debugged(calls_log.namespace):
            calls_log.debug(
                "the broker answered {call} after {milliseconds:.1f} ms", call=kind, milliseconds=1000 * (now - started)
            )
        if self.problem and kind == "publish":
            self.problem = ""
            log.info(
                "the broker stores events again, after {seconds:.1f} s and {count} failed calls",
                seconds=now - self._failed_since,
                count=self._failed_publishes,
            )
        return result

    def _failed(self, failure: Failure, kind: str, started: float) -> Any:
        self.histograms[kind].observe(self._clock.seconds() - started)
        self.errors[kind] += 1
        if self._is_open and isinstance(failure.value, Unavailable):
            if kind == "publish":
                self._note_failed_publish(failure.value.message)
            self._probe_later()
        return failure

    def _note_failed_publish(self, reason: str) -> None:
        if not self.problem:
            self._failed_since = self._clock.seconds()
            self._failed_publishes = 0
            log.error("the broker does not store events, publishes fail: {reason}", reason=reason)
        self.problem = reason
        self._failed_publishes += 1

    def _probe_later(self) -> None:
        if self._probe_timer is None and not self._probing:
            self._probe_timer = self._clock.callLater(PROBE_INTERVAL if self.problem else 0.0, self._probe)

    def _probe(self) -> None:
        self._probe_timer = None
        self._probing = True
        self.publish([make_probe()]).addBoth(self._probed)

    def _probed(self, result: object) -> None:
        self._probing = False
        if self.problem and self._is_open:
            self._probe_later()
        if isinstance(result, Failure) and not isinstance(result.value, Unavailable):
            log.failure("a probe of the broker failed", result)
