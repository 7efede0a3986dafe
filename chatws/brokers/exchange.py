"""One log for several processes of a machine: holds a broker, and does for each worker what it asks over its channel.

Every event is encoded once and goes to all workers. Nothing grows without end: when one of them has not read as much
as `HIGH`, nothing more is taken from any until it has; so backends wait, and are not lied to. One that reads nothing
at all for `STUCK` seconds is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers import relay_wire as wire
from chatws.brokers.contract import Broker, Event
from chatws.channel import Channel, framed
from chatws.errors import Unavailable

__all__ = ["Exchange"]

#: Bytes that a worker has not read, beyond which nothing more is taken from any; below `LOW` all goes on.
HIGH = 8 * 1024 * 1024
LOW = 1024 * 1024
#: Seconds without any progress after which a worker with that much to read is given up.
STUCK = 10.0


class _Worker:
    """
    :ivar told: whether it has asked to be told of events.
    :ivar out: what is to be sent to it at the end of this round.
    """

    def __init__(self, exchange: Exchange, name: object) -> None:
        self.name = name
        self.told = False
        self.sent = 0
        self.out: list[bytes] = []
        self.channel = Channel(
            lambda messages: exchange._received(self, messages), lambda: exchange._lost(self), exchange._look
        )


class Exchange:
    """
    :param broker: the log, not started yet.
    :param give_up: called with the name of a worker that reads no more. Its channel is broken already.
    :param clock: an IReactorTime.
    """

    _log = Logger()

    def __init__(self, broker: Broker, give_up: Callable[[Any], None], clock: Any) -> None:
        self.broker = broker
        self._give_up = give_up
        self._clock = clock
        self._workers: list[_Worker] = []
        self._newest: Sequence[Event] = ()
        self._in_round = False
        self._looking: DelayedCall | None = None

    def start(self) -> Deferred[None]:
        """Open the log.

        :raises OperatorError: through the Deferred, when it cannot be opened.
        """
        return self.broker.start(self)

    def stop(self) -> Deferred[None]:
        """Close the log, after the workers have let go of it."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for worker in tuple(self._workers):
            worker.channel.close()
        return self.broker.stop()

    def channel(self, name: object) -> Channel:
        """The end of a new worker's channel, to be given its transport."""
        worker = _Worker(self, name)
        self._workers.append(worker)
        return worker.channel

    def _lost(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._look()

    # The log's side: brokers.contract.Listener

    def deliver(self, events: Sequence[Event]) -> None:
        """See `Listener.deliver`."""
        self._newest = events
        self._tell_all(wire.Events(list(events)))

    def reset(self, epoch: str) -> None:
        """See `Listener.reset`."""
        self._tell_all(wire.Reset(epoch))

    def _tell_all(self, news: wire.Events | wire.Reset) -> None:
        data = framed(wire.encode(news))
        for worker in self._workers:
            if worker.told:
                worker.out.append(data)
        self._send()

    def _send(self) -> None:
        """Send what there is, each worker's in one go, unless there is more to come in this round."""
        if self._in_round:
            return
        for worker in self._workers:
            if worker.out:
                worker.channel.send_framed(b"".join(worker.out))
                worker.out.clear()
                if worker.channel.unsent > HIGH and self._looking is None:
                    self._hold_back()

    # The workers' side

    def _received(self, worker: _Worker, messages: list[bytes]) -> None:
        self._in_round = True
        try:
            for message in messages:
                self._asked(worker, wire.questions.decode(message))
        finally:
            self._in_round = False
            self._send()

    def _answer(self, worker: _Worker, answer: wire.Answer) -> None:
        worker.out.append(framed(wire.encode(answer)))
        self._send()

    def _asked(self, worker: _Worker, question: wire.Question) -> None:
        broker = self.broker
        answer: Deferred[Any]
        if type(question) is wire.Publish:
            answer = broker.publish(question.drafts).addCallback(self._published, question.number)
        elif type(question) is wire.Read:
            found = broker.read(question.after, question.limit)
            answer = found.addCallback(lambda events: wire.Found(question.number, events))
        elif type(question) is wire.AskBounds:
            answer = broker.bounds().addCallback(lambda bounds: wire.FirstAndLast(question.number, *bounds))
        elif type(question) is wire.Lease:
            leased = broker.lease(question.node, question.tabs, question.seconds)
            answer = leased.addCallback(lambda made: wire.LeaseMade(question.number, *made))
        elif type(question) is wire.AskOnline:
            answer = broker.online().addCallback(lambda users: wire.Online(question.number, users))
        else:
            worker.told = True
            if self._looking is not None:  # it comes while the others are held back
                worker.channel.pause()
            self._answer(worker, wire.Begun(question.number, broker.epoch))
            return
        answer.addErrback(self._refused, question.number)
        answer.addCallback(lambda said: self._answer(worker, said))
        answer.addErrback(lambda failure: self._log.failure("A worker's question was not answered", failure))

    def _published(self, receipts: list[Event], number: int) -> wire.Published:
        """The engines that are held here tell of a publish's events just before it fires: so they are the newest."""
        duplicates = [(index, one.offset, one.time) for index, one in enumerate(receipts) if one.duplicate]
        fresh = len(receipts) - len(duplicates)
        if fresh and len(self._newest) != fresh:
            raise RuntimeError("the log has told of other events than were published")
        return wire.Published(number, duplicates)

    def _refused(self, failure: Failure, number: int) -> wire.Refused:
        if isinstance(failure.value, Unavailable):
            return wire.Refused(number, failure.value.message)
        self._log.failure("A worker's question failed", failure)
        return wire.Refused(number, "internal error")

    # Holding back

    def _hold_back(self) -> None:
        for worker in self._workers:
            worker.sent = worker.channel.sent
            worker.channel.pause()
        self._looking = self._clock.callLater(STUCK, self._find_stuck)

    def _look(self) -> None:
        """A worker has read something, or is gone: go on if all have read enough."""
        if self._looking is not None and all(worker.channel.unsent < LOW for worker in self._workers):
            self._looking.cancel()
            self._looking = None
            for worker in self._workers:
                worker.channel.resume()

    def _find_stuck(self) -> None:
        self._looking = self._clock.callLater(STUCK, self._find_stuck)
        for worker in tuple(self._workers):
            if worker.channel.unsent >= LOW and worker.channel.sent == worker.sent:
                worker.channel.abort()
                self._give_up(worker.name)
            worker.sent = worker.channel.sent
