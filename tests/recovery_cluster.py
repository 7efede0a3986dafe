"""Several nodes on one log against the model: pages that move between nodes, and nodes that are cut off, lag, lose the
answers to what they have published, and die. A state machine for hypothesis; the engine is a subclass's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatws.brokers.contract import NODES, Bounds, Broker, Draft, Event
from chatws.chat.audience import conversation_channel, user_channel
from chatws.chat.catching_up import PATIENCE
from chatws.chat.chat_server import ChatServer
from chatws.chat.history import History
from chatws.chat.session import SessionLimits
from chatws.chat.steering import SPREAD
from chatws.errors import Unavailable
from tests.fakes import FakeConnection, send_all
from tests.fakes_brokers import SharedBroker, SharedLog
from tests.recovery_model import Log, Page, check, settled

__all__ = ["ClusterRecovery", "Node", "Recorder"]

USERS = [1, 2, 3]
CONVERSATIONS = [10, 11]
NODE_COUNT = 3
LEASE, GRACE = 15.0, 3.0

nodes = st.integers(0, NODE_COUNT - 1)
pages = st.integers(0, len(USERS))


class Recorder:
    """A listener that no fault reaches: it writes the model's log."""

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
            assert event.offset == self.last + 1, "the log has a gap, or its order is another"
            self.last = event.offset
            if event.audience.channels != (NODES,):
                number = json.loads(event.data)["n"]
                written = self.log[self.epoch]
                assert all(one[2] != number for one in written.values()), f"{number} is stored twice"
                written[event.offset] = (event.audience.channels, event.audience.except_user_id, number)


class Node:
    """:ivar pages: those connected to it."""

    def __init__(self, broker: Broker, chat: ChatServer) -> None:
        self.broker = broker
        self.chat = chat
        self.pages: list[Page] = []


class ClusterRecovery(RuleBasedStateMachine):
    """The rules and the model; on an in-process log.

    :ivar bounds: of the log, and of what nodes remember of it.
    """

    bounds = Bounds(events=12, seconds=0, size=0)
    knows_presence = True

    def __init__(self) -> None:
        super().__init__()
        self.number = self.losses = 0
        self.log: Log = {}
        self.recorder = Recorder(self.log)
        self.pages = [Page(user_id) for user_id in (*USERS, 1)]
        #: published without an answer: to be published again until there is one
        self.unanswered: list[tuple[int, Draft]] = []
        self.acknowledged: dict[str, set[int]] = {}
        self.nodes: list[Node] = []
        self.open_engine()
        self.nodes += [self.open_node(number) for number in range(NODE_COUNT)]

    # The engine

    def open_engine(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.shared = SharedLog(self.clock.seconds, self.bounds)
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

    def mend(self, node: Node) -> None:
        node.broker.heal()  # type: ignore[attr-defined]

    def lose_data(self) -> None:
        """Called when all is caught up."""
        self.shared.start_anew()

    def wait(self, deferred: Deferred[Any]) -> Any:
        return settled(deferred)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds * 2))

    def all_caught_up(self) -> None:
        """Return when the recorder has been told of all that there is, and so have all nodes that are not cut off."""

    def close_engine(self) -> None:
        settled(self.recording.stop())
        assert self.clock.getDelayedCalls() == []

    # Nodes

    def open_node(self, number: int) -> Node:
        broker = self.open_broker()
        chat = ChatServer(
            broker,
            node=f"node-{number}-{self.number}",
            history=History(self.bounds, self.clock.seconds),
            limits=SessionLimits(rate=0),
            presence_grace=GRACE,
            presence_lease=LEASE,
            auth_deadline=0.0,
            reactor=self.clock,
            wall_clock=self.clock.seconds,
            send_all=send_all,
        )
        self.wait(Deferred.fromCoroutine(chat.start()))
        return Node(broker, chat)

    def close_node(self, node: Node) -> None:
        for connection in tuple(node.chat._connections):
            node.chat.on_close(connection)
        self.wait(Deferred.fromCoroutine(node.chat.stop()))

    # What happens

    @initialize()
    def everybody_comes(self) -> None:
        for number, page in enumerate(self.pages):
            self.connect(page, number % NODE_COUNT)

    @rule(
        node=nodes,
        to=st.sampled_from(
            ["*", *map(user_channel, USERS), *map(conversation_channel, CONVERSATIONS), "user:1 user:2"]
        ),
        left_out=st.sampled_from([None, None, *USERS]),
        count=st.integers(1, 4),
    )
    def publish(self, node: int, to: str, left_out: int | None, count: int) -> None:
        drafts = []
        for _ in range(count):
            self.number += 1
            draft = self.nodes[node].chat.audiences.draft(
                "note", b'{"n":%d}' % self.number, to=tuple(to.split()), except_user_id=left_out, key=f"k{self.number}"
            )
            drafts.append((self.number, draft))
        self.push(node, drafts)

    @rule(node=nodes)
    def publish_again(self, node: int) -> None:
        if not self.unanswered:
            return
        again, self.unanswered = self.unanswered, []
        self.push(node, again)

    @rule(page=pages, conversation_id=st.sampled_from(CONVERSATIONS))
    def subscribe(self, page: int, conversation_id: int) -> None:
        one = self.pages[page]
        one.wanted.add(conversation_channel(conversation_id))
        if one.connection is None:
            one.library.channels.setdefault(conversation_id, type(one.library.channels[None])())
        else:
            for message in one.library.subscribe(conversation_id):
                self.say(one, message)

    @rule(page=pages, conversation_id=st.sampled_from(CONVERSATIONS))
    def unsubscribe(self, page: int, conversation_id: int) -> None:
        one = self.pages[page]
        if conversation_id not in one.library.channels:
            return
        self.read(one, None)
        check(one, self.log, to_the_end=False)
        message = one.library.unsubscribe(conversation_id)
        one.since.pop(conversation_id, None)
        if one.connection is not None:
            self.say(one, message)

    @rule(page=pages, count=st.integers(1, 6))
    def read_some(self, page: int, count: int) -> None:
        self.read(self.pages[page], count)

    @rule(page=pages, handled=st.integers(0, 8))
    def lose(self, page: int, handled: int) -> None:
        """The connection ends when only `handled` of the messages on their way have come."""
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
        self.mend(self.nodes[node])

    @rule(node=nodes, handled=st.integers(0, 5), with_a_word=st.booleans())
    def restart(self, node: int, handled: int, with_a_word: bool) -> None:
        """As by SIGTERM, or by SIGKILL: then nobody is told anything."""
        one = self.nodes[node]
        if with_a_word:
            one.chat.hold_presence(1.0)
        else:
            self.cut(one)
        for page in tuple(one.pages):
            self.lose(self.pages.index(page), handled)
        self.close_node(one)
        self.nodes[node] = self.open_node(node)

    @precondition(lambda self: self.losses < 2)
    @rule()
    def data_are_lost(self) -> None:
        self.losses += 1
        self.all_caught_up()
        self.lose_data()

    @rule(seconds=st.sampled_from([0.5, PATIENCE, LEASE + GRACE]))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)

    def teardown(self) -> None:
        for node in self.nodes:
            self.mend(node)
        self.all_caught_up()
        self.publish_the_rest()
        self.all_caught_up()
        # whoever is being parted with is; then everybody comes back, once
        self.pass_time(max(PATIENCE, SPREAD) + 1)
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

    # How

    def push(self, node: int, drafts: list[tuple[int, Draft]]) -> None:
        one = self.nodes[node]
        try:
            events = self.wait(one.chat.publish([draft for _, draft in drafts]))
        except Unavailable:
            self.unanswered += drafts
            return
        assert len(events) == len(drafts)
        self.acknowledged.setdefault(one.broker.epoch, set()).update(number for number, _ in drafts)

    def publish_the_rest(self) -> None:
        """When no node is cut off any more."""
        self.publish_again(0)
        assert self.unanswered == []

    def connect(self, page: Page, node: int) -> None:
        """A page without a connection, or with one that the server has closed, comes to this node."""
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
        for answer in page.receive(count):
            # `recovered:false` is said only where the log has been trimmed or begun anew since
            before, now = answer["since"], answer["data"]["last_event_id"].rpartition(":")
            if before is not None and before[0] == now[0]:
                assert max(self.log[now[0]], default=0) > self.bounds.events, answer

    def check_at_the_end(self, page: Page) -> None:
        assert page.connection is not None
        assert page.connection.is_open
        assert all(channel.live for channel in page.library.channels.values())
        assert set(page.since) == set(page.library.channels)
        assert {epoch for epoch, _ in page.since.values()} == {self.recorder.epoch}
        check(page, self.log)
        for epoch, numbers in self.acknowledged.items():
            assert numbers <= {number for _, _, number in self.log[epoch].values()}, "acknowledged and not stored"
