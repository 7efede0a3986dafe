"""Shares one broker with several worker processes of a machine, over their IPC connections.

Every event is encoded once and sent to all workers. Memory is bounded: when a worker has more than `HIGH` bytes
unread, no requests are read from any worker until it has read them, so backends wait. A worker that reads nothing for
`STUCK` seconds is considered hung.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Broker, Event
from chatws.errors import Unavailable
from chatws.interfaces import Clock
from chatws.workers import ipc_messages as wire
from chatws.workers.ipc import IpcConnection, encode_frame

__all__ = ["BrokerServer"]

#: Bytes that a worker has not read, above which no requests are read from any worker. Below `LOW` they are read again.
HIGH = 8 * 1024 * 1024
LOW = 1024 * 1024
#: Seconds without progress after which a worker with that much to read is considered hung.
STUCK = 10.0


class _Worker:
    """One worker's connection.

    :ivar subscribed: whether it receives events.
    :ivar out: frames to be sent to it at the end of this round.
    """

    def __init__(self, server: BrokerServer, name: object) -> None:
        self.name = name
        self.subscribed = False
        self.sent = 0
        self.out: list[bytes] = []
        self.channel = IpcConnection(
            lambda messages: server._received(self, messages),
            lambda: server._lost(self),
            server._resume_if_drained,
        )


class BrokerServer:
    """The supervisor's side. Its counterpart in a worker is `chatws.workers.ipc_broker.IpcBroker`.

    :param broker: not started yet.
    :param on_stuck: called with the name of a worker that is considered hung. Its connection is closed already.
    :param clock: for the check of workers that read nothing.
    """

    _log = Logger()

    def __init__(self, broker: Broker, on_stuck: Callable[[Any], None], clock: Clock) -> None:
        self.broker = broker
        self._on_stuck = on_stuck
        self._clock = clock
        self._workers: list[_Worker] = []
        self._newest: Sequence[Event] = ()
        self._in_round = False
        self._stuck_check: DelayedCall | None = None

    def start(self) -> Deferred[None]:
        """Open the history.

        :raises ConfigError: through the Deferred, when it cannot be opened.
        """
        return self.broker.start(self)

    def stop(self) -> Deferred[None]:
        """Close the connections of the workers, then the history."""
        if self._stuck_check is not None:
            self._stuck_check.cancel()
            self._stuck_check = None
        for worker in tuple(self._workers):
            worker.channel.close()
        return self.broker.stop()

    def channel(self, name: object) -> IpcConnection:
        """Return this side of a new worker's connection, which needs a transport."""
        worker = _Worker(self, name)
        self._workers.append(worker)
        return worker.channel

    def _lost(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._resume_if_drained()

    # EventHandler

    def deliver(self, events: Sequence[Event]) -> None:
        """See `EventHandler.deliver`."""
        self._newest = events
        self._tell_all(wire.EventsNotice(list(events)))

    def reset(self, epoch: str) -> None:
        """See `EventHandler.reset`."""
        self._tell_all(wire.ResetNotice(epoch))

    def _tell_all(self, news: wire.EventsNotice | wire.ResetNotice) -> None:
        data = encode_frame(wire.encode(news))
        for worker in self._workers:
            if worker.subscribed:
                worker.out.append(data)
        self._send()

    def _send(self) -> None:
        """Send each worker its frames in one write, unless the round goes on."""
        if self._in_round:
            return
        for worker in self._workers:
            if worker.out:
                worker.channel.send_framed(b"".join(worker.out))
                worker.out.clear()
                if worker.channel.unsent > HIGH and self._stuck_check is None:
                    self._pause_workers()

    # Requests

    def _received(self, worker: _Worker, messages: list[bytes]) -> None:
        self._in_round = True
        try:
            for message in messages:
                self._on_request(worker, wire.request_decoder.decode(message))
        finally:
            self._in_round = False
            self._send()

    def _reply(self, worker: _Worker, reply: wire.BrokerReply) -> None:
        worker.out.append(encode_frame(wire.encode(reply)))
        self._send()

    def _on_request(self, worker: _Worker, request: wire.BrokerRequest) -> None:
        broker = self.broker
        reply: Deferred[Any]
        if type(request) is wire.PublishRequest:
            reply = broker.publish(request.new_events).addCallback(self._published, request.number)
        elif type(request) is wire.ReadRequest:
            events_read = broker.read(request.after, request.limit)
            reply = events_read.addCallback(lambda events: wire.ReadReply(request.number, events))
        elif type(request) is wire.OffsetRangeRequest:
            reply = broker.offset_range().addCallback(lambda offsets: wire.OffsetRangeReply(request.number, *offsets))
        elif type(request) is wire.LeaseRequest:
            leased = broker.lease(request.node, request.connection_counts, request.seconds, request.space)
            reply = leased.addCallback(lambda made: wire.LeaseReply(request.number, *made))
        elif type(request) is wire.OnlineRequest:
            reply = broker.online(request.space).addCallback(lambda users: wire.OnlineReply(request.number, users))
        elif type(request) is wire.NodesWithoutRequest:
            nodes = broker.nodes_without(request.space)
            reply = nodes.addCallback(lambda names: wire.NodesReply(request.number, names))
        elif type(request) is wire.SetDataRequest:
            stored = broker.set_data(request.space, request.member, request.data, request.seconds)
            reply = stored.addCallback(lambda changed: wire.SetDataReply(request.number, changed))
        elif type(request) is wire.DataRequest:
            read = broker.data(request.space)
            reply = read.addCallback(lambda data: wire.DataReply(request.number, data))
        elif type(request) is wire.AddWebhooksRequest:
            added = broker.add_webhooks(request.webhooks, reset=request.reset)
            reply = added.addCallback(lambda _: wire.AddedReply(request.number))
        elif type(request) is wire.ExchangeWebhooksRequest:
            exchanged = broker.exchange_webhooks(request.request)
            reply = exchanged.addCallback(lambda made: wire.ExchangeWebhooksReply(request.number, made))
        else:
            worker.subscribed = True
            if self._stuck_check is not None:  # the other workers are paused
                worker.channel.pause()
            self._reply(worker, wire.StartReply(request.number, broker.epoch))
            return
        reply.addErrback(self._refused, request.number)
        reply.addCallback(lambda reply: self._reply(worker, reply))
        reply.addErrback(lambda failure: self._log.failure("A worker's request got no response", failure))

    def _published(self, receipts: list[Event], number: int) -> wire.PublishReply:
        """Return the reply to a publish. The engines used here deliver its events just before it fires."""
        duplicates = [(index, event.offset, event.time) for index, event in enumerate(receipts) if event.duplicate]
        fresh = len(receipts) - len(duplicates)
        if fresh and len(self._newest) != fresh:
            raise RuntimeError("the broker has delivered other events than were published")
        return wire.PublishReply(number, duplicates)

    def _refused(self, failure: Failure, number: int) -> wire.ErrorReply:
        if isinstance(failure.value, Unavailable):
            return wire.ErrorReply(number, failure.value.message)
        self._log.failure("A worker's request failed", failure)
        return wire.ErrorReply(number, "internal error")

    # Backpressure

    def _pause_workers(self) -> None:
        for worker in self._workers:
            worker.sent = worker.channel.sent
            worker.channel.pause()
        self._stuck_check = self._clock.callLater(STUCK, self._find_stuck)

    def _resume_if_drained(self) -> None:
        """Resume the workers if all of them have read enough."""
        if self._stuck_check is not None and all(worker.channel.unsent < LOW for worker in self._workers):
            self._stuck_check.cancel()
            self._stuck_check = None
            for worker in self._workers:
                worker.channel.resume()

    def _find_stuck(self) -> None:
        self._stuck_check = self._clock.callLater(STUCK, self._find_stuck)
        for worker in tuple(self._workers):
            if worker.channel.unsent >= LOW and worker.channel.sent == worker.sent:
                worker.channel.abort()
                self._on_stuck(worker.name)
            worker.sent = worker.channel.sent
