"""Delivery of events: each connection gets the events of its channels once and in order, and no others.

The column code of the hot path is compared with the plain references in tests/chat_reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chatws.chat.hub
from chatws.brokers.interface import AGENTS, Audience, Event
from chatws.chat.audience import MAX_CACHED_AUDIENCES, AudienceTable
from chatws.chat.chat_stats import ChatStats
from chatws.chat.delivery import plan_deliveries
from chatws.chat.hub import Hub
from chatws.chat.messages import event_payloads
from chatws.errors import ClientError
from chatws.server.frames import text_frame, text_frames
from tests import chat_reference

USERS = range(4)
CHANNELS = [AGENTS, *(f"user:{user}" for user in USERS), *(f"conversation:{number}" for number in range(6))]
NAMES = ["new_message", "message_read", "order.paid", "App\\Events\\Paid"]

channels = st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True).map(tuple)
one_channel = st.sampled_from(CHANNELS).map(lambda name: (name,))
audiences = st.builds(Audience, one_channel) | st.builds(
    Audience, one_channel | channels, st.none() | st.sampled_from(USERS)
)
#: Connections: the user of each, and the conversations that it is subscribed to.
connections = st.lists(st.tuples(st.sampled_from(USERS), st.sets(st.sampled_from(CHANNELS[5:]))), max_size=8)

Connections = list[tuple[int, set[str]]]


def make_hub(connections: Connections) -> tuple[Hub[int], dict[int, set[str]]]:
    """A hub with connections, and the channels of each."""
    hub: Hub[int] = Hub()
    subscriptions = {
        number: {AGENTS, f"user:{user}", *conversations} for number, (user, conversations) in enumerate(connections)
    }
    for connection, names in subscriptions.items():
        for name in sorted(names):
            hub.add(name, connection)
    return hub, subscriptions


def make_frames(events: Sequence[Event]) -> list[bytes]:
    return [b"%d" % event.offset for event in events]


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(connections, st.lists(audiences, min_size=1, max_size=12))
def test_planned_deliveries_equal_the_reference(connections: Connections, batch: list[Audience]) -> None:
    check_plan(connections, batch)


def check_plan(connections: Connections, batch: list[Audience]) -> None:
    """Compare the planned deliveries with the reference."""
    hub, subscriptions = make_hub(connections)
    for _ in range(2):  # without cached recipients, and with them
        events = [Event(offset, "x", audience, b"{}", 0.0) for offset, audience in enumerate(batch, 1)]
        received: dict[int, list[bytes]] = {connection: [] for connection in subscriptions}
        for recipients, frames in plan_deliveries(events, hub, make_frames):
            assert recipients
            assert frames
            assert len({*recipients}) == len(recipients)
            assert len([*recipients]) == len(recipients)
            for connection in recipients:
                assert connection in recipients
                received[connection] += frames
        expected = chat_reference.plan_deliveries(events, subscriptions)
        assert received == {connection: make_frames(events) for connection, events in expected.items()}
        for event in events:
            assert event.delivered == len(chat_reference.recipients(event.audience, subscriptions))


@settings(max_examples=100, deadline=None)
@given(connections, st.lists(audiences, min_size=1, max_size=12))
def test_planned_deliveries_to_many_equal_the_reference(connections: Connections, batch: list[Audience]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatws.chat.hub, "CHUNK", 2)  # more recipients than that are many
        check_plan(connections, batch)


@settings(max_examples=200, deadline=None)
@given(connections, st.lists(audiences, max_size=6))
def test_recipients_of_each_equal_the_reference(connections: Connections, batch: list[Audience]) -> None:
    hub, subscriptions = make_hub(connections)
    for _ in range(2):
        recipients = [sorted(each) for each in hub.recipients_of_each(batch)]
        assert recipients == [chat_reference.recipients(audience, subscriptions) for audience in batch]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([b"{}", b'{"a": "%d %b"}']), st.integers(0, 3))),
    st.sampled_from(["e", "e%", "%d"]),
)
def test_payloads_of_a_batch_equal_the_reference(batch: list[tuple[str, bytes, int]], epoch: str) -> None:
    events = [Event(offset, name, Audience((AGENTS,)), data, 0.0) for name, data, offset in batch]
    assert event_payloads(events, epoch) == [chat_reference.event_payload(event, epoch) for event in events]


def test_payload_of_a_stored_event_has_an_id_and_that_of_a_transient_one_has_none() -> None:
    stored = Event(7, "new_message", Audience((AGENTS,)), b'{"a": "%d"}', 0.0)
    transient = Event(0, "typing", Audience((AGENTS,)), b"{}", 0.0)
    expected = [b'{"event":"new_message","data":{"a": "%d"},"id":"e%:7"}', b'{"event":"typing","data":{}}']
    assert event_payloads([stored, transient], "e%") == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5))))
def test_counts_of_a_batch_equal_the_reference(batch: list[tuple[str, int]]) -> None:
    events = [Event(1, name, Audience((AGENTS,)), b"{}", 0.0, delivered=delivered) for name, delivered in batch]
    stats = ChatStats()
    stats.count(events)
    counts, deliveries = chat_reference.count_events(events)
    assert stats.names == {name: [counts[name], deliveries[name]] for name in counts}
    assert (stats.events, stats.deliveries) == (len(events), deliveries.total())


CONVERSATION_DATA = [
    b'{"conversation_id":1}',
    b'{"conversation_id":"1","message":{}}',
    b'{"conversation_id":"x"}',
    b'{"conversation_id":"01"}',
]
OTHER_DATA = [b"{}", b'{"conversation_id":true}', b'{"conversation_id":1.0}', b'{"conversation_id":""}']


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["new_message", "message_read"])
            | st.sampled_from(["typing", "new_conversation", "unknown"]),
            st.sampled_from(CONVERSATION_DATA) | st.sampled_from(OTHER_DATA),
        ),
        max_size=5,
    )
)
def test_new_events_of_a_batch_equal_those_made_one_by_one(batch: list[tuple[str, bytes]]) -> None:
    table, reference = AudienceTable(), AudienceTable()
    names, data = [name for name, _ in batch], [text for _, text in batch]
    for _ in range(2):  # without cached audiences, and with them
        new_events = table.new_events(names, data)
        if new_events is None:
            assert {*names} - {"new_message", "message_read"} or {*data} & {*OTHER_DATA}
        else:
            assert new_events == [reference.new_event(name, text) for name, text in batch]


def test_new_events_with_an_invalid_id_leave_the_error_to_new_event() -> None:
    table = AudienceTable()
    for data in OTHER_DATA:
        assert table.new_events(["new_message"], [data]) is None
        with pytest.raises(ClientError, match="bad_message"):
            table.new_event("new_message", data)


def test_audiences_of_more_conversations_than_are_cached_stay_correct() -> None:
    table = AudienceTable()
    numbers = range(MAX_CACHED_AUDIENCES + 2)
    data = [b'{"conversation_id":%d}' % number for number in numbers]
    new_events = table.new_events(["new_message"] * len(data), data)
    assert new_events is not None
    assert [event.audience.channels for event in new_events] == [(f"conversation:{number}",) for number in numbers]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 90, 125, 126, 127, 200, 65535, 65536, 65600]), max_size=6))
def test_frames_of_a_batch_equal_those_made_one_by_one(sizes: list[int]) -> None:
    payloads = [b"x" * size for size in sizes]
    assert text_frames(payloads) == [text_frame(payload) for payload in payloads]
