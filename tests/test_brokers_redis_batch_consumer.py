"""The order in which a node of the Redis log is told, whatever comes first: the answer or the copy, ours or others'."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Audience, Event, NewEvent
from chatws.brokers.publish_queue import PublishBatch
from chatws.brokers.redis.batch_consumer import MAX_INBOX, BatchConsumer, PendingBatch
from chatws.brokers.redis.batches import AppendReply, StoredEvent, encode_new_events, open_body
from chatws.errors import Unavailable

AUDIENCE = Audience(("conversation:1",))


class Redis:
    """What append.lua does, for one node of several: each batch gets an answer (if it is ours) and a copy."""

    def __init__(self) -> None:
        self.seq = 0
        self.log: list[tuple[bytes, str]] = []  # bodies and batches' names
        self.order: list[str] = []  # names of all events ever published
        self.answers: deque[tuple[PendingBatch, AppendReply]] = deque()
        self.copies: deque[bytes] = deque()
        self.keys: dict[str, int] = {}

    def append(self, new_events: list[NewEvent], name: str, batch: PendingBatch | None, *, whole: bool) -> None:
        before = len(self.log)
        _, bodies = encode_new_events(new_events)
        duplicates: list[float] = []
        places: list[str] = []
        copied: list[bytes] = []
        for index, (new_event, body) in enumerate(zip(new_events, bodies, strict=True)):
            if new_event.key in self.keys:
                duplicates += (index, self.keys[new_event.key], 1.0)
                continue
            offset = 0
            if not new_event.transient:
                self.log.append((body, name))
                offset = len(self.log)
            if new_event.key is not None:
                self.keys[new_event.key] = offset
            self.order.append(new_event.name)
            if whole or new_event.transient:
                places.append(f"{offset},{len(body)}")
                copied.append(body)
            else:
                places.append(f"{offset},-1")
        if places:
            self.seq += 1
            header = f'["e",{self.seq},{before},1.0,"{name}",[{",".join(places)}]]\n'
            self.copies.append(header.encode() + b"".join(copied))
        if batch is not None:
            self.answers.append((batch, AppendReply(self.seq, before, 1.0, False, duplicates)))

    async def read(self, after: int, limit: int) -> tuple[bool, list[StoredEvent]]:
        entries = list(enumerate(self.log, 1))[after:]
        result = [StoredEvent(open_body(body, offset, 1.0), name) for offset, (body, name) in entries]
        return len(result) <= limit, result[:limit]


class Node:
    """A batch consumer in a session, and its notifications."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.told: list[Event] = []
        self.troubles: list[str] = []
        self.consumer = BatchConsumer(self.told.extend, redis.read, self.troubles.append)
        self.consumer.epoch = "e"
        self.count = 0
        self.fired: list[tuple[list[NewEvent], list[Event] | None, int]] = []

    def begin(self, *, is_new: bool) -> None:
        synced = self.consumer.expect("hello")
        self.consumer.receive(f'["e",{self.redis.seq},{len(self.redis.log)},1.0,"hello",[]]\n'.encode())
        assert synced.called
        Deferred.fromCoroutine(self.consumer.catch_up("hello", is_new=is_new)).addErrback(
            lambda failure: self.troubles.append(str(failure))
        )

    def publish(self, new_events: list[NewEvent], *, whole: bool) -> None:
        self.count += 1
        batch = PublishBatch()
        fired = batch.add(new_events, (), size=0)
        batch = PendingBatch(f"n{self.count}", batch)
        self.consumer.sent(batch)
        self.redis.append(new_events, batch.name, batch, whole=whole)
        fired.addCallbacks(
            lambda events: self.fired.append((new_events, events, len(self.told))),
            lambda failure: self.fired.append((new_events, None, failure.trap(Unavailable) and 0)),
        )

    def answer(self) -> None:
        batch, reply = self.redis.answers.popleft()
        self.consumer.answered(batch, reply)

    def copy(self, count: int) -> None:
        for _ in range(min(count, len(self.redis.copies))):
            self.consumer.receive(self.redis.copies.popleft())
        self.consumer.flush()


def make_drafts(step: int, kinds: str) -> list[NewEvent]:
    """One for each letter: a stored one, a transient one, or one with a key that others use too."""
    return [
        NewEvent(f"{step}.{index}", AUDIENCE, b"{}", "k" if kind == "k" else None, kind == "t")
        for index, kind in enumerate(kinds)
    ]


batch = st.tuples(st.text("stk", min_size=1, max_size=3), st.booleans())
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["mine", "others"]), batch),
        st.tuples(st.sampled_from(["answer", "copies"]), st.integers(1, 3)),
    ),
    max_size=40,
)


@given(steps)
def test_every_batch_is_delivered_once_in_redis_order_before_its_result(steps: list[tuple[str, object]]) -> None:
    redis = Redis()
    node = Node(redis)
    node.begin(is_new=True)
    published = 0
    for number, (step, what) in enumerate(steps):
        if step == "mine" and not redis.answers:  # the next goes when the one before was answered
            kinds, whole = what  # type: ignore[misc]
            node.publish(make_drafts(number, kinds), whole=whole)
            published += 1
        elif step == "others":
            kinds, whole = what  # type: ignore[misc]
            redis.append(make_drafts(number, kinds), f"o{number}", None, whole=whole)
        elif step == "answer" and redis.answers:
            node.answer()
        elif step == "copies":
            node.copy(what)  # type: ignore[arg-type]
        assert [event.name for event in node.told] == redis.order[: len(node.told)]
    while redis.answers:
        node.answer()
    node.copy(len(redis.copies))
    assert node.troubles == []
    assert [event.name for event in node.told] == redis.order
    assert [event.offset for event in node.told if event.offset] == list(range(1, len(redis.log) + 1))
    assert len(node.fired) == published
    for new_events, events, told in node.fired:
        assert events is not None
        assert [event.name for event in events] == [new_event.name for new_event in new_events]
        before = node.told[:told]
        for event in events:
            assert event.duplicate or any(event is item for item in before), "the very event that was told, and before"


class Sessions(SynchronousTestCase):
    def setUp(self) -> None:
        self.redis = Redis()
        self.node = Node(self.redis)
        self.node.begin(is_new=True)

    def others(self, *kinds: str) -> None:
        for number, kind in enumerate(kinds):
            self.redis.append(make_drafts(len(self.redis.order) + number, kind), f"o{number}", None, whole=True)

    def names(self) -> list[str]:
        return [event.name for event in self.node.told]

    def test_events_stored_between_two_sessions_are_delivered_by_the_second(self) -> None:
        self.others("s")
        self.node.copy(1)
        self.node.consumer.hold()
        self.others("st", "s")
        self.redis.copies.clear()
        self.node.begin(is_new=False)
        self.assertEqual([event.offset for event in self.node.told], [1, 2, 3])
        self.others("t", "s")
        self.node.copy(2)
        self.assertEqual([event.offset for event in self.node.told], [1, 2, 3, 0, 4])
        self.assertEqual(self.node.troubles, [])

    def test_copies_before_a_session_s_first_response_are_delivered_in_order(self) -> None:
        self.node.consumer.hold()
        self.others("s")
        self.redis.copies.clear()
        synced = self.node.consumer.expect("hello")
        self.others("t", "st")
        self.node.copy(2)
        self.assertFalse(synced.called)
        self.node.consumer.receive(b'["e",%d,2,1.0,"hello",[]]\n' % self.redis.seq)
        self.others("t")
        self.node.copy(1)
        self.successResultOf(Deferred.fromCoroutine(self.node.consumer.catch_up("hello", is_new=False)))
        self.assertEqual(self.names(), self.redis.order)
        self.assertEqual(self.node.troubles, [])

    def test_a_missing_batch_ends_the_session(self) -> None:
        self.others("s", "s")
        self.redis.copies.popleft()
        self.node.copy(1)
        self.assertEqual(self.node.troubles, ["events are missing"])
        self.assertEqual(self.node.told, [])

    def test_another_epoch_ends_the_session(self) -> None:
        self.node.consumer.receive(b'["f",1,0,1.0,"",[]]\n')
        self.node.consumer.flush()
        self.assertEqual(self.node.troubles, ["the history was reset"])

    def test_a_batch_that_cannot_be_read_from_the_log_ends_the_session(self) -> None:
        async def fail(after: int, limit: int) -> tuple[bool, list[StoredEvent]]:
            raise Unavailable("gone")

        self.node.consumer._read = fail
        self.redis.append(make_drafts(0, "s"), "o", None, whole=False)
        self.node.copy(1)
        [on_failure] = self.node.troubles
        self.assertIn("gone", on_failure)
        self.assertEqual(self.node.told, [])

    def test_a_read_that_fails_after_its_session_does_not_disturb_the_next(self) -> None:
        reading: Deferred[None] = Deferred()
        read = self.node.consumer._read

        async def wait(after: int, limit: int) -> tuple[bool, list[StoredEvent]]:
            await reading
            raise Unavailable("gone")

        self.node.consumer._read = wait
        self.redis.append(make_drafts(0, "s"), "o", None, whole=False)
        self.node.copy(1)
        self.node.consumer._read = read
        self.node.begin(is_new=False)
        reading.callback(None)
        self.others("s")
        self.node.copy(1)
        self.assertEqual(self.node.troubles, [])
        self.assertEqual([event.offset for event in self.node.told], [1, 2])

    def test_copies_that_wait_for_a_read_are_limited(self) -> None:
        self.node.consumer.expect("hello")
        large = [NewEvent("large", AUDIENCE, b"x" * (MAX_INBOX // 4))]
        for number in range(5):
            self.redis.append(large, f"o{number}", None, whole=True)
        self.node.copy(3)
        self.assertEqual(self.node.troubles, [])
        self.node.copy(2)
        self.assertEqual(self.node.troubles[0], "more batches arrived than may be held back")

    def test_a_pending_publish_fails_with_its_session(self) -> None:
        self.others("s")
        new_events = make_drafts(9, "s")
        self.node.publish(new_events, whole=True)
        self.node.answer()
        self.assertEqual(self.node.fired, [])
        self.node.consumer.hold()
        self.assertEqual(self.node.fired, [(new_events, None, 0)])

    def test_a_response_after_the_end_of_its_session_fails(self) -> None:
        new_events = make_drafts(9, "s")
        self.node.publish(new_events, whole=True)
        self.node.consumer.hold()
        self.node.answer()
        self.assertEqual(self.node.fired, [(new_events, None, 0)])
