"""The nodes that share the broker: each announces itself, and knows the others.

A node announces itself every few seconds by a transient command (chatws.chat.cluster_commands). Each node compares the
settings of the others with its own, because nodes that disagree trim each other's history, or send an event to other
recipients. The table serves `chatws nodes`, the metrics, and `chatws rebalance`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.brokers.interface import Broker
from chatws.chat.cluster_commands import NodeCommand, NodeInfo, RebalanceCommand, to_new_event
from chatws.errors import ClientError, ErrorCode, Unavailable
from chatws.interfaces import Clock, TimerHandle

__all__ = ["EXPIRY", "INTERVAL", "ClusterNodes", "KnownNode"]

log = Logger()

#: Seconds between two announcements of a node: at most one event a second with five nodes.
INTERVAL = 5.0
#: Seconds without an announcement after which a node is no longer listed: two may be lost or late.
EXPIRY = 3 * INTERVAL
#: Seconds until a node announces itself again to a new one: short for an operator, and it joins many new ones.
GREETING = 0.5


class KnownNode(NamedTuple):
    """A node of the table.

    :ivar differs: the settings in which it differs from this node.
    """

    info: NodeInfo
    differs: tuple[str, ...]


class ClusterNodes:
    """Announces this node, and keeps the table of all nodes.

    :param broker: publishes the announcements.
    :param describe: returns what this node announces.
    :param on_rebalance: closes connections of this node.
    """

    def __init__(
        self,
        broker: Broker,
        describe: Callable[[], NodeInfo],
        on_rebalance: Callable[[RebalanceCommand], None],
        clock: Clock,
    ) -> None:
        self.broker = broker
        self._describe = describe
        self._on_rebalance = on_rebalance
        self._clock = clock
        self._others: dict[str, tuple[NodeInfo, float]] = {}
        self._reported: dict[str, tuple[str, ...]] = {}
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        """Announce this node from now on, if the broker is shared."""
        if self.broker.shared:
            self._announce()

    def stop(self) -> None:
        """Announce nothing more, and tell the others that this node ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._publish(is_leaving=True)

    def nodes(self) -> list[KnownNode]:
        """Return all nodes, this one first, the others sorted by name."""
        own = self._describe()
        expired = self._clock.seconds() - EXPIRY
        self._others = {id: entry for id, entry in self._others.items() if entry[1] > expired}
        others = sorted((info for info, _ in self._others.values()), key=lambda info: (info.name, info.id))
        return [KnownNode(own, ()), *(KnownNode(info, _differences(own, info)) for info in others)]

    async def rebalance(self, command: RebalanceCommand) -> None:
        """Close connections of a node.

        :raises ClientError: there is no such node.
        :raises Unavailable: the broker cannot be reached.
        """
        own, *others = self.nodes()
        if command.node == own.info.id:
            self._on_rebalance(command)
        elif command.node in (other.info.id for other in others):
            await self.broker.publish([to_new_event(command)])
        else:
            raise ClientError(ErrorCode.BAD_MESSAGE, "node: there is no node with this id")

    def on_command(self, command: NodeCommand) -> None:
        """Execute a command about nodes."""
        if isinstance(command, NodeInfo):
            self._note(command)
        elif command.node == self._describe().id:
            self._on_rebalance(command)

    def _note(self, info: NodeInfo) -> None:
        own = self._describe()
        if info.id == own.id:
            return
        if info.is_leaving:
            self._others.pop(info.id, None)
            self._reported.pop(info.id, None)
            return
        if info.id not in self._others and self._timer is not None:
            self._timer.cancel()
            self._timer = self._clock.callLater(GREETING, self._announce)
        self._others[info.id] = info, self._clock.seconds()
        self._report(own, info)

    def _report(self, own: NodeInfo, info: NodeInfo) -> None:
        """Log in which settings a node differs, once until that changes."""
        differs = _differences(own, info)
        if differs == self._reported.get(info.id, ()):
            return
        self._reported = {id: names for id, names in self._reported.items() if id in self._others}
        self._reported[info.id] = differs
        if not differs:
            log.info("node {other} ({other_id}) has the settings of this node now", other=info.name, other_id=info.id)
            return
        log.warn(
            "node {other} ({other_id}) differs from this node: {differences}",
            other=info.name,
            other_id=info.id,
            differences=", ".join(
                f"{name} is {info.settings.get(name, 'unknown')}, here {own.settings.get(name, 'unknown')}"
                for name in differs
            ),
        )

    def _announce(self) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._announce)
        self._publish()

    def _publish(self, *, is_leaving: bool = False) -> None:
        info = self._describe()
        if is_leaving:
            info = NodeInfo(info.id, info.name, is_leaving=True)
        sending = Deferred.fromCoroutine(self._send(info))
        sending.addErrback(lambda failure: log.failure("A node's announcement failed", failure))

    async def _send(self, info: NodeInfo) -> None:
        with suppress(Unavailable):  # the next announcement follows
            await self.broker.publish([to_new_event(info)])


def _differences(own: NodeInfo, other: NodeInfo) -> tuple[str, ...]:
    names = own.settings.keys() | other.settings.keys()
    return tuple(sorted(name for name in names if own.settings.get(name) != other.settings.get(name)))
