"""Recovery against a model: hundreds of interleavings of publishing, subscribing, losing connections in the middle of
what they were sent, trimming and restarts. What every handler must have seen is said by the model alone."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatws.brokers import open_broker
from chatws.brokers.contract import Bounds
from chatws.chat.audience import conversation_channel, user_channel
from chatws.chat.chat_server import ChatServer
from chatws.chat.history import History
from chatws.chat.session import SessionLimits
from tests.fakes import FakeConnection, send_all
from tests.recovery_model import Log, Page, check, settled

USERS = [1, 2, 3]
CONVERSATIONS = [10, 11, 12]
#: So few that trimming is common.
BOUNDS = Bounds(events=12, seconds=0, size=0)


class Recovery(RuleBasedStateMachine):
    url = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.number = 0
        self.log: Log = {}
        self.pages = [Page(user_id) for user_id in (*USERS, 1)]
        self.clock = Clock()
        self.start_server()

    def start_server(self) -> None:
        url = self.url.replace("DIRECTORY", self.directory.name)
        broker = open_broker(url, BOUNDS, durable=False, reactor=self.clock)
        self.chat = ChatServer(
            broker,
            history=History(BOUNDS, self.clock.seconds),
            limits=SessionLimits(rate=0),
            presence_grace=0.0,
            auth_deadline=0.0,
            reactor=self.clock,
            send_all=send_all,
        )
        settled(Deferred.fromCoroutine(self.chat.start()))
        self.log.setdefault(broker.epoch, {})

    def teardown(self) -> None:
        for page in self.pages:
            self.reconnect(page)
        for page in self.pages:
            self.read(page, None)
            check(page, self.log)
        settled(Deferred.fromCoroutine(self.chat.stop()))
        self.directory.cleanup()

    # What happens

    @initialize()
    def everybody_comes(self) -> None:
        for page in self.pages:
            self.reconnect(page)

    @rule(
        to=st.sampled_from(
            ["*", *map(user_channel, USERS), *map(conversation_channel, CONVERSATIONS), "user:1 user:2"]
        ),
        left_out=st.sampled_from([None, None, *USERS]),
        count=st.integers(1, 4),
    )
    def publish(self, to: str, left_out: int | None, count: int) -> None:
        channels = tuple(to.split())
        drafts = []
        for _ in range(count):
            self.number += 1
            drafts.append(
                self.chat.audiences.draft("note", b'{"n":%d}' % self.number, to=channels, except_user_id=left_out)
            )
        for event in settled(self.chat.publish(drafts)):
            number = json.loads(event.data)["n"]
            self.log[self.chat.broker.epoch][event.offset] = (channels, left_out, number)

    @rule(page=st.integers(0, 3), conversation_id=st.sampled_from(CONVERSATIONS))
    def subscribe(self, page: int, conversation_id: int) -> None:
        one = self.pages[page]
        one.wanted.add(conversation_channel(conversation_id))
        if one.connection is None:
            one.library.channels.setdefault(conversation_id, type(one.library.channels[None])())
        else:
            for message in one.library.subscribe(conversation_id):
                self.say(one, message)

    @rule(page=st.integers(0, 3), conversation_id=st.sampled_from(CONVERSATIONS))
    def unsubscribe(self, page: int, conversation_id: int) -> None:
        one = self.pages[page]
        if conversation_id not in one.library.channels:
            return
        # a page handles what has come before it lets go; the model checks it up to there
        if one.connection is not None:
            self.read(one, None)
            check(one, self.log)
        message = one.library.unsubscribe(conversation_id)
        one.since.pop(conversation_id, None)
        if one.connection is not None:
            self.say(one, message)

    @rule(page=st.integers(0, 3), count=st.integers(1, 6))
    def read_some(self, page: int, count: int) -> None:
        self.read(self.pages[page], count)

    @rule(page=st.integers(0, 3), handled=st.integers(0, 8))
    def lose(self, page: int, handled: int) -> None:
        """The connection ends when only `handled` of the messages on their way have come."""
        one = self.pages[page]
        if one.connection is not None:
            self.read(one, handled)
            self.chat.on_close(one.connection)
            one.connection = None
            one.library.lost()
            self.clock.advance(0)

    @rule(page=st.integers(0, 3))
    def reconnect_one(self, page: int) -> None:
        self.reconnect(self.pages[page])

    @precondition(lambda self: len(self.log) < 4)
    @rule(handled=st.integers(0, 5))
    def restart(self, handled: int) -> None:
        for page in range(len(self.pages)):
            self.lose(page, handled)
        settled(Deferred.fromCoroutine(self.chat.stop()))
        self.start_server()

    # How

    def reconnect(self, page: Page) -> None:
        if page.connection is not None:
            return
        page.connection = FakeConnection()
        self.chat.on_open(page.connection)
        for message in page.library.open():
            self.say(page, message)
        self.clock.advance(0)

    def say(self, page: Page, message: dict[str, Any]) -> None:
        assert page.connection is not None
        self.chat.on_message(page.connection, json.dumps(message))

    def read(self, page: Page, count: int | None) -> None:
        for answer in page.receive(count):
            # `recovered:false` is said only where the log has been trimmed or begun anew since
            epoch = self.chat.broker.epoch
            if answer["since"][0] == epoch:
                assert len(self.log[epoch]) > BOUNDS.events


class SqliteRecovery(Recovery):
    url = "sqlite:///DIRECTORY/log.db"


@pytest.mark.parametrize(("machine", "examples"), [(Recovery, 150), (SqliteRecovery, 60)])
def test_every_handler_sees_what_the_model_says(machine: type[Recovery], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            # a failure is printed as it was found: making it small would take minutes
            phases=[Phase.generate],
        ),
    )


def test_the_model_notices_a_lost_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: with a history that forgets one event in a replay, it does."""

    def forgetful(self: History, *args: Any, **options: Any) -> Any:
        found = whole(self, *args, **options)
        return found[:-1] if found else found

    whole = History.since
    monkeypatch.setattr(History, "since", forgetful)
    machine = Recovery()
    machine.everybody_comes()
    machine.subscribe(page=0, conversation_id=10)
    machine.lose(page=0, handled=100)
    machine.publish(to=conversation_channel(10), left_out=None, count=2)
    with pytest.raises(AssertionError, match=r"^\(10, "):
        machine.teardown()
