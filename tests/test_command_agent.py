"""What `tail` does with a connection that comes and goes, and what `compare` makes of two."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.cli.agent_client import AgentClient, AgentSettings
from chatws.cli.comparison import Comparison, Difference


class FakeTransport:
    def __init__(self) -> None:
        self.connects = 0
        self.sent: list[dict[str, Any]] = []

    def connect(self) -> None:
        self.connects += 1

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def close(self) -> None:
        raise AssertionError("nobody asked for that")


class AgentTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = FakeTransport()
        self.events: list[str] = []
        self.notes: list[str] = []
        self.ends: list[Exception] = []
        self.agent = AgentClient(
            AgentSettings("ws://x/ws", 5, "token", [1, 2, 1]),
            self.clock,
            on_event=lambda text, message: self.events.append(message.get("id", message["event"])),
            on_note=self.notes.append,
            on_end=self.ends.append,
            transport=lambda agent: self.transport,
        )
        self.agent.start()

    def say(self, event: str, id: str | None = None, **data: Any) -> None:
        message: dict[str, Any] = {"event": event, "data": data}
        if id is not None:
            message["id"] = id
        self.agent.received(json.dumps(message))

    def enter(self, position: str = "E:10", **more: Any) -> None:
        self.agent.opened()
        self.say("authenticated", last_event_id=position, **more)
        self.say("subscribed", conversation_id=1, last_event_id=position, **more)
        self.say("subscribed", conversation_id=2, last_event_id=position, **more)
        self.say("presence", online=[5])

    def come_back(self) -> list[dict[str, Any]]:
        """Lose the connection, have it again, and return what was sent then."""
        before = self.transport.connects
        self.agent.closed(4000, "reconnect")
        self.clock.advance(10)
        assert self.transport.connects == before + 1
        self.transport.sent.clear()
        self.agent.opened()
        return self.transport.sent

    def test_the_agent_sends_auth_and_subscribe_when_opened(self) -> None:
        self.agent.opened()
        assert self.transport.sent == [
            {"type": "auth", "user_id": 5, "token": "token"},
            {"type": "subscribe", "conversation_id": 1},
            {"type": "subscribe", "conversation_id": 2},
            {"type": "presence"},
        ]

    def test_answers_are_no_events(self) -> None:
        self.enter()
        self.agent.received('{"type":"pong"}')
        assert self.events == []

    def test_it_recovers_from_the_last_event(self) -> None:
        self.enter()
        self.say("x", "E:12")
        assert [item.get("last_event_id") for item in self.come_back()] == ["E:12", "E:12", "E:12", None]

    def test_reconnect_without_an_event_recovers_from_the_first_position(self) -> None:
        self.enter("E:10")
        assert self.come_back()[0]["last_event_id"] == "E:10"

    def test_events_during_a_replay_do_not_advance_the_position(self) -> None:
        self.enter()
        self.come_back()
        self.say("authenticated", last_event_id="E:20", recovered=True)
        self.say("x", "E:15")
        assert self.come_back()[0]["last_event_id"] == "E:10"
        self.say("authenticated", last_event_id="E:20", recovered=True)
        self.say("x", "E:15")
        self.say("presence", online=[])
        assert self.events == ["E:15"]
        assert self.come_back()[0]["last_event_id"] == "E:20"

    def test_a_new_epoch_is_adopted_and_noted(self) -> None:
        self.enter()
        self.come_back()
        self.say("authenticated", last_event_id="F:0", recovered=False)
        self.say("presence", online=[])
        assert "events may be missing" in self.notes
        assert self.come_back()[0]["last_event_id"] == "F:0"

    def test_events_without_an_id_are_shown_each_time(self) -> None:
        self.enter()
        self.say("typing")
        self.say("typing")
        assert self.events == ["typing", "typing"]

    def test_pauses_grow_and_one_note_is_enough(self) -> None:
        self.enter()
        pauses = []
        for _ in range(8):
            self.agent.closed(None, "refused")
            (call,) = self.clock.getDelayedCalls()
            pauses.append(call.getTime() - self.clock.seconds())
            self.clock.advance(20)
        assert pauses[0] <= 0.25
        assert 5 <= pauses[-1] <= 10
        assert [note for note in self.notes if "trying again" in note] == [
            "the connection is gone: refused; trying again"
        ]

    def test_a_permanent_close_code_ends_the_agent(self) -> None:
        self.enter()
        self.agent.closed(4903, "not allowed")
        assert [str(end) for end in self.ends] == ["disconnected for good: not allowed (4903)"]
        assert self.clock.getDelayedCalls() == []

    def test_a_failed_auth_ends_the_agent_with_its_reason(self) -> None:
        self.agent.opened()
        self.say("error", code="auth_failed", message="the token has expired")
        self.agent.closed(4901, "authentication failed")
        assert [str(end) for end in self.ends] == ["cannot be 5 at ws://x/ws: auth_failed: the token has expired"]

    def test_a_forbidden_conversation_is_noted_and_others_continue(self) -> None:
        self.enter()
        self.say("error", code="forbidden", message="not yours")
        assert self.notes[-1] == "refused, forbidden: not yours"
        assert self.ends == []

    def test_invalid_messages_are_noted(self) -> None:
        self.enter()
        for text in ("nonsense", "[]", '{"event":"error","data":7}', "[" * 100_000):
            self.agent.received(text)
        assert self.ends == []

    def test_a_stopped_agent_ignores_events(self) -> None:
        self.enter()
        self.agent.stop()
        self.say("x", "E:11")
        self.agent.closed(None, "over")
        assert (self.events, self.clock.getDelayedCalls()) == ([], [])


class ComparisonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.comparison = Comparison(window=5)

    def test_order_and_key_order_do_not_count(self) -> None:
        add = self.comparison.add
        add("legacy", "a", {"x": 1, "y": [1, 2]}, 0)
        add("legacy", "b", {}, 1)
        add("new", "b", {}, 2)
        add("new", "a", {"y": [1, 2], "x": 1}, 3)
        assert (self.comparison.same, self.comparison.differences()) == (2, [])
        assert not self.comparison.is_waiting

    def test_types_and_the_order_in_lists_count(self) -> None:
        for number, (old, young) in enumerate([(1, "1"), (1, True), (1, 1.0), ([1, 2], [2, 1]), (None, 0)]):
            self.comparison.add("legacy", f"e{number}", old, 0)
            self.comparison.add("new", f"e{number}", young, 0)
        assert [difference.kind for difference in self.comparison.differences()] == ["different"] * 5

    def test_missing_and_extra(self) -> None:
        self.comparison.add("legacy", "a", 1, 0)
        self.comparison.add("new", "b", 2, 1)
        assert self.comparison.differences() == [
            Difference("missing", "a", 1, None),
            Difference("extra", "b", None, 2),
        ]

    def test_a_duplicate_event_is_an_extra_one(self) -> None:
        for side in ("legacy", "new", "new"):
            self.comparison.add(side, "a", 1, 0)  # type: ignore[arg-type]
        assert self.comparison.differences() == [Difference("extra", "a", None, 1)]

    def test_a_late_event_is_a_difference(self) -> None:
        self.comparison.add("legacy", "a", 1, 0)
        self.comparison.add("new", "a", 1, 6)
        assert [difference.kind for difference in self.comparison.differences()] == ["missing", "extra"]

    def test_events_outside_of_the_period_only_match(self) -> None:
        self.comparison.add("legacy", "early", 1, 0, counts=False)
        self.comparison.add("new", "early", 1, 1)
        self.comparison.add("legacy", "alone", 1, 1, counts=False)
        self.comparison.add("legacy", "late", 1, 2)
        assert self.comparison.is_waiting
        self.comparison.add("new", "late", 1, 3, counts=False)
        self.comparison.add("new", "later", 1, 3, counts=False)
        assert (self.comparison.same, self.comparison.differences()) == (2, [])
        assert not self.comparison.is_waiting
