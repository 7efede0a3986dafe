"""The chat as a `MessageComponent` for browsers, and as the target of the push API.

`ChatServer` connects the parts of this package and executes the actions that sessions return.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import CONTACTS, Broker, Event, NewEvent, Retention
from chatws.brokers.memory import MemoryBroker
from chatws.chat import actions, messages
from chatws.chat.actions import Action
from chatws.chat.admin import ConnectionAdmin
from chatws.chat.audience import AudienceTable, group_channel
from chatws.chat.auth_flow import AuthFlow
from chatws.chat.chat_stats import ChatStats
from chatws.chat.client import MAX_WAITING, Client
from chatws.chat.cluster_commands import HeartbeatRow, RebalanceCommand
from chatws.chat.connection_log import ConnectionLog
from chatws.chat.contacts import ContactDelivery, ContactFilter
from chatws.chat.event_handler import BrokerEventHandler, SendAll
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.interfaces import ActivitySink, Authenticator, Authorizer
from chatws.chat.internal_events import InternalPublisher
from chatws.chat.nodes import ClusterNodes, KnownNode
from chatws.chat.presence.service import PresenceService, PresenceSettings
from chatws.chat.rate_limits import MIN_PAUSE
from chatws.chat.recovery import Recovery
from chatws.chat.resume_wait import ResumeWaitQueue
from chatws.chat.session import Session, SessionLimits
from chatws.chat.subscriptions import Subscriptions
from chatws.chat.timers import ConnectionTimers
from chatws.chat.work_scheduler import WorkScheduler
from chatws.errors import ClientError, CloseCode, ErrorCode, Unavailable
from chatws.ids import Id
from chatws.interfaces import Clock, Schedule, default_reactor
from chatws.runtime.connection_counts import ConnectionCounts
from chatws.server.component import Connection, format_connection_id
from chatws.server.fanout import FanOut
from chatws.server.frames import text_frame, text_frames

__all__ = ["ChatServer"]

log = Logger()

#: Close codes that are logged. A rejected `auth` and an internal error have log lines of their own.
LOGGED_CLOSE_CODES = frozenset(
    {CloseCode.FORBIDDEN, CloseCode.TOO_MANY_ERRORS, CloseCode.TOO_MANY_CONNECTIONS, CloseCode.AUTH_TIMEOUT}
)

#: Actions that follow the replies that wait for a search of the history, besides replies.
_FOLLOWING_REPLIES = (
    actions.AcceptAuth,
    actions.AddSubscription,
    actions.RemoveSubscription,
    actions.ChangeGroups,
    actions.ListPresence,
)


class ChatServer:
    """The chat.

    :param broker: stores and distributes events; by default a `MemoryBroker`.
    :param authenticator: authenticates clients. By default any `user_id` is accepted.
    :param authorizer: checks permissions. By default every user may read every conversation.
    :param activity: receives heartbeats and activities.
    :param history: answers recoveries.
    :param audiences: the default audiences of events.
    :param limits: rate limits and the number of subscriptions.
    :param auth_deadline: seconds within which a connection must send `auth`; 0 for no limit.
    :param max_connections_per_user: connections of an agent on this machine; 0 for no limit.
    :param max_connections_per_contact: connections of a contact on this machine; 0 for no limit.
    :param max_contacts_per_ip: connections of contacts from one address to this machine; 0 for no limit.
    :param counts: counts connections, over all workers. By default a new one.
    :param contact_filter: decides what contacts may get. None if contacts are off.
    :param presence: times of presence, and whether contacts are told that an agent is available.
    :param node: this node's name, unique among the nodes of a broker; random by default.
    :param send_all: sends deliveries; by default with one system call for each connection.
    :param when_ready: returns None, or a Deferred that fires when publishers may go on, because much waits to be sent.
    :param scheduler: runs large work in steps; by default a new one.
    :param reactor: the clock; by default Twisted's global reactor.
    :param wall_clock: seconds since 1970, with which token expiry is compared.
    :param schedule: schedules timeouts; by default the reactor's `callLater`.
    :ivar connections: the open connections, authenticated or not.
    :ivar subscriptions: has the limits on connections of one user, which a reload changes.
    :ivar presence_listeners: called with changes of presence, once per cluster (chatws.chat.presence.changes).
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        authenticator: Authenticator | None = None,
        authorizer: Authorizer | None = None,
        activity: ActivitySink | None = None,
        history: History | None = None,
        audiences: AudienceTable | None = None,
        limits: SessionLimits | None = None,
        auth_deadline: float = 10.0,
        max_connections_per_user: int = 50,
        max_connections_per_contact: int = 10,
        max_contacts_per_ip: int = 0,
        counts: ConnectionCounts | None = None,
        contact_filter: ContactFilter | None = None,
        presence: PresenceSettings | None = None,
        node: str = "",
        send_all: SendAll | None = None,
        when_ready: Callable[[], Deferred[None] | None] | None = None,
        scheduler: WorkScheduler | None = None,
        reactor: Clock | None = None,
        wall_clock: Callable[[], float] = time.time,
        schedule: Schedule | None = None,
    ) -> None:
        clock = default_reactor() if reactor is None else reactor
        schedule_call: Schedule = clock.callLater if schedule is None else schedule
        self._clock = clock
        self.audiences = audiences or AudienceTable()
        self.limits = limits or SessionLimits()
        self.auth_deadline = auth_deadline
        self._activity = activity
        self.hub: Hub[Connection] = Hub(self._connection_id)
        self.contacts: ContactDelivery | None = None
        if contact_filter is not None:
            self.contacts = ContactDelivery(contact_filter, self._connection_id, self._make_frames)
        self.history = History(Retention()) if history is None else history
        self.connections: set[Connection] = set()
        self._cluster: ClusterNodes | None = None
        self.node = node or secrets.token_hex(4)
        self.stats = ChatStats()
        self._internal_events = InternalPublisher(self.stats)
        self._wall_clock = wall_clock
        self._send_all = send_all or FanOut().send_all
        self.presence = PresenceService(
            self.node,
            presence or PresenceSettings(),
            publish=self._internal_events.publish,
            deliver=lambda events: self._event_handler.deliver_local(events),
            tell_contacts=self._tell_contacts,
            announces_status=lambda: self.audiences.has_default("agent_status"),
            has_subscribers=lambda channel: self.hub.has_subscribers((channel,)),
            clock=clock,
            wall_clock=wall_clock,
        )
        self.presence_listeners = self.presence.listeners
        self._timers = ConnectionTimers(self._execute, self._renew, clock, schedule_call, wall_clock)
        self._connection_log = ConnectionLog(clock, self._connection_id)
        self._auth_flow = AuthFlow(
            authenticator,
            authorizer,
            self._connection_log,
            self._execute,
            lambda: self.presence.contacts.all_nodes_know_contacts,
        )
        self._scheduler = WorkScheduler(clock) if scheduler is None else scheduler
        self._when_ready = when_ready
        self._uses_webhooks = False
        self._recovery = Recovery(
            lambda: self.broker.epoch,
            self.history,
            self.hub,
            self.contacts,
            self.stats,
            self._make_frames,
            self._scheduler,
            self._resume,
            self._history_lost,
        )
        self.subscriptions = Subscriptions(
            self.hub,
            self._recovery,
            self.presence,
            self._timers,
            self._connection_id,
            max_connections_per_user=max_connections_per_user,
            max_connections_per_contact=max_connections_per_contact,
            max_contacts_per_ip=max_contacts_per_ip,
            counts=counts or ConnectionCounts(),
        )
        self._resume_wait = ResumeWaitQueue(self.history, self._execute, schedule_call)
        self._admin = ConnectionAdmin(
            self.node, self.hub, self.contacts, self._auth_flow, self._execute, self._recovery.entering, clock
        )
        self._event_handler = BrokerEventHandler(
            history=self.history,
            hub=self.hub,
            stats=self.stats,
            presence=self.presence,
            admin=self._admin,
            resume_wait=self._resume_wait,
            make_frames=self._make_frames,
            send_all=self._send_all,
            connections=self.connections,
            contacts=self.contacts,
            clock=clock,
        )
        self.disconnect = self._admin.disconnect
        self.unsubscribe = self._admin.unsubscribe
        self.set_groups = self._admin.set_groups
        self.set_status = self.presence.set_status
        if broker is None:
            broker = MemoryBroker(Retention(), wall_clock)
            broker.start(self._event_handler)
        self.broker = self.presence.broker = self._admin.broker = self._internal_events.broker = broker
        self._resume_wait.broker = broker

    async def start(self) -> None:
        """Start the broker, load the history and begin to report presence.

        :raises ConfigError: The broker cannot be opened.
        """
        await self.broker.start(self._event_handler)
        await self.history.load(self.broker)
        await self.presence.start()

    def freeze_presence(self, seconds: float = 0.0) -> None:
        """Announce no more agents as offline, because the server is about to close all connections.

        The agents stay online for the next process and for the other nodes.

        :param seconds: how long it takes to close the connections.
        """
        self.presence.freeze(seconds)

    async def stop(self) -> None:
        """Freeze the presence and stop the broker."""
        self.freeze_presence()
        self._admin.stop()
        self._scheduler.stop()
        await self.broker.stop()

    # MessageComponent

    def on_open(self, connection: Connection) -> None:
        """Create the connection's session."""
        client = Client(connection, Session(self.limits, self._clock.seconds()))
        connection.client = client
        self.connections.add(connection)
        if self.auth_deadline:
            self._timers.start_auth_deadline(client, self.auth_deadline)

    def on_message(self, connection: Connection, text: str | bytes) -> None:
        """Process a text message."""
        client: Client = connection.client
        self._execute(client, client.session.receive(text, self._clock.seconds()))

    def on_binary(self, connection: Connection, data: bytes) -> None:
        """Reject a binary message with `unsupported`."""
        client: Client = connection.client
        self._execute(client, client.session.receive_binary(self._clock.seconds()))

    def on_close(self, connection: Connection) -> None:
        """End the connection's session, and remove the connection everywhere."""
        client: Client = connection.client
        connection.client = None  # a cycle, which only the garbage collector would free
        self.connections.discard(connection)
        self._timers.cancel_deadline(client)
        self._timers.cancel_pause(client)
        self._auth_flow.cancel(client)
        self._recovery.hub_of(client).remove(connection)
        self._recovery.end(client)
        client.waiting = None
        last_actions = client.session.end()
        if connection.disconnect_reason:
            self._connection_log.ended_abnormally(connection, client.log_name)
        else:
            self._connection_log.debug(connection, client.log_name, "ended")
        if self._resume_wait:
            self._resume_wait.forget(client)
        user_id = client.user_id
        if user_id is not None and self._activity is not None:
            self._activity.disconnected(user_id)
        self.subscriptions.end(client)
        self._execute(client, last_actions)

    def on_error(self, connection: Connection, exception: Exception) -> None:
        """Close a connection after an internal error, without details. Its client reconnects and recovers."""
        log.failure(
            "Internal error on connection {connection_id}",
            Failure(exception),  # type: ignore[no-untyped-call]
            connection_id=self._connection_id(connection),
        )
        connection.close(int(CloseCode.INTERNAL_ERROR), "internal error")

    def use_webhooks(self, activity: ActivitySink, on_heartbeats: Callable[[Sequence[HeartbeatRow]], None]) -> None:
        """Pass on what agents do, for webhooks.

        :param activity: receives connections, heartbeats and activities instead of the present sink.
        :param on_heartbeats: receives the updates of all nodes.
        """
        self._uses_webhooks = True
        self._activity = activity
        self._event_handler.on_heartbeats = on_heartbeats

    def use_cluster(self, cluster: ClusterNodes) -> None:
        """Pass on commands about nodes, and answer backends about them."""
        self._cluster = cluster
        self._event_handler.on_node_command = cluster.on_command

    # Target of the push API

    def nodes(self) -> list[KnownNode]:
        """Return the nodes that share the broker, this one first."""
        return [] if self._cluster is None else self._cluster.nodes()

    async def rebalance(self, command: RebalanceCommand) -> None:
        """Close connections of a node: see `ClusterNodes.rebalance`."""
        if self._cluster is not None:
            await self._cluster.rebalance(command)

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """Store and deliver events, in order. See `Broker.publish`.

        The result waits while much is to be sent, so that backends slow down.
        """
        result = self.broker.publish(new_events)
        ready = None if self._when_ready is None else self._when_ready()
        if ready is None:
            return result
        return result.addCallback(lambda events: ready.addCallback(lambda _: events))

    def sync_webhooks(self) -> Deferred[None]:
        """Make the whole state due for the receiver of webhooks.

        :raises ClientError: through the Deferred: webhooks are not configured (`unsupported`).
        :raises Unavailable: through the Deferred: the broker is unavailable.
        """
        if not self._uses_webhooks:
            return fail(ClientError(ErrorCode.UNSUPPORTED, "webhooks are not configured"))
        return self.broker.add_webhooks([], reset=True)

    def event_id(self, event: Event) -> str | None:
        """Return "EPOCH:OFFSET", or None for a transient event."""
        return f"{self.broker.epoch}:{event.offset}" if event.offset else None

    def online(self) -> list[Id]:
        """Return the agents online on any node, sorted."""
        return self.presence.online()

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        """Return the connection id and the address of each of the user's connections on this node."""
        connections = self._admin.connections_of(user_id)
        return [(self._connection_id(connection), connection.remote_address) for connection in connections]

    def _make_frames(self, events: Sequence[Event]) -> list[bytes]:
        return text_frames(messages.event_payloads(events, self.broker.epoch))

    def statuses(self) -> dict[str, str]:
        """Return the statuses of agents online that are not `online`, by the text of the id."""
        return self.presence.online_statuses()

    def _tell_contacts(self, payload: bytes) -> None:
        if self.contacts is not None and self.contacts.count:
            self._send_all([(self.contacts.hub.subscribers(CONTACTS), [text_frame(payload)])])

    # Operation

    @property
    def connection_count(self) -> int:
        """Number of open connections, authenticated or not."""
        return len(self.connections)

    @property
    def pending_searches(self) -> int:
        """Number of clients whose recovery waits for a search of the history, or for earlier replays."""
        return self._recovery.searches

    @property
    def replays(self) -> int:
        """Number of replays in progress."""
        return self._recovery.replays

    @property
    def renewals(self) -> dict[str, int]:
        """Results of authenticating connections again whose identity's time was over."""
        return self._auth_flow.renewals

    @property
    def pending_resumes(self) -> int:
        """Number of clients that have seen newer events than this node and wait for it."""
        return len(self._resume_wait)

    def disconnect_all(self, code: CloseCode, reason: str, count: int | None = None) -> int:
        """Close up to `count` connections (all by default), and return how many are left.

        With `NORMAL`, connections whose URL has the query parameter `client` get `RESTARTING` instead. Old pages poll
        for good after any code but 1000. The client library, which sets the parameter, reconnects after 4012.
        """
        for index, connection in enumerate(tuple(self.connections)):
            if index == count:
                break
            client: Client = connection.client
            self.connections.discard(connection)
            uses_library = code is CloseCode.NORMAL and connection.http_request.has_parameter("client")
            self._execute(client, client.session.close(CloseCode.RESTARTING if uses_library else code, reason))
        return len(self.connections)

    # Execution of actions. A handler may return further actions, which come before the remaining ones.

    def _execute(self, client: Client, action_list: list[Action]) -> None:
        if not action_list:
            return
        pending = action_list[::-1]
        while pending:
            further: list[Action] | None = None
            action = pending.pop()
            if client.waiting is not None and self._must_wait(client, action):
                client.waiting.append(action)
                continue
            match action:
                case actions.SendReply():
                    self._send_reply(client, action)
                case actions.CheckPermission():
                    further = self._check_permission(client, action)
                case actions.AddSubscription():
                    self.subscriptions.add(client, action)
                case actions.RecordActivity():
                    self._record_activity(client, action)
                case actions.BroadcastTyping():
                    self._internal_events.publish_typing(action)
                case actions.ChangeGroups():
                    self.subscriptions.change_groups(client, action)
                case actions.Authenticate():
                    further = self._authenticate(client, action)
                case actions.AcceptAuth():
                    further = self.subscriptions.accept_auth(client, action)
                    self._record_auth(client, action, accepted=not further)
                case actions.ScheduleRenewal():
                    self._timers.schedule_renewal(client, action.seconds)
                case actions.RemoveSubscription():
                    self.subscriptions.remove(client, action)
                case actions.ListPresence():
                    self._send(client.connection, messages.presence(self.online(), self.statuses()))
                case actions.SetStatus():
                    self._set_status(client, action)
                case actions.PauseReading():
                    self._timers.pause_reading(client, action.seconds)
                case actions.Close():
                    self._close(client, action)
            if further:
                pending.extend(reversed(further))

    def _must_wait(self, client: Client, action: Action) -> bool:
        """Return whether an action follows the replies that wait for a search of the history."""
        if isinstance(action, actions.AcceptAuth):
            self._timers.set_expiry(client, action.identity)
            self._recovery.narrow(client, [*map(group_channel, action.identity.groups or ())])
        elif isinstance(action, actions.ChangeGroups):
            self._recovery.narrow(client, [*map(group_channel, action.groups)])
        elif isinstance(action, actions.SendReply):
            return action.payload is not messages.PONG
        elif isinstance(action, actions.Close) and client.waiting:
            replies = [waiting for waiting in client.waiting if isinstance(waiting, actions.SendReply)]
            client.waiting = None
            for reply in () if action.drop_unsent else replies:
                self._send_reply(client, reply)
        if client.waiting is not None and len(client.waiting) > MAX_WAITING:
            self._timers.pause_reading(client, MIN_PAUSE)
        return isinstance(action, _FOLLOWING_REPLIES)

    def _renew(self, client: Client) -> None:
        self._auth_flow.renew(client)

    def _resume(self, client: Client) -> None:
        """Execute the actions that waited for a search of the history."""
        waiting, client.waiting = client.waiting, None
        if waiting:
            self._execute(client, waiting)

    def _history_lost(self, client: Client) -> None:
        reason = "the history has dropped events of the replay: recover again"
        self._execute(client, client.session.close(CloseCode.RECONNECT, reason))

    def _send(self, connection: Connection, payload: bytes) -> None:
        connection.send_frames(text_frame(payload))

    def _send_reply(self, client: Client, action: actions.SendReply) -> None:
        code = action.error
        if code is not None:
            self.stats.errors[code] = self.stats.errors.get(code, 0) + 1
            if code is ErrorCode.RATE_LIMITED:
                self._connection_log.rate_limited(client.connection, client.log_name)
        self._send(client.connection, action.payload)

    def _close(self, client: Client, action: actions.Close) -> None:
        self.stats.closes[action.code] = self.stats.closes.get(action.code, 0) + 1
        if action.code in LOGGED_CLOSE_CODES:
            self._connection_log.closed(client.connection, client.log_name, int(action.code), action.reason)
        self._timers.cancel_pause(client)
        self._recovery.hub_of(client).remove(client.connection)
        self._recovery.end(client)
        client.waiting = None
        client.connection.close(int(action.code), action.reason, drop_unsent=action.drop_unsent)

    def _authenticate(self, client: Client, action: actions.Authenticate) -> list[Action] | None:
        return self._resume_wait.run(client, action.message, lambda: self._auth_flow.authenticate(client, action))

    def _check_permission(self, client: Client, action: actions.CheckPermission) -> list[Action] | None:
        if not isinstance(action.message, messages.Subscribe):
            return self._auth_flow.check(client, action)
        return self._resume_wait.run(client, action.message, lambda: self._auth_flow.check(client, action))

    def _record_auth(self, client: Client, action: actions.AcceptAuth, *, accepted: bool) -> None:
        if accepted and not action.renewed:
            self._connection_log.debug(client.connection, client.log_name, "authenticated")
        if accepted and not action.renewed and not action.identity.is_contact and self._activity is not None:
            self._activity.connected(action.identity.user_id)

    def _set_status(self, client: Client, action: actions.SetStatus) -> None:
        def finished(failure: Failure | None) -> None:
            if failure is not None and not isinstance(failure.value, Unavailable):
                log.failure("Setting a status failed", failure)
            error = None if failure is None else Unavailable("the status cannot be stored now")
            self._execute(client, client.session.on_status_result(action.message, error))

        stored = self.set_status(action.user_id, action.message.status, self._connection_id(client.connection))
        stored.addBoth(finished).addErrback(lambda failure: log.failure("Replying to a status failed", failure))

    def _record_activity(self, client: Client, action: actions.RecordActivity) -> None:
        if self._activity is None:
            return
        message = action.message
        if isinstance(message, messages.Ping):
            last_activity = None if message.last_activity is None else message.last_activity / 1000.0
            if message.idle_ms is not None:
                last_activity = self._wall_clock() - message.idle_ms / 1000.0
            self._activity.heartbeat(action.user_id, last_activity)
        else:
            self._activity.activity(action.user_id, message.activity_type)

    def _connection_id(self, connection: Connection) -> str:
        return format_connection_id(self.node, connection.resource_id)
