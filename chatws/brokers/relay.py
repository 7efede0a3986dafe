"""The log of another process on this machine: a worker's way to the log that its supervisor holds.

Answers come over a socket pair from a process that does nothing else, so there is no time-out: the other end lives, or
its end is known at once, and with it that of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from chatws.brokers import relay_wire as wire
from chatws.brokers.contract import Audience, Draft, Event, Leased, Listener
from chatws.brokers.delivery import Delivery
from chatws.channel import Channel
from chatws.errors import OperatorError, Unavailable
from chatws.ids import Id

__all__ = ["RelayBroker"]

T = TypeVar("T")

#: Bytes on their way to the log after which `publish` is refused.
MOST_UNSENT = 32 * 1024 * 1024
#: Audiences kept at hand.
MAX_KEPT = 10_000


class RelayBroker:
    """A broker (see chatws.brokers.contract) that has everything done by an `Exchange`.

    :param connect: gives the channel its transport, when the broker is started.
    """

    _log = Logger()
    shared = True
    epoch: str

    def __init__(self, connect: Callable[[Channel], object]) -> None:
        self._connect = connect
        self._channel = Channel(self._received, self._lost)
        self._delivery = Delivery()
        self._listener: Listener | None = None
        self._open = False
        self._number = 0
        self._waiting: dict[int, Deferred[Any]] = {}
        self._drafts: dict[int, Sequence[Draft]] = {}
        self._newest: Sequence[Event] = ()
        self._audiences: dict[Audience, Audience] = {}
        self._idle: list[Deferred[None]] = []

    def start(self, listener: Listener) -> Deferred[None]:
        """See `Broker.start`."""
        self._listener = listener
        self._delivery.start(listener)
        self._connect(self._channel)
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        try:
            begun = await self._ask(wire.Begin)
        except Unavailable as error:
            raise OperatorError(f"broker: {error.message}") from None
        self.epoch = begun.epoch
        self._open = True

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        if self._channel.unsent > MOST_UNSENT:
            return fail(Unavailable("the log takes no more at the moment"))
        self._drafts[self._number + 1] = drafts
        return self._ask(wire.Publish, drafts)

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return self._ask_open(wire.Read, after, limit).addCallback(lambda found: found.events)

    def bounds(self) -> Deferred[tuple[int, int]]:
        """See `Broker.bounds`."""
        return self._ask_open(wire.AskBounds).addCallback(lambda found: (found.first, found.last))

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """See `Broker.lease`."""
        asked = self._ask_open(wire.Lease, node, tabs, seconds)
        return asked.addCallback(lambda made: Leased(made.changed, made.held, made.online))

    def online(self) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return self._ask_open(wire.AskOnline).addCallback(lambda found: found.users)

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Fires when everything that was asked is answered."""
        self._open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._waiting:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        self._channel.close()

    # Questions and answers

    def _ask_open(self, kind: Any, *arguments: Any) -> Deferred[Any]:
        return self._ask(kind, *arguments) if self._open else fail(Unavailable("the log is closed"))

    def _ask(self, kind: Any, *arguments: Any) -> Deferred[Any]:
        self._number += 1
        number = self._number
        if not self._channel.connected:
            self._drafts.pop(number, None)
            return fail(Unavailable("the process that holds the log is gone"))
        answer: Deferred[Any] = Deferred()
        self._waiting[number] = answer
        self._channel.send(wire.encode(kind(number, *arguments)))
        return answer

    def _received(self, messages: list[bytes]) -> None:
        """All events of one read are told at once, for then each browser gets them in one write; after that the
        publishes among them are answered."""
        fresh: list[Event] = []
        published: list[tuple[wire.Published, Sequence[Event]]] = []
        for message in messages:
            answer = wire.answers.decode(message)
            if type(answer) is wire.Events:
                self._newest = answer.events
                self._share_audiences(answer.events)
                fresh += answer.events
            elif type(answer) is wire.Published:
                published.append((answer, self._newest))
            else:
                self._tell(fresh, published)
                fresh, published = [], []
                self._other(answer)
        self._tell(fresh, published)

    def _share_audiences(self, events: list[Event]) -> None:
        """One object for all events with the same audience: they are kept for long."""
        kept = self._audiences
        if len(kept) > MAX_KEPT:
            kept.clear()
        for event in events:
            event.audience = kept.setdefault(event.audience, event.audience)

    def _tell(self, fresh: list[Event], published: list[tuple[wire.Published, Sequence[Event]]]) -> None:
        if fresh:
            self._delivery.tell(fresh, [])
        for answer, events in published:
            receipts = self._receipts(events, self._drafts.pop(answer.number), answer.duplicates)
            self._answered(answer.number, receipts)

    def _other(self, answer: wire.Answer | wire.Reset) -> None:
        if isinstance(answer, wire.Reset):
            self.epoch = answer.epoch
            assert self._listener is not None
            self._listener.reset(answer.epoch)
        elif isinstance(answer, wire.Refused):
            self._drafts.pop(answer.number, None)
            self._waiting.pop(answer.number).errback(Unavailable(answer.reason))
            self._look_idle()
        else:
            self._answered(answer.number, answer)

    @staticmethod
    def _receipts(
        newest: Sequence[Event], drafts: Sequence[Draft], duplicates: Sequence[tuple[int, int, float]]
    ) -> list[Event]:
        fresh = list(newest[: len(drafts) - len(duplicates)])
        for index, offset, time in duplicates:  # ascending
            draft = drafts[index]
            fresh.insert(index, Event(offset, draft.name, draft.audience, draft.data, time, duplicate=True))
        return fresh

    def _answered(self, number: int, result: Any) -> None:
        self._waiting.pop(number).callback(result)
        self._look_idle()

    def _look_idle(self) -> None:
        if not self._waiting:
            idle, self._idle = self._idle, []
            for one in idle:
                one.callback(None)

    def _lost(self) -> None:
        self._open = False
        waiting, self._waiting = self._waiting, {}
        self._drafts.clear()
        for one in waiting.values():
            one.errback(Unavailable("the process that holds the log is gone"))
        self._look_idle()
