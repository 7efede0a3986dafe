"""The application: a `MessageComponent` for browsers, and the target that backends push to.

It carries out what each `Session` decides, and hands what the broker tells it to the connections that the hub names:
one frame per event, built once, and one write per connection for all that came together.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import EVERYONE, Audience, Bounds, Broker, Draft, Event
from chatws.chat import effects, messages, nodes
from chatws.chat.agents import Agents
from chatws.chat.audience import TO_EVERYONE, AudienceTable, conversation_channel, user_channel
from chatws.chat.catching_up import CatchingUp
from chatws.chat.client import Client
from chatws.chat.contracts import ActivitySink, Authenticator, Authorizer
from chatws.chat.effects import Effect
from chatws.chat.gate import Gate
from chatws.chat.history import History
from chatws.chat.hub import Hub
from chatws.chat.journal import Journal
from chatws.chat.outlet import Outlet, SendAll
from chatws.chat.recovery import Recovery
from chatws.chat.session import Session, SessionLimits, State
from chatws.chat.stats import Stats
from chatws.chat.steering import Steering
from chatws.errors import ClientError, CloseCode, ErrorCode, Unavailable
from chatws.ids import Id
from chatws.server.component import Connection
from chatws.server.fanout import FanOut
from chatws.server.frames import text_frame, text_frames

__all__ = ["ChatServer"]

log = Logger()

#: Closing with one of these is worth a line in the log. (A refused `auth` has one already, an internal error too.)
NOTEWORTHY = frozenset(
    {CloseCode.FORBIDDEN, CloseCode.TOO_MANY_ERRORS, CloseCode.TOO_MANY_CONNECTIONS, CloseCode.AUTH_TIMEOUT}
)


class ChatServer:
    """
    :param broker: where events are kept in order; by default in memory.
    :param authenticator: says who is calling; by default everybody's word is taken.
    :param authorizer: says who may read what; by default everybody may read everything.
    :param activity: is told of heartbeats and activities.
    :param history: what a recovery is answered from.
    :param auth_deadline: seconds that a connection may stay without `auth`; 0 is for ever.
    :param max_connections_per_user: 0 is no limit.
    :param presence_grace: seconds between an agent's last tab and `offline`.
    :param presence_lease: seconds after which another node takes our agents offline when we say no more.
    :param node: this process's name among those that share the log; by default a random one.
    :param send_all: how events leave; by default they are sent one by one.
    :param wall_clock: seconds since 1970, for tickets that expire.
    :param schedule: `(seconds, callable) -> handle with cancel()`; by default the reactor's `callLater`.
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
        presence_grace: float = 3.0,
        presence_lease: float = 15.0,
        node: str = "",
        send_all: SendAll | None = None,
        reactor: Any = None,
        wall_clock: Callable[[], float] = time.time,
        schedule: Callable[[float, Callable[[], None]], Any] | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._schedule = schedule or reactor.callLater
        self._wall_clock = wall_clock
        self.audiences = audiences or AudienceTable()
        self.limits = limits or SessionLimits()
        self.auth_deadline = auth_deadline
        self.max_connections_per_user = max_connections_per_user
        self._activity = activity
        self.hub: Hub[Connection] = Hub()
        self.history = History(Bounds(), wall_clock) if history is None else history
        self._connections: set[Connection] = set()
        self.node = node or secrets.token_hex(4)
        self.agents = Agents(self.node, self._announce, presence_grace, presence_lease, reactor)
        self.stats = Stats()
        self._journal = Journal(reactor)
        self._gate = Gate(authenticator, authorizer, self._journal, self._carry_out)
        self._recovery = Recovery(self.history, self.hub, self.stats, self._frames)
        self._catching_up = CatchingUp(self.history, self._carry_out, self._schedule)
        self._steering = Steering(self.node, self.hub, self._gate, self._carry_out, reactor)
        self._outlet = Outlet(
            history=self.history,
            hub=self.hub,
            stats=self.stats,
            agents=self.agents,
            steering=self._steering,
            catching_up=self._catching_up,
            make_frames=self._frames,
            send_all=send_all or FanOut().send_all,
            connections=self._connections,
            clock=reactor,
        )
        self.disconnect = self._steering.disconnect
        self.unsubscribe = self._steering.unsubscribe
        self._perform: dict[type, Callable[[Client, Any], list[Effect] | None]] = {
            effects.Reply: self._reply,
            effects.Authenticate: self._authenticate,
            effects.Enter: self._enter,
            effects.Check: self._check,
            effects.Join: self._join,
            effects.Leave: self._leave,
            effects.Tell: self._tell,
            effects.ListPresence: self._list_presence,
            effects.Record: self._record,
            effects.Close: self._close,
        }
        if broker is None:
            from chatws.brokers.memory import MemoryBroker

            broker = MemoryBroker(Bounds(), wall_clock)
            broker.start(self._outlet)
        self.broker = self.agents.broker = self._steering.broker = broker
        self._catching_up.shared = broker.shared

    async def start(self) -> None:
        """Open the log, and take over what is in it.

        :raises OperatorError: the broker cannot be opened.
        """
        await self.broker.start(self._outlet)
        await self.history.load(self.broker)
        await self.agents.start()

    def hold_presence(self, seconds: float = 0.0) -> None:
        """Before the browsers are sent away, which takes so many seconds: who leaves now is expected back, and stays
        online for the next process and for the other nodes."""
        self.agents.hold(seconds)

    async def stop(self) -> None:
        """Announce nothing more, and close the log."""
        self.hold_presence()
        self._steering.stop()
        await self.broker.stop()

    # The browsers' side: MessageComponent

    def on_open(self, connection: Connection) -> None:
        """A browser has come."""
        client = Client(connection, Session(self.limits, self._reactor.seconds()))
        connection.session = client
        self._connections.add(connection)
        if self.auth_deadline:
            client.deadline = self._schedule(self.auth_deadline, lambda: self._too_late(client))

    def on_message(self, connection: Connection, text: str | bytes) -> None:
        """A browser says something."""
        client: Client = connection.session
        self._carry_out(client, client.session.receive(text, self._reactor.seconds()))

    def on_binary(self, connection: Connection, data: bytes) -> None:
        """A binary message: `unsupported`."""
        problem = ClientError(ErrorCode.UNSUPPORTED, "binary messages are not supported")
        self._send(connection, messages.error(problem))

    def on_close(self, connection: Connection) -> None:
        """A browser has gone."""
        client: Client = connection.session
        self._connections.discard(connection)
        if client.deadline is not None:
            client.deadline.cancel()
            client.deadline = None
        self.hub.remove(connection)
        decided = client.session.gone()
        user_id = client.user_id
        if connection.ended:
            self._journal.ended(connection, user_id)
        if self._catching_up:
            self._catching_up.forget(client)
        if user_id is not None:
            self.agents.local.leave(user_id)
            self._carry_out(client, decided)

    def on_error(self, connection: Connection, exception: Exception) -> None:
        """A fault of ours: no details to the browser, which comes back and recovers."""
        log.failure(
            "Fault on connection {connection_id}",
            Failure(exception),  # type: ignore[no-untyped-call]
            connection_id=connection.resource_id,
        )
        connection.close(int(CloseCode.INTERNAL_ERROR), "internal error")

    # The backends' side: the push listener's target

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """Store and send, in this order. See `Broker.publish`."""
        return self.broker.publish(drafts)

    def event_id(self, event: Event) -> str | None:
        """ "EPOCH:OFFSET", or None for a transient event."""
        return f"{self.broker.epoch}:{event.offset}" if event.offset else None

    def online(self) -> list[Id]:
        """The agents online now, on any node, sorted."""
        return self.agents.online()

    def connections_of(self, user_id: Id) -> list[tuple[str, str]]:
        """The user's connections on this node: the id that each was told, and its address."""
        return [(self._connection_id(one), one.remote_address) for one in self._steering.connections_of(user_id)]

    def _frames(self, events: Sequence[Event]) -> list[bytes]:
        return text_frames(messages.event_payloads(events, self.broker.epoch))

    # The operator's side

    @property
    def connections(self) -> int:
        """Open connections, authenticated or not."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Browsers that have seen more of the log than this node, and wait for it."""
        return len(self._catching_up)

    def send_away(self, code: CloseCode, reason: str, count: int | None = None) -> int:
        """Close up to `count` connections (all by default), and tell how many are left."""
        for number, connection in enumerate(tuple(self._connections)):
            if number == count:
                break
            client: Client = connection.session
            self._connections.discard(connection)
            self._carry_out(client, client.session.close(code, reason))
        return len(self._connections)

    # Carrying out what a session decided

    def _carry_out(self, client: Client, decided: list[Effect]) -> None:
        if not decided:
            return
        waiting = decided[::-1]
        while waiting:
            effect = waiting.pop()
            more = self._perform[type(effect)](client, effect)
            if more:
                waiting.extend(reversed(more))

    def _send(self, connection: Connection, payload: bytes) -> None:
        connection.send_frames(text_frame(payload))

    def _reply(self, client: Client, effect: effects.Reply) -> None:
        code = effect.error
        if code is not None:
            self.stats.errors[code] = self.stats.errors.get(code, 0) + 1
            if code is ErrorCode.RATE_LIMITED:
                self._journal.rate_limited(client.connection, client.user_id)
        self._send(client.connection, effect.payload)

    def _close(self, client: Client, effect: effects.Close) -> None:
        self.stats.closes[effect.code] = self.stats.closes.get(effect.code, 0) + 1
        if effect.code in NOTEWORTHY:
            self._journal.closed(client.connection, client.user_id, int(effect.code), effect.reason)
        self.hub.remove(client.connection)
        client.connection.close(int(effect.code), effect.reason)

    def _authenticate(self, client: Client, effect: effects.Authenticate) -> list[Effect] | None:
        last_event_id = effect.message.last_event_id
        return self._catching_up.ask(client, last_event_id, lambda: self._gate.authenticate(client, effect))

    def _check(self, client: Client, effect: effects.Check) -> list[Effect] | None:
        message = effect.message
        last_event_id = message.last_event_id if isinstance(message, messages.Subscribe) else None
        return self._catching_up.ask(client, last_event_id, lambda: self._gate.check(client, effect))

    def _enter(self, client: Client, effect: effects.Enter) -> list[Effect] | None:
        connection, user_id = client.connection, effect.identity.user_id
        channel = user_channel(user_id)
        if not effect.again:
            limit = self.max_connections_per_user
            if limit and self.hub.count(channel) >= limit:
                client.session.identity = None
                return client.session.close(
                    CloseCode.TOO_MANY_CONNECTIONS, f"more than {limit} connections of one user"
                )
            self.agents.local.enter(user_id)
        self._keep_until(client, effect.identity.expires_at)
        node_connection = self._connection_id(connection)

        def reply(position: str, replayed: int | None, lost: bool) -> bytes:
            return messages.authenticated(user_id, node_connection, position, replayed, lost)

        self._recovery.enter(client, self.broker.epoch, (EVERYONE, channel), effect.last_event_id, reply)
        return None

    def _join(self, client: Client, effect: effects.Join) -> None:
        conversation_id = effect.conversation_id

        def reply(position: str, replayed: int | None, lost: bool) -> bytes:
            return messages.subscribed(conversation_id, position, replayed, lost)

        channels = (conversation_channel(conversation_id),)
        self._recovery.enter(client, self.broker.epoch, channels, effect.last_event_id, reply)

    def _leave(self, client: Client, effect: effects.Leave) -> None:
        self._recovery.leave(client, conversation_channel(effect.conversation_id))
        self._send(client.connection, messages.unsubscribed(effect.conversation_id))

    def _tell(self, client: Client, effect: effects.Tell) -> None:
        data = messages.typing_data(effect.conversation_id, effect.user_id, effect.is_typing)
        audience = Audience((conversation_channel(effect.conversation_id),), effect.user_id)
        self._publish_own([Draft("typing", audience, data, transient=True)])

    def _list_presence(self, client: Client, effect: effects.ListPresence) -> None:
        self._send(client.connection, messages.presence(self.agents.online()))

    def _record(self, client: Client, effect: effects.Record) -> None:
        if self._activity is None:
            return
        message = effect.message
        if isinstance(message, messages.Ping):
            last_activity = None if message.last_activity is None else message.last_activity / 1000.0
            self._activity.heartbeat(effect.user_id, last_activity)
        else:
            self._activity.activity(effect.user_id, message.activity_type)

    # Time and presence

    def _keep_until(self, client: Client, expires_at: float | None) -> None:
        if client.deadline is not None:
            client.deadline.cancel()
            client.deadline = None
        if expires_at is not None:
            left = max(0.0, expires_at - self._wall_clock())
            client.deadline = self._schedule(left, lambda: self._expired(client))

    def _expired(self, client: Client) -> None:
        client.deadline = None
        self._carry_out(client, client.session.close(CloseCode.RECONNECT, "the ticket has expired"))

    def _too_late(self, client: Client) -> None:
        client.deadline = None
        if client.session.state is State.DECIDING:
            return  # it has sent its `auth`; that has a time limit of its own
        self._carry_out(client, client.session.close(CloseCode.AUTH_TIMEOUT, "no auth in time"))

    def _announce(self, news: list[tuple[Id, bool]]) -> None:
        # with `agent_status = "none"` the nodes still tell each other, as who is online can be asked for
        told = news if self.audiences.has_default("agent_status") else ()
        drafts = [
            Draft(
                "agent_status",
                Audience(TO_EVERYONE.channels, user_id),
                messages.status_data(user_id, "online" if is_online else "offline"),
                transient=True,
            )
            for user_id, is_online in told
        ]
        online = [user_id for user_id, is_online in news if is_online]
        offline = [user_id for user_id, is_online in news if not is_online]
        self._publish_own([nodes.to_draft(nodes.Status(online, offline)), *drafts])

    def _publish_own(self, drafts: Sequence[Draft]) -> None:
        """Publish what no backend waits for: a failure is counted and forgotten, these events are passing news."""

        def failed(failure: Failure) -> None:
            self.stats.own_events_lost += len(drafts)
            if not isinstance(failure.value, Unavailable):
                log.failure("Fault while publishing", failure)

        self.broker.publish(drafts).addErrback(failed)

    def _connection_id(self, connection: Connection) -> str:
        return f"{self.node}-{connection.resource_id}"
