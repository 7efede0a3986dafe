"""From events to runs: whoever is addressed gets each event once and in order, and nobody else any."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from chatws.brokers.contract import EVERYONE, Audience, Event
from chatws.chat.delivery import make_runs
from chatws.chat.hub import Hub
from chatws.chat.messages import event_payloads
from chatws.server.frames import text_frame, text_frames

USERS = range(4)
CHANNELS = [EVERYONE, *(f"user:{user}" for user in USERS), *(f"conversation:{number}" for number in range(6))]

channels = st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True).map(tuple)
one_channel = st.sampled_from(CHANNELS).map(lambda name: (name,))
audiences = st.builds(Audience, one_channel) | st.builds(
    Audience, one_channel | channels, st.none() | st.sampled_from(USERS)
)
#: Connections: whose each is, and to which conversations it has subscribed.
rooms = st.lists(st.tuples(st.sampled_from(USERS), st.sets(st.sampled_from(CHANNELS[5:]))), max_size=8)


def frames_of(events: Sequence[Event]) -> list[bytes]:
    return [b"%d" % event.offset for event in events]


@settings(max_examples=400, deadline=None)
@given(rooms, st.lists(audiences, min_size=1, max_size=12), st.booleans())
def test_each_gets_what_it_is_addressed_by_in_order(
    room: list[tuple[int, set[str]]], addressed: list[Audience], twice: bool
) -> None:
    hub: Hub[int] = Hub()
    listens = [{EVERYONE, f"user:{user}", *conversations} for user, conversations in room]
    for connection, names in enumerate(listens):
        for name in sorted(names):
            hub.add(name, connection)
    for _ in range(1 + twice):  # with recipients at hand, and without
        events = [Event(offset, "x", audience, b"{}", 0.0) for offset, audience in enumerate(addressed, 1)]
        got: dict[int, list[bytes]] = {connection: [] for connection in range(len(room))}
        for connections, frames in make_runs(events, hub, frames_of):
            assert connections
            assert frames
            assert len({*connections}) == len(connections)
            for connection in connections:
                got[connection] += frames
        for event in events:
            left_out = event.audience.except_user_id
            expected = [
                connection
                for connection, (user, _) in enumerate(room)
                if listens[connection] & {*event.audience.channels} and user != left_out
            ]
            assert event.delivered == len(expected)
            (frame,) = frames_of([event])
            assert [connection for connection, frames in got.items() if frame in frames] == expected
        # each of them once, and in the order of their offsets
        assert all(frames == sorted({*frames}, key=int) for frames in got.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 90, 125, 126, 127, 200, 65535, 65536, 65600]), max_size=6))
def test_frames_made_together_are_those_made_one_by_one(sizes: list[int]) -> None:
    payloads = [b"x" * size for size in sizes]
    assert text_frames(payloads) == [text_frame(payload) for payload in payloads]


def test_events_that_can_be_recovered_say_where_they_stand_and_passing_ones_do_not() -> None:
    stored = Event(7, "new_message", Audience((EVERYONE,)), b'{"a": "%d"}', 0.0)
    passing = Event(0, "typing", Audience((EVERYONE,)), b"{}", 0.0)
    told = [b'{"event":"new_message","data":{"a": "%d"},"id":"e%:7"}', b'{"event":"typing","data":{}}']
    assert event_payloads([stored, stored], "e%") == [told[0], told[0]]
    assert event_payloads([stored, passing], "e%") == told
    assert event_payloads([passing], "e%") == [told[1]]
    assert event_payloads([], "e%") == []
