"""The log's listener (`brokers.contract.Listener`): what comes out of it goes into the history, and to whoever listens.

Orders among nodes (chatws.chat.nodes) are carried out in their place among the events. Where events are missing, every
browser that should have had them starts over before it gets anything that came after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from twisted.logger import Logger

from chatws.brokers.contract import NODES, Event
from chatws.chat import nodes
from chatws.chat.agents import Agents
from chatws.chat.catching_up import CatchingUp
from chatws.chat.delivery import make_runs
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.stats import Stats
from chatws.chat.steering import Steering
from chatws.server.component import Connection

__all__ = ["Outlet", "SendAll"]

log = Logger()

_ORDERS = (NODES,)
_channels_of = attrgetter("audience.channels")

#: Sends each run's frames to each of its connections, in the order of the runs.
SendAll: TypeAlias = Callable[[Sequence[tuple[Collection[Any], Sequence[bytes]]]], None]


class Outlet:
    """
    :param make_frames: each event's frame, complete.
    :param connections: all that are open.
    :param clock: an IReactorTime.
    """

    def __init__(
        self,
        *,
        history: History,
        hub: Hub[Connection],
        stats: Stats,
        agents: Agents,
        steering: Steering,
        catching_up: CatchingUp,
        make_frames: Callable[[Sequence[Event]], list[bytes]],
        send_all: SendAll,
        connections: Collection[Connection],
        clock: Any,
    ) -> None:
        self._history = history
        self._gaps = history.gaps  # those that browsers know of
        self._hub = hub
        self._stats = stats
        self._agents = agents
        self._steering = steering
        self._catching_up = catching_up
        self._make_frames = make_frames
        self._send_all = send_all
        self._connections = connections
        self._clock = clock

    def deliver(self, events: Sequence[Event]) -> None:
        """See `Listener.deliver`."""
        if _ORDERS in map(_channels_of, events):
            self._hand_out_with_orders(events)
        else:
            self._history.extend(events)
            self._hand_out(events)
        if self._catching_up:
            self._catching_up.moved()

    def reset(self, epoch: str) -> None:
        """See `Listener.reset`. Nobody can recover from the old log, and whoever is here has to begin again."""
        self._history.reset(epoch)
        self._start_over("the event log started anew")

    def _hand_out_with_orders(self, events: Sequence[Event]) -> None:
        """Each order is carried out before what follows it is remembered, or handed out."""
        start = 0
        announced = False
        for index, event in enumerate(events):
            self._history.append(event)
            if event.audience.channels[0] == NODES:
                self._hand_out(events[start:index])
                start = index + 1
                announced |= self._obey(event)
        started = self._clock.seconds()
        self._hand_out(events[start:])
        if announced:
            self._agents.local.rest(self._clock.seconds() - started)

    def _hand_out(self, events: Sequence[Event]) -> None:
        if self._history.gaps != self._gaps:
            self._gaps = self._history.gaps
            self._start_over("events are missing")
        runs = make_runs(events, self._hub, self._make_frames)
        self._stats.count(events)
        if runs:
            self._send_all(runs)

    def _obey(self, event: Event) -> bool:
        """Carry out an order, and tell whether it is news of agents, which browsers get next."""
        order = nodes.order_of(event)
        if isinstance(order, nodes.Status):
            self._agents.heard(order.online, order.offline)
            return True
        if order is not None:
            self._steering.obey(order)
        return False

    def _start_over(self, reason: str) -> None:
        count = len(self._connections)
        log.warn("{reason}: {count} browsers are told to reload", reason=reason, count=count)
        self._stats.started_over += count
        self._steering.part_with(self._connections, reason)
