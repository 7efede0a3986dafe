"""Receive events from the broker: append them to the history, and deliver them to connections.

Implements `chatws.brokers.interface.EventHandler`. Cluster commands (chatws.chat.cluster_commands) are executed in
order with the events around them. If events are missing, every affected client is forced to resync before any later
event is delivered.

Hot path: a batch with no command in it is passed on as a whole. `_dispatch_with_commands` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from twisted.logger import Logger

from chatws.brokers.interface import NODES, Event
from chatws.chat import cluster_commands
from chatws.chat.admin import ConnectionAdmin
from chatws.chat.chat_stats import ChatStats
from chatws.chat.contacts import ContactDelivery
from chatws.chat.delivery import DeliveryGroup, plan_deliveries
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.presence.service import PresenceService
from chatws.chat.resume_wait import ResumeWaitQueue
from chatws.interfaces import Clock
from chatws.server.component import Connection

__all__ = ["BrokerEventHandler", "SendAll"]

log = Logger()

#: Seconds that a connection's part of a broadcast of presence takes, with hundreds of frames.
SEND_SECONDS = 1e-5

_NODES_CHANNELS = (NODES,)
_channels_of, _name_of = attrgetter("audience.channels"), attrgetter("name")

#: Sends each delivery's frames to each of its connections, in the order of the deliveries. Returns the number of
#: connections that get them later, in steps.
SendAll: TypeAlias = Callable[[Sequence[DeliveryGroup[Any]]], int]


class BrokerEventHandler:
    """Passes the broker's events to the parts of the chat.

    :param make_frames: makes the complete frames of events.
    :param connections: all open connections; read when a resync is forced.
    :param contacts: plans the deliveries to contacts; None if contacts are off.
    :param clock: measures how long announcements of presence take.
    :ivar on_heartbeats: called with the agents of a `HeartbeatUpdate`, or None.
    :ivar on_node_command: called with commands about nodes, or None.
    """

    on_heartbeats: Callable[[Sequence[cluster_commands.HeartbeatRow]], None] | None = None

    on_node_command: Callable[[cluster_commands.NodeCommand], None] | None = None

    def __init__(
        self,
        *,
        history: History,
        hub: Hub[Connection],
        stats: ChatStats,
        presence: PresenceService,
        admin: ConnectionAdmin,
        resume_wait: ResumeWaitQueue,
        make_frames: Callable[[Sequence[Event]], list[bytes]],
        send_all: SendAll,
        connections: Collection[Connection],
        contacts: ContactDelivery | None,
        clock: Clock,
    ) -> None:
        self._history = history
        self._known_missing_ranges = history.missing_ranges  # those for which clients have been forced to resync
        self._hub = hub
        self._stats = stats
        self._presence = presence
        self._admin = admin
        self._resume_wait = resume_wait
        self._make_frames = make_frames
        self._send_all = send_all
        self._connections = connections
        self._contacts = contacts
        self._clock = clock
        self._sent_later = 0  # connections that have got events in steps, in total

    def deliver(self, events: Sequence[Event]) -> None:
        """Append events to the history and deliver them: see `EventHandler.deliver`."""
        if "agent_status" in map(_name_of, events):
            self._note_statuses(events)
        if _NODES_CHANNELS in map(_channels_of, events):
            self._dispatch_with_commands(events)
        else:
            self._history.extend(events)
            self._dispatch(events)
        if self._resume_wait:
            self._resume_wait.history_advanced()

    def deliver_local(self, events: Sequence[Event]) -> None:
        """Deliver events that this node has made to its agents. They are no part of the history."""
        deliveries = plan_deliveries(events, self._hub, self._make_frames)
        self._stats.count(events)
        if deliveries:
            self._sent_later += self._send_all(deliveries)

    def _note_statuses(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.name == "agent_status":
                self._presence.note_pushed_status(event)

    def reset(self, epoch: str) -> None:
        """Clear the history and force all clients to resync: see `EventHandler.reset`."""
        self._history.reset(epoch)
        self._force_resync_all("the event history was reset")

    def _dispatch_with_commands(self, events: Sequence[Event]) -> None:
        """Execute each command before the events behind it are appended or delivered."""
        start = 0
        presence_from: float | None = None
        sent_later = self._sent_later
        for index, event in enumerate(events):
            self._history.append(event)
            if event.audience.channels[0] == NODES:
                self._dispatch(events[start:index])
                start = index + 1
                if event.name == "presence" and presence_from is None:
                    presence_from = self._clock.seconds()
                self._execute_command(event)
        self._dispatch(events[start:])
        if presence_from is not None:  # announcements are made by the command, or follow it
            sending = (self._sent_later - sent_later) * SEND_SECONDS
            self._presence.agents.local.throttle(self._clock.seconds() - presence_from + sending)

    def _dispatch(self, events: Sequence[Event]) -> None:
        if self._history.missing_ranges != self._known_missing_ranges:
            self._known_missing_ranges = self._history.missing_ranges
            self._force_resync_all("events are missing")
        deliveries = plan_deliveries(events, self._hub, self._make_frames)
        if self._contacts is not None:
            deliveries += self._contacts.plan(events)
        self._stats.count(events)
        if deliveries:
            self._sent_later += self._send_all(deliveries)

    def _execute_command(self, event: Event) -> None:
        command = cluster_commands.decode_command(event)
        if isinstance(command, cluster_commands.PRESENCE_COMMANDS):
            self._presence.apply(command)
        elif isinstance(command, cluster_commands.HeartbeatUpdate):
            if self.on_heartbeats is not None:
                self.on_heartbeats(command.agents)
        elif isinstance(command, cluster_commands.NodeInfo | cluster_commands.RebalanceCommand):
            if self.on_node_command is not None:
                self.on_node_command(command)
        elif command is not None:
            self._admin.apply_command(command)

    def _force_resync_all(self, reason: str) -> None:
        count = len(self._connections)
        log.warn("Forcing {count} clients to resync: {reason}", count=count, reason=reason)
        self._stats.forced_resyncs += count
        self._admin.force_resync(self._connections, reason)
