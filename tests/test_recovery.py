"""Recovery against a model that determines which events every handler must get.

Hypothesis interleaves publishing, subscribing, trimming, restarts, and connections that are lost during a replay.
"""

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

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Retention
from chatws.chat.audience import conversation_channel, user_channel
from chatws.chat.history import History
from chatws.chat.presence.service import PresenceSettings
from chatws.chat.server import ChatServer
from chatws.chat.session import SessionLimits
from tests.fakes import FakeConnection, send_all
from tests.recovery_model import Log, Page, check, settled

USERS = [1, 2, 3]
CONVERSATIONS = [10, 11, 12]
#: Small, so that trimming is frequent.
BOUNDS = Retention(events=12, seconds=0, size=0)


class RecoveryMachine(RuleBasedStateMachine):
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
        broker = open_broker(url, BOUNDS, sync_commits=False, reactor=self.clock, now=self.clock.seconds)
        self.chat = ChatServer(
            broker,
            history=History(BOUNDS),
            limits=SessionLimits(message_rate=0, subscription_rate=0),
            presence=PresenceSettings(grace=0.0),
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

    # Steps

    @initialize()
    def connect_all_pages(self) -> None:
        for page in self.pages:
            self.reconnect(page)

    @rule(
        to=st.sampled_from(
            ["*", *map(user_channel, USERS), *map(conversation_channel, CONVERSATIONS), "user:1 user:2"]
        ),
        excluded=st.sampled_from([None, None, *USERS]),
        count=st.integers(1, 4),
    )
    def publish(self, to: str, excluded: int | None, count: int) -> None:
        channels = tuple(to.split())
        new_events = []
        for _ in range(count):
            self.number += 1
            new_events.append(
                self.chat.audiences.new_event("note", b'{"n":%d}' % self.number, to=channels, except_user_id=excluded)
            )
        for event in settled(self.chat.publish(new_events)):
            number = json.loads(event.data)["n"]
            self.log[self.chat.broker.epoch][event.offset] = (channels, excluded, number)

    @rule(page=st.integers(0, 3), conversation_id=st.sampled_from(CONVERSATIONS))
    def subscribe(self, page: int, conversation_id: int) -> None:
        selected = self.pages[page]
        selected.wanted.add(conversation_channel(conversation_id))
        if selected.connection is None:
            selected.library.channels.setdefault(conversation_id, type(selected.library.channels[None])())
        else:
            for message in selected.library.subscribe(conversation_id):
                self.say(selected, message)

    @rule(page=st.integers(0, 3), conversation_id=st.sampled_from(CONVERSATIONS))
    def unsubscribe(self, page: int, conversation_id: int) -> None:
        selected = self.pages[page]
        if conversation_id not in selected.library.channels:
            return
        # A page handles its pending messages before it unsubscribes, and the model checks it up to there.
        if selected.connection is not None:
            self.read(selected, None)
            check(selected, self.log)
        message = selected.library.unsubscribe(conversation_id)
        selected.since.pop(conversation_id, None)
        if selected.connection is not None:
            self.say(selected, message)

    @rule(page=st.integers(0, 3), count=st.integers(1, 6))
    def read_some(self, page: int, count: int) -> None:
        self.read(self.pages[page], count)

    @rule(page=st.integers(0, 3), handled=st.integers(0, 8))
    def lose(self, page: int, handled: int) -> None:
        """End the connection after `handled` of the pending messages."""
        selected = self.pages[page]
        if selected.connection is not None:
            self.read(selected, handled)
            self.chat.on_close(selected.connection)
            selected.connection = None
            selected.library.lost()
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

    # Helpers

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
        for reply in page.receive(count):
            # `recovered:false` is said only if the history was trimmed or reset since
            epoch = self.chat.broker.epoch
            if reply["since"][0] == epoch:
                assert len(self.log[epoch]) > BOUNDS.events


class SqliteRecovery(RecoveryMachine):
    url = "sqlite:///DIRECTORY/log.db"


@pytest.mark.long
@pytest.mark.parametrize(("machine", "examples"), [(RecoveryMachine, 150), (SqliteRecovery, 60)])
def test_every_handler_gets_the_events_of_the_model(machine: type[RecoveryMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            # a failure is printed as it was events: making it small would take minutes
            phases=[Phase.generate],
        ),
    )


def test_model_detects_a_lost_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails if a replay lacks an event."""

    def forgetful(self: History, *args: Any, **options: Any) -> Any:
        events = whole(self, *args, **options)
        return events[:-1] if events else events

    whole = History.since
    monkeypatch.setattr(History, "since", forgetful)
    machine = RecoveryMachine()
    machine.connect_all_pages()
    machine.subscribe(page=0, conversation_id=10)
    machine.lose(page=0, handled=100)
    machine.publish(to=conversation_channel(10), excluded=None, count=2)
    with pytest.raises(AssertionError, match=r"^\(10, "):
        machine.teardown()
