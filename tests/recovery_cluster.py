"""Recovery on several nodes against the model: a state machine for hypothesis, on an in-process broker.

Pages move between nodes. Nodes are cut off, lag, lose the responses to their events, and die. Subclasses use
real engines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatws.brokers.interface import NODES, Broker, Event, NewEvent, Retention
from chatws.chat.admin import RESYNC_SPREAD
from chatws.chat.audience import conversation_channel, user_channel
from chatws.chat.history import History
from chatws.chat.presence.service import PresenceSettings
from chatws.chat.resume_wait import RESUME_WAIT_TIMEOUT
from chatws.chat.server import ChatServer
from chatws.chat.session import SessionLimits
from chatws.errors import Unavailable
from tests.fakes import FakeConnection, send_all
from tests.fakes_brokers import SharedBroker, SharedHistory
from tests.recovery_model import Log, Page, check, settled

__all__ = ["ClusterRecovery", "Node", "Recorder"]

USERS = [1, 2, 3]
CONVERSATIONS = [10, 11]
NODE_COUNT = 3
LEASE, GRACE = 15.0, 3.0

nodes = st.integers(0, NODE_COUNT - 1)
pages = st.integers(0, len(USERS))


class Recorder:
    """An event handler without faults, which records the history for the model."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.epoch = ""
        self.last = 0

    def begin(self, epoch: str) -> None:
        self.epoch, self.last = epoch, 0
        self.log.setdefault(epoch, {})

    reset = begin

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if not event.offset:
                continue
            assert event.offset == self.last + 1, "the history has a gap, or another order"
            self.last = event.offset
            if event.audience.channels != (NODES,):
                number = json.loads(event.data)["n"]
                recorded = self.log[self.epoch]
                assert all(stored != number for _, _, stored in recorded.values()), f"{number} is stored twice"
                recorded[event.offset] = (event.audience.channels, event.audience.except_user_id, number)


class Node:
    """A node.

    :ivar pages: the pages connected to it.
    """

    def __init__(self, broker: Broker, chat: ChatServer) -> None:
        self.broker = broker
        self.chat = chat
        self.pages: list[Page] = []


class ClusterRecovery(RuleBasedStateMachine):
    """The rules and the model.

    :ivar bounds: the retention of the broker and of the nodes.
    """

    bounds = Retention(events=12, seconds=0, size=0)
    knows_presence = True

    def __init__(self) -> None:
        super().__init__()
        self.number = self.losses = 0
        self.log: Log = {}
        self.recorder = Recorder(self.log)
        self.pages = [Page(user_id) for user_id in (*USERS, 1)]
        #: events without a response, to be published again
        self.unanswered: list[tuple[int, NewEvent]] = []
        self.acknowledged: dict[str, set[int]] = {}
        self.nodes: list[Node] = []
        self.open_engine()
        self.nodes += [self.open_node(number) for number in range(NODE_COUNT)]

    # The engine

    def open_engine(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.shared = SharedHistory(self.clock.seconds, self.bounds)
        self.recording = SharedBroker(self.shared)
        settled(self.recording.start(self.recorder))
        self.recorder.begin(self.shared.epoch)

    def open_broker(self) -> Broker:
        return SharedBroker(self.shared)

    def cut(self, node: Node) -> None:
        node.broker.cut = True  # type: ignore[attr-defined]

    def lag(self, node: Node) -> None:
        node.broker.behind = True  # type: ignore[attr-defined]

    def lose_answers(self, node: Node) -> None:
        node.broker.lose_answers = True  # type: ignore[attr-defined]

    def restore(self, node: Node) -> None:
        node.broker.heal()  # type: ignore[attr-defined]

    def lose_data(self) -> None:
        """Lose the stored events. Called when all nodes have caught up."""
        self.shared.start_anew()

    def wait(self, deferred: Deferred[Any]) -> Any:
        return settled(deferred)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds * 2))

    def all_caught_up(self) -> None:
        """Return when the recorder, and all nodes that are not cut off, have read the whole history."""

    def close_engine(self) -> None:
        settled(self.recording.stop())
        assert self.clock.getDelayedCalls() == []

    # Nodes

    def open_node(self, number: int) -> Node:
        broker = self.open_broker()
        chat = ChatServer(
            broker,
            node=f"node-{number}-{self.number}",
            history=History(self.bounds),
            limits=SessionLimits(message_rate=0, subscription_rate=0),
            presence=PresenceSettings(GRACE, LEASE),
            auth_deadline=0.0,
            reactor=self.clock,
            wall_clock=self.clock.seconds,
            send_all=send_all,
        )
        self.wait(Deferred.fromCoroutine(chat.start()))
        return Node(broker, chat)

    def close_node(self, node: Node) -> None:
        for connection in tuple(node.chat.connections):
            node.chat.on_close(connection)
        self.wait(Deferred.fromCoroutine(node.chat.stop()))

    # Steps

    @initialize()
    def connect_all_pages(self) -> None:
        for number, page in enumerate(self.pages):
            self.connect(page, number % NODE_COUNT)

    @rule(
        node=nodes,
        to=st.sampled_from(
            ["*", *map(user_channel, USERS), *map(conversation_channel, CONVERSATIONS), "user:1 user:2"]
        ),
        excluded=st.sampled_from([None, None, *USERS]),
        count=st.integers(1, 4),
    )
    def publish(self, node: int, to: str, excluded: int | None, count: int) -> None:
        new_events = []
        for _ in range(count):
            self.number += 1
            new_event = self.nodes[node].chat.audiences.new_event(
                "note", b'{"n":%d}' % self.number, to=tuple(to.split()), except_user_id=excluded, key=f"k{self.number}"
            )
            new_events.append((self.number, new_event))
        self.push(node, new_events)

    @rule(node=nodes)
    def publish_again(self, node: int) -> None:
        if not self.unanswered:
            return
        pending, self.unanswered = self.unanswered, []
        self.push(node, pending)

    @rule(page=pages, conversation_id=st.sampled_from(CONVERSATIONS))
    def subscribe(self, page: int, conversation_id: int) -> None:
        selected = self.pages[page]
        selected.wanted.add(conversation_channel(conversation_id))
        if selected.connection is None:
            selected.library.channels.setdefault(conversation_id, type(selected.library.channels[None])())
        else:
            for message in selected.library.subscribe(conversation_id):
                self.say(selected, message)

    @rule(page=pages, conversation_id=st.sampled_from(CONVERSATIONS))
    def unsubscribe(self, page: int, conversation_id: int) -> None:
        selected = self.pages[page]
        if conversation_id not in selected.library.channels:
            return
        self.read(selected, None)
        check(selected, self.log, to_the_end=False)
        message = selected.library.unsubscribe(conversation_id)
        selected.since.pop(conversation_id, None)
        if selected.connection is not None:
            self.say(selected, message)

    @rule(page=pages, count=st.integers(1, 6))
    def read_some(self, page: int, count: int) -> None:
        self.read(self.pages[page], count)

    @rule(page=pages, handled=st.integers(0, 8))
    def lose(self, page: int, handled: int) -> None:
        """End the connection after `handled` of the pending messages."""
        self.read(self.pages[page], handled)
        self.disconnect(self.pages[page])

    @rule(page=pages, node=nodes)
    def come(self, page: int, node: int) -> None:
        self.connect(self.pages[page], node)

    @rule(page=pages, node=nodes, handled=st.integers(0, 8))
    def move(self, page: int, node: int, handled: int) -> None:
        self.lose(page, handled)
        self.connect(self.pages[page], node)

    @rule(node=nodes)
    def cut_off(self, node: int) -> None:
        self.cut(self.nodes[node])

    @rule(node=nodes)
    def fall_behind(self, node: int) -> None:
        self.lag(self.nodes[node])

    @rule(node=nodes)
    def hear_no_answers(self, node: int) -> None:
        self.lose_answers(self.nodes[node])

    @rule(node=nodes)
    def heal(self, node: int) -> None:
        self.restore(self.nodes[node])

    @rule(node=nodes, handled=st.integers(0, 5), gracefully=st.booleans())
    def restart(self, node: int, handled: int, gracefully: bool) -> None:
        """Restart a node after SIGTERM (`gracefully`), or after SIGKILL."""
        target = self.nodes[node]
        if gracefully:
            target.chat.freeze_presence(1.0)
        else:
            self.cut(target)
        for page in tuple(target.pages):
            self.lose(self.pages.index(page), handled)
        self.close_node(target)
        self.nodes[node] = self.open_node(node)

    @precondition(lambda self: self.losses < 2)
    @rule()
    def data_are_lost(self) -> None:
        self.losses += 1
        self.all_caught_up()
        self.lose_data()

    @rule(seconds=st.sampled_from([0.5, RESUME_WAIT_TIMEOUT, LEASE + GRACE]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    def teardown(self) -> None:
        for node in self.nodes:
            self.restore(node)
        self.all_caught_up()
        self.publish_the_rest()
        self.all_caught_up()
        # pending forced disconnects end, and then every page connects once
        self.pass_time(max(RESUME_WAIT_TIMEOUT, RESYNC_SPREAD) + 1)
        for number, page in enumerate(self.pages):
            self.read(page, None)
            self.connect(page, number % NODE_COUNT)
        self.all_caught_up()
        for page in self.pages:
            self.read(page, None)
            self.check_at_the_end(page)
        if self.knows_presence:
            self.pass_time(2 * (LEASE + GRACE))
            for node in self.nodes:
                assert node.chat.online() == USERS
        for node in self.nodes:
            self.close_node(node)
        self.close_engine()

    # Helpers

    def push(self, node: int, new_events: list[tuple[int, NewEvent]]) -> None:
        target = self.nodes[node]
        try:
            events = self.wait(target.chat.publish([new_event for _, new_event in new_events]))
        except Unavailable:
            self.unanswered += new_events
            return
        assert len(events) == len(new_events)
        self.acknowledged.setdefault(target.broker.epoch, set()).update(number for number, _ in new_events)

    def publish_the_rest(self) -> None:
        """Publish the remaining events when no node is cut off."""
        self.publish_again(0)
        assert self.unanswered == []

    def connect(self, page: Page, node: int) -> None:
        """Connect a page to a node, unless its connection is open."""
        if page.connection is not None:
            if page.connection.is_open:
                return
            self.read(page, None)
            self.disconnect(page)
        page.connection = FakeConnection()
        self.nodes[node].pages.append(page)
        self.nodes[node].chat.on_open(page.connection)
        for message in page.library.open():
            self.say(page, message)

    def disconnect(self, page: Page) -> None:
        if page.connection is not None:
            node = self.node_of(page)
            node.pages.remove(page)
            node.chat.on_close(page.connection)
            page.connection = None
            page.library.lost()

    def node_of(self, page: Page) -> Node:
        return next(node for node in self.nodes if page in node.pages)

    def say(self, page: Page, message: dict[str, Any]) -> None:
        assert page.connection is not None
        if page.connection.is_open:
            self.node_of(page).chat.on_message(page.connection, json.dumps(message))

    def read(self, page: Page, count: int | None) -> None:
        for reply in page.receive(count):
            # `recovered:false` is said only if the history was trimmed or reset since
            before, now = reply["since"], reply["data"]["last_event_id"].rpartition(":")
            if before is not None and before[0] == now[0]:
                assert max(self.log[now[0]], default=0) > self.bounds.events, reply

    def check_at_the_end(self, page: Page) -> None:
        assert page.connection is not None
        assert page.connection.is_open
        assert all(channel.live for channel in page.library.channels.values())
        assert set(page.since) == set(page.library.channels)
        assert {epoch for epoch, _ in page.since.values()} == {self.recorder.epoch}
        check(page, self.log)
        for epoch, numbers in self.acknowledged.items():
            assert numbers <= {number for _, _, number in self.log[epoch].values()}, "acknowledged and not stored"
