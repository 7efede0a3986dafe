"""Broadcasts in steps against a model that knows nothing of steps.

Between any two steps, backends publish, clients open, subscribe, recover, unsubscribe and close, and users are banned.
Each connection must get what it would get if every event were sent at once: the same events in the same order, each
once. The chat, the connections and their sockets are real. Chunks and limits are small.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatws.brokers.interface import AGENTS, Event
from chatws.chat import hub
from chatws.chat.server import ChatServer
from chatws.chat.session import SessionLimits
from chatws.errors import CloseCode
from chatws.server import broadcasts, fanout, recipients
from tests.server_wire import ServerCase, Wire, head, split_frames

CONVERSATIONS = (1, 2, 3)
USERS = (5, 6, 7, 8)
PAD = "x" * 2000
#: Connections that are there at the start: user, conversations, and kind.
CROWD = [
    (5, (1, 2, 3), "fast"),
    (5, (1,), "slow"),
    (6, (1, 2), "fast"),
    (6, (1, 3), "deflate"),
    (7, (1, 2, 3), "fast"),
    (7, (2,), "slow"),
    (8, (1, 3), "deflate"),
]


@dataclass
class Page:
    """A client of the model.

    :ivar expected: the numbers of the events that it must get, in order.
    :ivar got: those that it has got.
    :ivar ended: how it ended: None, "gone", "closed" after all events, or "dropped" after some of them.
    :ivar last: the number of events after which nothing may follow.
    """

    user: int
    wire: Wire
    connection: Any
    conversations: set[int]
    expected: list[int] = field(default_factory=list)
    got: list[int] = field(default_factory=list)
    ended: str | None = None
    last: int | None = None
    close_code: int | None = None
    received: bytes = b""

    def read(self) -> None:
        """Read what has been written, without serving the server's sockets."""
        while True:
            try:
                data = self.wire.socket.recv(1 << 20)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            self.received += data
        found, self.received = split_frames(self.received)
        for first, payload in found:
            assert self.close_code is None, "nothing follows the close frame"
            if first == 0x88:
                self.close_code = int.from_bytes(payload[:2], "big")
                continue
            if first == 0xC1:
                payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
            message = json.loads(payload)
            if "n" in message.get("data", {}):
                self.got.append(message["data"]["n"])


class World:
    """A server, its clients, and a backend."""

    def __init__(self) -> None:
        self.case = ServerCase()
        self.case.setUp()
        self.reactor = self.case.reactor
        self.job: Callable[[], bool] | None = None
        self.fan_out = fanout.FanOut(submit=self.submit)
        self.chat = ChatServer(
            reactor=self.reactor,
            send_all=self.fan_out.send_all,
            when_ready=self.fan_out.when_ready,
            auth_deadline=0,
            limits=SessionLimits(message_rate=0, subscription_rate=0),
        )
        self.case.serve(self.chat, compression=True, broadcasts=self.fan_out.broadcasts, ping_interval=0)
        self.pages: list[Page] = []
        # with their numbers, conversations and excluded users
        self.events: list[tuple[Event, int, int | None, int | None]] = []
        for page in CROWD:
            self.open(*page)

    def submit(self, job: Callable[[], bool]) -> None:
        assert self.job is None
        self.job = job

    def step(self) -> None:
        if self.job is not None and not self.job():
            self.job = None

    # clients

    def open(self, user: int, conversations: tuple[int, ...], kind: str) -> None:
        wire = self.case.wire(send_buffer=4096 if kind == "slow" else 0)
        known = set(self.case.ws.connections)
        fields = {"Sec_WebSocket_Extensions": "permessage-deflate"} if kind == "deflate" else {}
        wire.send(head(**fields))
        assert wire.response()[0] == 101
        (connection,) = self.case.ws.connections - known
        page = Page(user, wire, connection, set())
        self.pages.append(page)
        self.say(page, type="auth", user_id=user)
        for conversation in conversations:
            self.subscribe(page, conversation)

    def say(self, page: Page, **message: Any) -> None:
        self.chat.on_message(page.connection, json.dumps(message))

    def subscribe(self, page: Page, conversation: int) -> None:
        self.say(page, type="subscribe", conversation_id=conversation)
        page.conversations.add(conversation)

    def unsubscribe(self, page: Page, conversation: int) -> None:
        self.say(page, type="unsubscribe", conversation_id=conversation)
        page.conversations.discard(conversation)

    def revoke(self, page: Page, conversation: int) -> None:
        self.chat.unsubscribe(page.user, conversation)
        for other in self.there():
            if other.user == page.user:
                other.conversations.discard(conversation)

    def recover(self, page: Page, conversation: int) -> None:
        """Subscribe again, as if the newer half of the events were missed."""
        newer = self.events[len(self.events) // 2 :]
        if newer:
            last = f"{self.chat.broker.epoch}:{newer[0][0].offset}"
            self.say(page, type="subscribe", conversation_id=conversation, last_event_id=last)
            page.conversations.add(conversation)
            page.expected += [
                number for event, number, place, without in newer[1:] if place == conversation and without != page.user
            ]

    def leave(self, page: Page, conversation: int) -> None:
        page.wire.socket.close()
        self.reactor.turn()
        page.ended = "gone"

    def ban(self, page: Page, conversation: int) -> None:
        for other in self.there():
            if other.user == page.user:
                other.read()
                other.ended = "dropped"
                if not other.connection.has_backlog:
                    other.last = len(other.got)
        self.chat.disconnect(page.user, ban=True)

    def restart(self, page: Page, conversation: int) -> None:
        """Close one connection as in a drain: it gets everything before."""
        self.chat.disconnect_all(CloseCode.RESTARTING, "restart", 1)
        for other in self.there():
            if not other.connection.is_open:
                other.ended = "closed"

    def there(self) -> list[Page]:
        return [page for page in self.pages if page.ended is None]

    # the backend

    def publish(self, lines: list[tuple[int | None, int | None]]) -> None:
        """Publish a batch of events for a conversation, or for all agents, which may exclude a user."""
        new_events, audiences, deliveries = [], [], 0
        for conversation, without in lines:
            number = len(self.events) + len(new_events)
            data = json.dumps({"conversation_id": conversation or 0, "n": number, "pad": PAD}).encode()
            to = None if conversation else (AGENTS,)
            new_events.append(self.chat.audiences.new_event("new_message", data, to, without))
            audience = [
                page
                for page in self.there()
                if page.user != without and (conversation is None or conversation in page.conversations)
            ]
            audiences.append(audience)
            deliveries += len(audience)
            for page in audience:
                page.expected.append(number)
        events = self.case.successResultOf(self.chat.publish(new_events))
        assert [event.delivered for event in events] == [*map(len, audiences)]
        first = len(self.events)
        for index, (event, line) in enumerate(zip(events, lines, strict=True)):
            self.events.append((event, first + index, *line))
        if deliveries <= fanout.MAX_SENDS_AT_ONCE:
            for page in {id(page): page for audience in audiences for page in audience}.values():
                page.read()
                assert page.connection.has_backlog or page.got == page.expected, "small events do not wait"

    # the end

    def check(self) -> None:
        while self.job is not None:
            self.step()
        assert self.fan_out.broadcasts is not None
        assert (self.fan_out.broadcasts.active, self.fan_out.broadcasts.unsent) == ({}, 0)
        for page in self.pages:
            if page.ended == "gone":
                continue
            for _ in range(2000):
                before = len(page.got)
                page.read()
                self.reactor.turn()
                if page.close_code or (page.got == page.expected and page.ended is None and len(page.got) == before):
                    break
            if page.ended == "dropped":
                assert page.got == page.expected[: len(page.got)]
                assert page.last is None or len(page.got) == page.last
                assert page.close_code == CloseCode.FORBIDDEN
            else:
                assert page.got == page.expected
                assert page.close_code == (CloseCode.RESTARTING if page.ended else None)

    def end(self) -> None:
        for wire in self.case.wires:
            wire.close()
        self.reactor.turn()
        self.chat.freeze_presence()
        self.reactor.advance(30)
        self.case.tearDown()


conversations = st.sampled_from(CONVERSATIONS)
lines = st.lists(st.tuples(st.none() | conversations, st.none() | st.sampled_from(USERS)), min_size=1, max_size=4)
page_actions = st.sampled_from(["subscribe", "unsubscribe", "revoke", "recover", "leave", "ban", "restart"])
actions = st.one_of(
    st.just(("step",)),
    st.just(("step",)),
    st.tuples(st.just("publish"), lines),
    st.tuples(st.just("publish"), lines),
    st.tuples(st.just("open"), st.sampled_from(USERS), st.sampled_from(["fast", "slow", "deflate"])),
    st.tuples(page_actions, st.integers(0, 20), conversations),
    st.tuples(page_actions, st.integers(0, 20), conversations),
)

BROADCAST: Any = ("publish", [(None, None)])
#: Each action while a broadcast is in its first, second or last chunk.
INTERRUPTED = [
    [BROADCAST, *[("step",)] * steps, (action, page, 1), BROADCAST, ("publish", [(1, 5)])]
    for steps in (0, 1, 3)
    for page, action in enumerate(["subscribe", "unsubscribe", "revoke", "recover", "leave", "ban", "restart"])
]


def play(script: list[Any]) -> None:
    world = World()
    try:
        for action, *arguments in script:
            match action:
                case "step":
                    world.step()
                case "publish":
                    world.publish(*arguments)
                case "open":
                    user, kind = arguments
                    world.open(user, CONVERSATIONS[:2], kind)
                case _ if world.there():
                    index, conversation = arguments
                    pages = world.there()
                    getattr(world, action)(pages[index % len(pages)], conversation)
        world.check()
    finally:
        world.end()


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "MAX_SENDS_AT_ONCE", 3)
        patch.setattr(fanout, "MIN_BROADCAST", 2)
        patch.setattr(hub, "CHUNK", 2)
        patch.setattr(recipients, "CHUNK", 2)
        patch.setattr(broadcasts, "CHUNK", 2)
        patch.setattr(broadcasts, "STEP_BYTES", 10_000)
        patch.setattr(broadcasts, "MAX_BROADCASTS", 4)
        yield


@pytest.mark.parametrize("script", INTERRUPTED, ids=lambda script: f"{script[-3][0]}-{len(script) - 4}")
def test_broadcast_goes_on_around_an_action(script: list[Any]) -> None:
    play(script)


@settings(max_examples=20)
@example([BROADCAST, ("publish", [(1, None)]), BROADCAST, ("publish", [(3, None)])])
@given(st.lists(actions, min_size=3, max_size=25))
def test_broadcasts_in_steps_deliver_what_the_model_expects(script: list[Any]) -> None:
    play(script)


@pytest.mark.long
@settings(max_examples=1500)
@given(st.lists(actions, min_size=3, max_size=60))
def test_many_broadcasts_in_steps_deliver_what_the_model_expects(script: list[Any]) -> None:
    play(script)
