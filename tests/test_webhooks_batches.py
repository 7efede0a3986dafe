"""What a request of webhooks contains (chatws.webhooks.batches)."""

from __future__ import annotations

import json
from typing import Any

from chatws.brokers.webhook_queue import WebhookItem
from chatws.ids import Id
from chatws.webhooks.batches import MAX_EVENTS, POISON_FAILURES, Batches, Delivery, Snapshot, body_of

DEFAULT = ("agent_online", "agent_offline", "agent_status", "heartbeat", "presence_reset")
NOW = 1_800_000_000.0


class KnownAgents:
    def __init__(self) -> None:
        self.active: dict[Id, int] = {}
        self.seen: dict[Id, int] = {}
        self.set: dict[Id, str] = {}

    def status(self, user_id: Id) -> str:
        return self.set.get(user_id, "online")

    def last_active(self, user_id: Id) -> int | None:
        return self.active.get(user_id)

    def last_seen(self, user_id: Id) -> int | None:
        return self.seen.get(user_id)


def make(selected: tuple[str, ...] = DEFAULT, max_body: int = 65_536) -> tuple[Batches, KnownAgents]:
    agents = KnownAgents()
    batches = Batches(selected, max_body, agents)
    batches.clear("q")
    return batches, agents


def online(position: int, user_id: Id) -> WebhookItem:
    return WebhookItem(position, 1000 + position, "agent_online", json.dumps(user_id).encode())


def offline(position: int, user_id: Id) -> WebhookItem:
    return WebhookItem(position, 1000 + position, "agent_offline", json.dumps(user_id).encode())


def decode(events: list[bytes]) -> list[dict[str, Any]]:
    decoded: list[dict[str, Any]] = json.loads(body_of(events, NOW))["events"]
    return decoded


def test_request_has_ids_of_the_queue_and_growing_numbers() -> None:
    batches, agents = make()
    agents.set[5] = "busy"
    agents.seen["x"] = 77
    batches.add([online(1, 5), offline(2, "x")])
    assert decode(batches.next(100)) == [
        {"id": "q-1", "seq": 100, "event": "agent_online", "time_ms": 1001, "user_id": 5, "status": "busy"},
        {"id": "q-2", "seq": 101, "event": "agent_offline", "time_ms": 1002, "user_id": "x", "last_seen_ms": 77},
    ]


def test_retry_has_the_same_ids_and_numbers() -> None:
    batches, _ = make()
    batches.add([online(1, 5)])
    first = decode(batches.next(100))
    batches.done(Delivery.REFUSED)
    batches.add([online(1, 5), online(2, 6)])
    assert decode(batches.next(200)) == [*first, *decode(batches.next(300))[1:]]


def test_acknowledged_events_are_acknowledged_in_the_queue() -> None:
    batches, _ = make()
    batches.add([online(1, 5), online(2, 6), online(3, 7)])
    batches.limit = 2
    batches.next(100)
    batches.done(Delivery.ACKNOWLEDGED)
    assert (batches.acked, batches.loaded, len(batches)) == (2, 3, 1)
    assert batches.sent == {"agent_online": 2}


def test_events_that_are_not_selected_are_acknowledged_without_being_sent() -> None:
    batches, _ = make(("agent_offline",))
    batches.add([online(1, 5), offline(2, 5), online(3, 6)])
    assert [event["event"] for event in decode(batches.next(100))] == ["agent_offline"]
    batches.done(Delivery.ACKNOWLEDGED)
    assert (batches.acked, len(batches)) == (3, 0)
    batches.add([online(4, 5)])
    assert (batches.acked, len(batches)) == (4, 0)


def test_failure_halves_the_request_and_success_doubles_it() -> None:
    batches, _ = make()
    batches.add(online(n, n) for n in range(1, 11))
    sizes = []
    for outcome in (Delivery.FAILED, Delivery.FAILED, Delivery.REFUSED, Delivery.ACKNOWLEDGED, Delivery.ACKNOWLEDGED):
        sizes.append(len(batches.next(100)))
        batches.done(outcome)
    assert sizes == [10, 5, 2, 2, 4]


def test_request_is_at_most_as_large_as_the_receiver_takes() -> None:
    batches, _ = make(max_body=2048)
    batches.add(online(n, f"agent-{n:03}") for n in range(1, 101))
    numbers = []
    while batches:
        events = batches.next(100)
        assert len(body_of(events, NOW)) <= 2048
        numbers.append(len(events))
        batches.done(Delivery.ACKNOWLEDGED)
    assert sum(numbers) == 100
    assert max(numbers) > 5


def test_event_that_fails_alone_five_times_is_poison() -> None:
    batches, _ = make()
    batches.add([online(1, 5), online(2, 6)])
    for _ in range(POISON_FAILURES):
        batches.next(100)
        assert not batches.has_poison
        batches.done(Delivery.FAILED)
    batches.next(100)
    batches.done(Delivery.FAILED)
    assert batches.has_poison
    assert batches.drop_poison() == "agent_online q-1"
    assert (batches.acked, batches.rejected) == (1, {"agent_online": 1})
    assert [event["id"] for event in decode(batches.next(200))] == ["q-2"]


def test_heartbeats_are_of_agents_online_and_are_replaced() -> None:
    batches, agents = make()
    agents.active = {5: 50, 6: 60, 7: 70}
    batches.start_from([5])
    batches.add([online(1, 6), offline(2, 5)])
    batches.add_heartbeats(NOW)
    assert [(event["event"], event["user_id"]) for event in decode(batches.next(100))][2:] == [("heartbeat", 6)]
    batches.done(Delivery.REFUSED)
    agents.active[6] = 66
    batches.remove_heartbeats()
    batches.add_heartbeats(NOW)
    heartbeats = [event for event in decode(batches.next(200)) if event["event"] == "heartbeat"]
    assert [event["last_activity_ms"] for event in heartbeats] == [66]


def test_reset_comes_first_and_skips_changes_that_the_receiver_is_past() -> None:
    batches, _ = make()
    batches.add([online(1, 5)])
    batches.start_reset(3, Snapshot([6, 7], {"7": "away"}), 4, NOW)
    assert batches.loaded == 0
    batches.add([online(1, 5), offline(2, 5), online(3, 6), offline(4, 8), online(5, 9)])
    events = decode(batches.next(100))
    assert events[0] == {
        "id": "q-s100", "seq": 100, "event": "presence_reset", "time_ms": int(NOW * 1000), "online": [6, 7],
        "status": {"7": "away"}, "part": 1, "parts": 1,
    }  # fmt: skip
    assert [(event["event"], event["user_id"]) for event in events[1:]] == [
        ("agent_offline", 5),
        ("agent_online", 6),
        ("agent_offline", 8),
        ("agent_online", 9),
    ]
    assert batches.needs_reset(4)
    batches.done(Delivery.ACKNOWLEDGED)
    assert (batches.reset_done, batches.acked, batches.needs_reset(3), batches.needs_reset(4)) == (3, 5, False, True)


def test_reset_of_20000_agents_has_parts_that_fit() -> None:
    batches, _ = make()
    everyone: list[Id] = list(range(20_000))
    statuses = {str(user_id): "busy" for user_id in range(0, 20_000, 3)}
    batches.start_reset(1, Snapshot(everyone, statuses, [(1, "c" * 128)] * 1000), 0, NOW)
    parts: list[dict[str, Any]] = []
    while batches:
        events = batches.next(100)
        assert len(body_of(events, NOW)) <= 65_536
        parts += decode(events)
        assert batches.reset_done == 0
        batches.done(Delivery.ACKNOWLEDGED)
    assert [(part["part"], part["parts"]) for part in parts] == [(n + 1, len(parts)) for n in range(len(parts))]
    assert [user_id for part in parts for user_id in part["online"]] == everyone
    assert {user_id: status for part in parts for user_id, status in part["status"].items()} == statuses
    assert sum(len(part["contacts"]) for part in parts) == 1000
    assert batches.reset_done == 1


def test_reset_that_has_begun_is_finished_before_the_next_one() -> None:
    batches, _ = make(max_body=2048)
    batches.start_reset(1, Snapshot(list(range(1000))), 0, NOW)
    assert batches.needs_reset(2)
    batches.next(100)
    batches.done(Delivery.ACKNOWLEDGED)
    assert not batches.needs_reset(2)


def test_sender_holds_a_bounded_number_of_queued_events() -> None:
    batches, agents = make()
    batches.add(online(n, n) for n in range(1, MAX_EVENTS + 1))
    assert batches.room == 0
    agents.active = {n: n for n in range(1, MAX_EVENTS + 1)}
    batches.next(1)
    batches.done(Delivery.ACKNOWLEDGED)
    batches.add_heartbeats(NOW)
    assert batches.room > 400


def test_contacts_of_the_queue_are_members_of_conversations() -> None:
    batches, _ = make((*DEFAULT, "contact_online", "contact_offline"))
    came, left = (json.dumps(json.dumps(member)).encode() for member in ([456, 7], ["c", "7a"]))
    batches.start_reset(2, Snapshot([], {}, [(7, 456)]), 3, NOW)
    batches.add(
        [
            WebhookItem(1, 1001, "contact_online", came),
            WebhookItem(2, 1002, "contact_offline", came),
            WebhookItem(3, 1003, "contact_offline", left),
        ]
    )
    events = [
        (event["event"], event.get("contact_id"), event.get("conversation_id")) for event in decode(batches.next(1))
    ]
    assert events[1:] == [("contact_online", 7, 456), ("contact_offline", "7a", "c")]
