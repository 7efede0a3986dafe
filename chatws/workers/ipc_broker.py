"""A worker's broker: every call is a request to the supervisor, which holds the event history.

Replies arrive over a socket pair from a process that does nothing else, so there is no time-out. When the supervisor
ends, the connection ends at once, and with it this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from chatws.brokers.base import BaseBroker, requires_open
from chatws.brokers.interface import (
    AGENT_SPACE,
    Audience,
    Event,
    EventHandler,
    LeaseResult,
    MemberData,
    NewEvent,
)
from chatws.brokers.listener_queue import ListenerQueue
from chatws.brokers.webhook_queue import NewWebhook, WebhookReply, WebhookRequest
from chatws.errors import StartError, Unavailable
from chatws.ids import Id
from chatws.workers import ipc_messages as wire
from chatws.workers.ipc import IpcConnection

__all__ = ["IpcBroker"]

T = TypeVar("T")

#: Bytes not yet read by the supervisor above which `publish` is rejected.
MOST_UNSENT = 32 * 1024 * 1024
#: Audiences that are shared between events. Beyond that the memory of the cache would exceed its benefit.
MAX_KEPT = 10_000


class IpcBroker(BaseBroker):
    """A broker (see chatws.brokers.interface) that sends its calls to a `BrokerServer`.

    :param connect: gives the IPC connection its transport, when the broker is started.
    """

    _log = Logger()
    shared = True
    epoch: str

    def __init__(self, connect: Callable[[IpcConnection], object]) -> None:
        super().__init__()
        self._connect = connect
        self._channel = IpcConnection(self._received, self._lost)
        self._listener_queue = ListenerQueue()
        self._listener: EventHandler | None = None
        self._number = 0
        self._waiting: dict[int, Deferred[Any]] = {}
        self._new_events: dict[int, Sequence[NewEvent]] = {}
        self._newest: Sequence[Event] = ()
        self._audiences: dict[Audience, Audience] = {}

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`."""
        self._listener = listener
        self._listener_queue.start(listener)
        self._connect(self._channel)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            reply = await self._ask(wire.StartRequest)
        except Unavailable as error:
            raise StartError(f"broker: {error.message}") from None
        self.epoch = reply.epoch
        self._open = True

    @requires_open
    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if self._channel.unsent > MOST_UNSENT:
            return fail(Unavailable("the event history is overloaded"))
        self._new_events[self._number + 1] = new_events
        return self._ask(wire.PublishRequest, new_events)

    @requires_open
    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return self._ask(wire.ReadRequest, after, limit).addCallback(lambda reply: reply.events)

    @requires_open
    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`."""
        return self._ask(wire.OffsetRangeRequest).addCallback(lambda reply: (reply.first, reply.last))

    @requires_open
    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        leased = self._ask(wire.LeaseRequest, node, connection_counts, seconds, space)
        return leased.addCallback(lambda reply: LeaseResult(reply.changed, reply.held, reply.online))

    @requires_open
    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return self._ask(wire.OnlineRequest, space).addCallback(lambda reply: reply.users)

    @requires_open
    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """See `Broker.nodes_without`."""
        return self._ask(wire.NodesWithoutRequest, space).addCallback(lambda reply: reply.nodes)

    @requires_open
    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """See `Broker.set_data`."""
        return self._ask(wire.SetDataRequest, space, member, data, seconds).addCallback(lambda reply: reply.changed)

    @requires_open
    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return self._ask(wire.DataRequest, space).addCallback(lambda reply: reply.data)

    @requires_open
    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        return self._ask(wire.AddWebhooksRequest, webhooks, reset).addCallback(lambda reply: None)

    @requires_open
    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        return self._ask(wire.ExchangeWebhooksRequest, request).addCallback(lambda reply: reply.reply)

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Fires when every request has its reply."""
        self._open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._waiting:
            await self._wait_until_idle()
        self._channel.close()

    # Requests and replies

    def _ask(self, kind: Any, *arguments: Any) -> Deferred[Any]:
        self._number += 1
        number = self._number
        if not self._channel.connected:
            self._new_events.pop(number, None)
            return fail(Unavailable("the process that holds the event history is gone"))
        answer: Deferred[Any] = Deferred()
        self._waiting[number] = answer
        self._channel.send(wire.encode(kind(number, *arguments)))
        return answer

    def _received(self, messages: list[bytes]) -> None:
        """Deliver all events of one read at once, so that each client gets one write. Then confirm publishes."""
        fresh: list[Event] = []
        published: list[tuple[wire.PublishReply, Sequence[Event]]] = []
        for message in messages:
            answer = wire.reply_decoder.decode(message)
            if type(answer) is wire.EventsNotice:
                self._newest = answer.events
                self._share_audiences(answer.events)
                fresh += answer.events
            elif type(answer) is wire.PublishReply:
                published.append((answer, self._newest))
            else:
                self._deliver(fresh, published)
                fresh, published = [], []
                self._other(answer)
        self._deliver(fresh, published)

    def _share_audiences(self, events: list[Event]) -> None:
        """Use one object for all events with the same audience, to save memory in the node's history."""
        kept = self._audiences
        if len(kept) > MAX_KEPT:
            kept.clear()
        for event in events:
            event.audience = kept.setdefault(event.audience, event.audience)

    def _deliver(self, fresh: list[Event], published: list[tuple[wire.PublishReply, Sequence[Event]]]) -> None:
        if fresh:
            self._listener_queue.notify(fresh, [])
        for answer, events in published:
            receipts = self._receipts(events, self._new_events.pop(answer.number), answer.duplicates)
            self._answered(answer.number, receipts)

    def _other(self, answer: wire.BrokerReply | wire.ResetNotice) -> None:
        if isinstance(answer, wire.ResetNotice):
            self.epoch = answer.epoch
            assert self._listener is not None
            self._listener.reset(answer.epoch)
        elif isinstance(answer, wire.ErrorReply):
            self._new_events.pop(answer.number, None)
            self._waiting.pop(answer.number).errback(Unavailable(answer.reason))
            self._check_idle()
        else:
            self._answered(answer.number, answer)

    @staticmethod
    def _receipts(
        newest: Sequence[Event], new_events: Sequence[NewEvent], duplicates: Sequence[tuple[int, int, float]]
    ) -> list[Event]:
        fresh = list(newest[: len(new_events) - len(duplicates)])
        for index, offset, time in duplicates:  # ascending
            new_event = new_events[index]
            fresh.insert(index, Event(offset, new_event.name, new_event.audience, new_event.data, time, duplicate=True))
        return fresh

    def _answered(self, number: int, result: Any) -> None:
        self._waiting.pop(number).callback(result)
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._waiting:
            self._signal_idle()

    def _lost(self) -> None:
        self._open = False
        waiting, self._waiting = self._waiting, {}
        self._new_events.clear()
        for fired in waiting.values():
            fired.errback(Unavailable("the process that holds the event history is gone"))
        self._check_idle()
