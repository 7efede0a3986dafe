"""What agents do on this node and others: connections, pings and activities, for webhooks.

Every node tells the others of its agents a few times in each interval of heartbeats, so that any of them can become the
sender. Heartbeats are never queued: the sender makes them from what is known when it sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Broker
from chatws.brokers.webhook_queue import NewWebhook
from chatws.chat.cluster_commands import HeartbeatRow, HeartbeatUpdate, to_new_event
from chatws.chat.interfaces import ActivitySink
from chatws.chat.presence.changes import ChangeKind, PresenceChange
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle

__all__ = ["WebhookActivity"]

#: Updates for the other nodes in each interval of heartbeats.
UPDATES = 2
#: Agents in one update: about 100 KB.
UPDATE_SIZE = 2000
#: Seconds in which the same activity of an agent is reported once.
ACTIVITY_INTERVAL = 1.0
#: Characters of a reported `activity_type`. Longer ones are not reported.
MAX_ACTIVITY_TYPE = 1000
#: Activities that wait for the broker. Further ones are dropped, as the queue drops them first.
MAX_ACTIVITIES = 1000
#: Changes that wait for the broker. After further ones the receiver gets the whole state.
MAX_CHANGES = 10_000
#: Seconds until an unavailable broker is asked again.
RETRY = 5.0
#: Milliseconds after which an agent is forgotten that is connected nowhere.
FORGET_MS = 600_000

_encode = msgspec.json.Encoder().encode


class _Agent:
    """An agent.

    :ivar connections: on this node.
    :ivar active_ms: when the agent was last active.
    :ivar told_ms: when that was told; the newest counts.
    :ivar seen_ms: when the agent was last connected.
    """

    __slots__ = ("active_ms", "connections", "seen_ms", "told_ms")

    def __init__(self, now_ms: int) -> None:
        self.connections = 0
        self.active_ms = self.told_ms = self.seen_ms = now_ms


class WebhookActivity:
    """Collects what agents do. It is also an `ActivitySink`, and passes everything on to another one.

    :param sink: receives heartbeats and activities, too.
    :param broker: whose nodes are told, and whose queue gets the activities.
    :param interval: seconds between two heartbeats of an agent.
    :param reports_activities: whether activities are queued.
    :param wake: called when something was queued.
    :param wall_clock: seconds since 1970.
    """

    _log = Logger()

    def __init__(
        self,
        sink: ActivitySink,
        broker: Broker,
        *,
        interval: float,
        reports_activities: bool,
        wake: Callable[[], None],
        clock: Clock,
        wall_clock: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._broker = broker
        self._interval = interval
        self._reports_activities = reports_activities
        self._wake = wake
        self._clock = clock
        self._wall_clock = wall_clock
        self._agents: dict[Id, _Agent] = {}
        self._left: set[Id] = set()  # agents without a connection here, of whom the others are to be told
        self._activities: list[NewWebhook] = []
        self._changes: list[NewWebhook] = []
        self._lost = False
        self._stopped = False
        self._retry: TimerHandle | None = None
        self._reported: dict[tuple[Id, str], float] = {}
        self._adding = False
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        """Begin to tell the other nodes."""
        if self._broker.shared:
            self._timer = self._clock.callLater(self._interval / UPDATES, self._update)

    def stop(self) -> None:
        """Tell nobody any more."""
        self._stopped = True
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._timer = self._retry = None

    # ActivitySink

    def connected(self, user_id: Id) -> None:
        """See `ActivitySink.connected`."""
        now = self._now_ms()
        agent = self._agents.get(user_id)
        if agent is None:
            agent = self._agents[user_id] = _Agent(now)
        agent.connections += 1
        agent.seen_ms = now
        self._left.discard(user_id)
        self._sink.connected(user_id)

    def disconnected(self, user_id: Id) -> None:
        """See `ActivitySink.disconnected`."""
        agent = self._agents.get(user_id)
        if agent is not None:
            agent.connections -= 1
            agent.seen_ms = self._now_ms()
            if not agent.connections:
                self._left.add(user_id)
        self._sink.disconnected(user_id)

    def heartbeat(self, user_id: Id, last_activity: float | None) -> None:
        """See `ActivitySink.heartbeat`."""
        agent = self._agents.get(user_id)
        if agent is not None:
            agent.told_ms = self._now_ms()
            agent.active_ms = agent.told_ms if last_activity is None else round(last_activity * 1000)
        self._sink.heartbeat(user_id, last_activity)

    def activity(self, user_id: Id, activity_type: str) -> None:
        """See `ActivitySink.activity`."""
        self._sink.activity(user_id, activity_type)
        if not self._reports_activities or len(activity_type) > MAX_ACTIVITY_TYPE:
            return
        now = self._clock.seconds()
        key = (user_id, activity_type)
        if now - self._reported.get(key, -ACTIVITY_INTERVAL) < ACTIVITY_INTERVAL:
            return
        if len(self._reported) > MAX_ACTIVITIES:
            self._reported = {old: at for old, at in self._reported.items() if now - at < ACTIVITY_INTERVAL}
        self._reported[key] = now
        if len(self._activities) < MAX_ACTIVITIES:
            self._activities.append(("activity", _encode({"user_id": user_id, "activity_type": activity_type})))
        self._add()

    def changed(self, changes: Sequence[PresenceChange]) -> None:
        """Queue changes of statuses: a listener of presence. The broker itself queues the other changes."""
        for change in changes:
            if change.kind is not ChangeKind.AGENT_STATUS:
                continue
            if len(self._changes) < MAX_CHANGES:
                fields = {"user_id": change.id, "status": change.status}
                self._changes.append((change.kind.value, _encode(fields)))
            else:
                self._lost = True
        self._add()
        self._wake()

    def _add(self) -> None:
        self._retry = None
        if self._adding or not (self._activities or self._changes or self._lost):
            return
        self._adding = True
        added, lost = [*self._changes, *self._activities], self._lost
        self._changes, self._activities, self._lost = [], [], False
        adding = self._broker.add_webhooks(added, reset=lost)
        adding.addCallbacks(self._added, self._not_added)
        adding.addErrback(lambda failure: self._log.failure("Webhooks were not queued", failure))

    def _added(self, _: object) -> None:
        self._adding = False
        self._wake()
        self._add()

    def _not_added(self, failure: Failure) -> None:
        """Make up for what may not have been queued: the receiver gets the whole state."""
        self._adding, self._lost = False, True
        if not self._stopped and self._retry is None:
            self._retry = self._clock.callLater(RETRY, self._add)
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Webhooks were not queued", failure)

    # Other nodes

    def _update(self) -> None:
        self._timer = self._clock.callLater(self._interval / UPDATES, self._update)
        self.publish()

    def publish(self) -> None:
        """Tell the other nodes of the agents of this one."""
        now = self._now_ms()
        rows = []
        for user_id, agent in self._agents.items():
            if agent.connections:
                agent.seen_ms = now
            elif user_id not in self._left:
                continue
            rows.append((user_id, agent.active_ms, agent.told_ms, agent.seen_ms))
        self._left.clear()
        since = now - FORGET_MS
        self.forget({user_id for user_id, agent in self._agents.items() if agent.seen_ms > since})
        for start in range(0, len(rows), UPDATE_SIZE):
            update = HeartbeatUpdate(rows[start : start + UPDATE_SIZE])
            self._broker.publish([to_new_event(update)]).addErrback(self._not_published)

    def _not_published(self, failure: Failure) -> None:
        """Take a failure. The next update has the same agents."""
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Heartbeats were not published", failure)

    def receive(self, agents: Sequence[HeartbeatRow]) -> None:
        """Take an update of a node, this one included."""
        for user_id, active_ms, told_ms, seen_ms in agents:
            agent = self._agents.get(user_id)
            if agent is None:
                agent = self._agents[user_id] = _Agent(0)
            if told_ms > agent.told_ms:
                agent.active_ms, agent.told_ms = active_ms, told_ms
            agent.seen_ms = max(agent.seen_ms, seen_ms)

    # For the sender

    def last_active(self, user_id: Id) -> int | None:
        """See `chatws.webhooks.batches.Agents`."""
        agent = self._agents.get(user_id)
        return None if agent is None else agent.active_ms

    def last_seen(self, user_id: Id) -> int | None:
        """See `chatws.webhooks.batches.Agents`."""
        agent = self._agents.get(user_id)
        return None if agent is None else agent.seen_ms

    def forget(self, online: Set[Id]) -> None:
        """Forget agents that are neither connected to this node nor online."""
        for user_id in [user_id for user_id in self._agents if user_id not in online]:
            if not self._agents[user_id].connections and user_id not in self._left:
                del self._agents[user_id]

    def _now_ms(self) -> int:
        return int(self._wall_clock() * 1000)
