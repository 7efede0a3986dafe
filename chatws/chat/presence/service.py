"""Presence of agents and contacts: what nodes tell each other, their clients, and listeners.

Changes are no events of the history. A node that has caused a change publishes one transient command for a batch of
them. Each node applies it, and makes the frames for those of its own clients that are concerned: all agents for
`agent_status`, and the agents subscribed to a conversation for `contact_status`. Listeners are called on the node that
has caused the change (chatws.chat.presence.changes).

While nodes of an earlier version are running, `agent_status` is published as events, which those nodes deliver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import AGENT_SPACE, Audience, Broker, Event, MemberData, NewEvent
from chatws.chat import messages
from chatws.chat.audience import AGENTS_AUDIENCE, connection_channel, conversation_channel, excluding
from chatws.chat.cluster_commands import (
    ContactUpdate,
    PresenceCommand,
    PresenceUpdate,
    StatusUpdate,
    to_new_event,
)
from chatws.chat.presence.availability import Availability
from chatws.chat.presence.changes import ONLINE, ChangeKind, PresenceChange, PresenceListener
from chatws.chat.presence.cluster import ClusterPresence, MemberChange
from chatws.chat.presence.contacts import ContactPresence, parse_contact_member
from chatws.chat.presence.statuses import AgentStatuses, is_valid_status
from chatws.errors import Unavailable
from chatws.ids import Id, parse_id
from chatws.interfaces import Clock, TimerHandle

__all__ = ["PresenceService", "PresenceSettings"]

#: Seconds for which the broker keeps the status of an agent online: longer than a page stays open.
ONLINE_STATUS_SECONDS = 30 * 86_400.0
#: Seconds between two reads of all statuses, which repair what this node has missed.
STATUS_REFRESH = 60.0


class PresenceSettings(msgspec.Struct, frozen=True):
    """Times in seconds.

    :ivar grace: between the end of an agent's last connection and `offline`.
    :ivar ttl: until another node announces this node's agents and contacts as offline if this node fails.
    :ivar contact_grace: between the end of a contact's last subscription and `offline`.
    :ivar status_keep: for which a status outlives the connections of its agent.
    :ivar availability: whether contacts are told that an agent is available.
    """

    grace: float = 3.0
    ttl: float = 15.0
    contact_grace: float = 90.0
    status_keep: float = 28_800.0
    availability: bool = False


class _StatusData(msgspec.Struct, gc=False):
    agent_id: int | str
    status: str


_decode_status_data = msgspec.json.Decoder(_StatusData).decode


class PresenceService:
    """Presence on this node and in the cluster.

    :param node: this node's name.
    :param publish: publishes the server's own events. Errors are its own.
    :param deliver: delivers events to this node's agents.
    :param tell_contacts: sends a payload to all contacts of this node.
    :param announces_status: returns whether `agent_status` has an audience.
    :param has_subscribers: returns whether any agent of this node subscribes to a channel.
    :param wall_clock: returns seconds since 1970.
    :ivar listeners: called with changes (chatws.chat.presence.changes).
    :ivar broker: must be set before any method is called.
    """

    _log = Logger()

    def __init__(
        self,
        node: str,
        settings: PresenceSettings,
        *,
        publish: Callable[[Sequence[NewEvent]], None],
        deliver: Callable[[Sequence[Event]], None],
        tell_contacts: Callable[[bytes], None],
        announces_status: Callable[[], bool],
        has_subscribers: Callable[[str], bool],
        clock: Clock,
        wall_clock: Callable[[], float],
    ) -> None:
        self._keep = settings.status_keep
        self._publish = publish
        self._deliver = deliver
        self._announces_status = announces_status
        self._has_subscribers = has_subscribers
        self._clock = clock
        self._wall_clock = wall_clock
        self.listeners: list[PresenceListener] = []
        self.agents = ClusterPresence(node, self._agents_changed, settings.grace, settings.ttl, clock)
        self.contacts = ContactPresence(node, self._contacts_changed, settings.contact_grace, settings.ttl, clock)
        self.statuses = AgentStatuses(settings.status_keep, wall_clock)
        self.availability: Availability | None = None
        if settings.availability:
            tell = lambda available: tell_contacts(messages.available(available))  # noqa: E731
            self.availability = Availability(self._is_available, tell, clock)
        self._setting: dict[Id, str] = {}  # statuses that this node is storing
        self._refresh_timer: TimerHandle | None = None

    @property
    def broker(self) -> Broker:
        """The broker that holds the leases and statuses."""
        return self.agents.broker

    @broker.setter
    def broker(self, broker: Broker) -> None:
        self.agents.broker = self.contacts.broker = broker

    # Queries

    def online(self) -> list[Id]:
        """Return the agents online on any node, sorted."""
        return self.agents.online()

    def online_statuses(self) -> dict[str, str]:
        """Return the statuses of agents online that are not `online`, by the text of the id."""
        return self.statuses.of(self.agents.online())

    def available(self) -> bool | None:
        """Return whether an agent is available. None if contacts are not told."""
        return None if self.availability is None else self.availability.current()

    def _is_available(self) -> bool:
        online = self.agents.online()
        return len(online) > len(self.statuses.of(online))

    # Lifetime

    async def start(self) -> None:
        """Read the state, and begin to renew leases. The lease of contacts comes first: see `ContactPresence`.

        :raises Unavailable: The broker cannot be reached.
        """
        await self.contacts.start()
        await self.agents.start()
        self.statuses.replace(await self.broker.data(AGENT_SPACE), self.agents.online())
        if self.agents.local.stopped:
            return  # the process stops during its start
        self._refresh_timer = self._clock.callLater(STATUS_REFRESH, self._refresh_statuses)

    def freeze(self, seconds: float) -> None:
        """Announce nothing more: from now on connections close because this process stops. Idempotent."""
        self.agents.freeze(seconds)
        self.contacts.freeze(seconds)
        if self._refresh_timer is not None and self._refresh_timer.active():
            self._refresh_timer.cancel()
        self._refresh_timer = None
        if self.availability is not None:
            self.availability.stop()

    # Changes that this node causes

    def set_status(self, user_id: Id, status: str, connection_id: str = "") -> Deferred[None]:
        """Set an agent's status on all nodes. It is kept for an agent that is offline, too, and not announced then.

        :param connection_id: the agent's connection that has set it, which gets no `agent_status`.
        :raises Unavailable: (through the Deferred) the broker cannot be reached.
        """
        return Deferred.fromCoroutine(self._set_status(user_id, status, connection_id))

    async def _set_status(self, user_id: Id, status: str, connection_id: str) -> None:
        self._setting[user_id] = status
        try:
            if await self._store_status(user_id, status, user_id in self.agents):
                self._notify([self._change(ChangeKind.AGENT_STATUS, user_id, status=status)])
            # also without a change, because a node may have missed the command
            await self.broker.publish([to_new_event(StatusUpdate(user_id, status, connection_id))])
        finally:
            self._setting.pop(user_id, None)

    def _store_status(self, user_id: Id, status: str, is_online: bool) -> Deferred[bool]:
        seconds = ONLINE_STATUS_SECONDS if is_online else self._keep
        return self.broker.set_data(AGENT_SPACE, user_id, None if status == ONLINE or not seconds else status, seconds)

    def _agents_changed(self, changes: list[MemberChange]) -> None:
        for user_id, is_online, _ in changes:
            status = self._setting.get(user_id, self.statuses.get(user_id))
            if status != ONLINE:  # the time for which it is kept has changed
                self._store_status(user_id, status, is_online).addErrback(self._not_stored)
        online = [user_id for user_id, is_online, _ in changes if is_online]
        offline = [user_id for user_id, is_online, _ in changes if not is_online]
        if self.contacts.outdated:
            self._publish([to_new_event(PresenceUpdate(online, offline)), *self._as_new_events(changes)])
        else:
            self._publish([to_new_event(PresenceUpdate(online, offline, announce=True))])
        self._notify(
            [
                self._change(ChangeKind.AGENT_ONLINE, user_id, status=self.statuses.get(user_id))
                if is_online
                else self._change(ChangeKind.AGENT_OFFLINE, user_id, unseen=unseen)
                for user_id, is_online, unseen in changes
            ]
        )

    def _as_new_events(self, changes: list[MemberChange]) -> list[NewEvent]:
        events = self._status_events((change.member, change.is_online) for change in changes)
        return [NewEvent(event.name, event.audience, event.data, transient=True) for event in events]

    def _contacts_changed(self, changes: list[MemberChange]) -> None:
        online = [str(change.member) for change in changes if change.is_online]
        offline = [str(change.member) for change in changes if not change.is_online]
        self._publish([to_new_event(ContactUpdate(online, offline, round(self._wall_clock() * 1000)))])
        if self.listeners:
            self._notify(
                [
                    self._change(
                        ChangeKind.CONTACT_ONLINE if is_online else ChangeKind.CONTACT_OFFLINE,
                        contact_id,
                        conversation_id=conversation_id,
                    )
                    for (conversation_id, contact_id), is_online in [
                        (parse_contact_member(member), is_online) for member, is_online, _ in changes
                    ]
                ]
            )

    def _change(
        self,
        kind: ChangeKind,
        id: Id,
        *,
        status: str = ONLINE,
        conversation_id: Id | None = None,
        unseen: float | None = None,
    ) -> PresenceChange:
        now = self._wall_clock()
        last_seen_ms = None if unseen is None else round((now - unseen) * 1000)
        return PresenceChange(kind, id, round(now * 1000), status, conversation_id, last_seen_ms)

    def _notify(self, changes: list[PresenceChange]) -> None:
        for listener in self.listeners:
            listener(changes)

    # Changes on any node

    def apply(self, command: PresenceCommand) -> None:
        """Apply a command of any node, this one included, and tell the clients of this node."""
        match command:
            case PresenceUpdate():
                self._apply_presence(command)
            case StatusUpdate():
                self._apply_status(command.user_id, command.status, command.connection_id)
            case ContactUpdate():
                self._apply_contacts(command)

    def _apply_presence(self, update: PresenceUpdate) -> None:
        self.agents.apply_remote_status(update.online, update.offline)
        self.statuses.apply_presence(update.online, update.offline)
        if update.announce:
            changes = [(user_id, True) for user_id in update.online]
            changes += [(user_id, False) for user_id in update.offline]
            self._deliver(self._status_events(changes))
        self._availability_changed()

    def _status_events(self, changes: Iterable[tuple[Id, bool]]) -> list[Event]:
        """Return the events that announce agents, each without the agent's own connections."""
        if not self._announces_status():
            return []
        return [
            self._status_event(
                user_id,
                self.statuses.get(user_id) if is_online else "offline",
                Audience(AGENTS_AUDIENCE.channels, user_id),
            )
            for user_id, is_online in changes
        ]

    @staticmethod
    def _status_event(user_id: Id, status: str, audience: Audience = AGENTS_AUDIENCE) -> Event:
        return Event(0, "agent_status", audience, messages.status_data(user_id, status), 0.0)

    def _apply_status(self, user_id: Id, status: str, connection_id: str = "") -> None:
        is_online = user_id in self.agents
        if not self.statuses.set(user_id, status, is_online) or not is_online:
            return
        if self._announces_status():
            channels = AGENTS_AUDIENCE.channels
            if connection_id:
                channels = (*channels, excluding(connection_channel(connection_id)))
            self._deliver([self._status_event(user_id, status, Audience(channels))])
        self._availability_changed()

    def note_pushed_status(self, event: Event) -> None:
        """Keep the status in an `agent_status` event that a backend has published, if its agent is online."""
        try:
            data = _decode_status_data(event.data)
            user_id = parse_id(data.agent_id, "agent_id")
        except Exception:  # a backend may use other fields: the event is passed through
            return
        if user_id not in self.agents or not is_valid_status(data.status):
            return
        self.statuses.set(user_id, data.status, True)
        self._availability_changed()
        if user_id in self.agents.local:  # the nodes that serve the agent store it, and one of them has changed it
            stored = self._store_status(user_id, data.status, True)
            change = self._change(ChangeKind.AGENT_STATUS, user_id, status=data.status)
            stored.addCallbacks(lambda changed: self._notify([change]) if changed else None, self._not_stored)

    def _apply_contacts(self, update: ContactUpdate) -> None:
        self.contacts.apply_remote_status(update.online, update.offline)
        events = []
        for status, members in (("online", update.online), ("offline", update.offline)):
            for conversation_id, contact_id in map(parse_contact_member, members):
                channel = conversation_channel(conversation_id)
                if self._has_subscribers(channel):
                    data = messages.contact_status_data(conversation_id, contact_id, status, update.since_ms)
                    events.append(Event(0, "contact_status", Audience((channel,)), data, 0.0))
        if events:
            self._deliver(events)

    def _availability_changed(self) -> None:
        if self.availability is not None:
            self.availability.changed()

    # Statuses that this node has missed

    def _refresh_statuses(self) -> None:
        self._refresh_timer = self._clock.callLater(STATUS_REFRESH, self._refresh_statuses)
        self.statuses.prune()
        version = self.statuses.version

        def replace(data: dict[Id, MemberData]) -> None:
            if version != self.statuses.version:
                return  # a command has been applied meanwhile, which the reply may lack
            changed = self.statuses.replace(data, self.agents.online())
            if changed and self._announces_status():
                self._deliver([self._status_event(user_id, status) for user_id, status in changed.items()])
            self._availability_changed()

        self.broker.data(AGENT_SPACE).addCallback(replace).addErrback(self._not_stored)

    def _not_stored(self, failure: Failure) -> None:
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Storing an agent's status failed", failure)
