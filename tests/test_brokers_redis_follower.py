"""The order in which a node of the Redis log is told, whatever comes first: the answer or the copy, ours or others'."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.contract import Audience, Draft, Event
from chatws.brokers.redis.follower import MAX_INBOX, Call, Follower
from chatws.brokers.redis.wire import Reply, Stored, encode_drafts, open_body
from chatws.errors import Unavailable

AUDIENCE = Audience(("conversation:1",))


class Redis:
    """What append.lua does, for one node of several: each batch gets an answer (if it is ours) and a copy."""

    def __init__(self) -> None:
        self.seq = 0
        self.log: list[tuple[bytes, str]] = []  # bodies and batches' names
        self.order: list[str] = []  # names of all events ever published
        self.answers: deque[tuple[Call, Reply]] = deque()
        self.copies: deque[bytes] = deque()
        self.keys: dict[str, int] = {}

    def append(self, drafts: list[Draft], name: str, call: Call | None, *, whole: bool) -> None:
        before = len(self.log)
        _, bodies = encode_drafts(drafts)
        duplicates: list[float] = []
        places: list[str] = []
        copied: list[bytes] = []
        for index, (draft, body) in enumerate(zip(drafts, bodies, strict=True)):
            if draft.key in self.keys:
                duplicates += (index, self.keys[draft.key], 1.0)
                continue
            offset = 0
            if not draft.transient:
                self.log.append((body, name))
                offset = len(self.log)
            if draft.key is not None:
                self.keys[draft.key] = offset
            self.order.append(draft.name)
            if whole or draft.transient:
                places.append(f"{offset},{len(body)}")
                copied.append(body)
            else:
                places.append(f"{offset},-1")
        if places:
            self.seq += 1
            header = f'["e",{self.seq},{before},1.0,"{name}",[{",".join(places)}]]\n'
            self.copies.append(header.encode() + b"".join(copied))
        if call is not None:
            self.answers.append((call, Reply(self.seq, before, 1.0, False, duplicates)))

    async def read(self, after: int, limit: int) -> tuple[bool, list[Stored]]:
        entries = list(enumerate(self.log, 1))[after:]
        found = [Stored(open_body(body, offset, 1.0), name) for offset, (body, name) in entries]
        return len(found) <= limit, found[:limit]


class Node:
    """A follower in a session, and what it said."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.told: list[Event] = []
        self.troubles: list[str] = []
        self.follower = Follower(self.told.extend, redis.read, self.troubles.append)
        self.follower.epoch = "e"
        self.count = 0
        self.fired: list[tuple[list[Draft], list[Event] | None, int]] = []

    def begin(self, *, anew: bool) -> None:
        came = self.follower.expect("hello")
        self.follower.receive(f'["e",{self.redis.seq},{len(self.redis.log)},1.0,"hello",[]]\n'.encode())
        assert came.called
        Deferred.fromCoroutine(self.follower.catch_up("hello", anew=anew)).addErrback(
            lambda failure: self.troubles.append(str(failure))
        )

    def publish(self, drafts: list[Draft], *, whole: bool) -> None:
        fired: Deferred[list[Event]] = Deferred()
        self.count += 1
        call = Call(f"n{self.count}", [(drafts, fired)])
        self.follower.sent(call)
        self.redis.append(drafts, call.name, call, whole=whole)
        fired.addCallbacks(
            lambda events: self.fired.append((drafts, events, len(self.told))),
            lambda failure: self.fired.append((drafts, None, failure.trap(Unavailable) and 0)),
        )

    def answer(self) -> None:
        call, reply = self.redis.answers.popleft()
        self.follower.answered(call, reply)

    def copy(self, count: int) -> None:
        for _ in range(min(count, len(self.redis.copies))):
            self.follower.receive(self.redis.copies.popleft())
        self.follower.flush()


def make_drafts(step: int, kinds: str) -> list[Draft]:
    """One for each letter: a stored one, a transient one, or one with a key that others use too."""
    return [
        Draft(f"{step}.{index}", AUDIENCE, b"{}", "k" if kind == "k" else None, kind == "t")
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
def test_every_batch_is_told_once_in_redis_order_and_fires_when_it_was(steps: list[tuple[str, object]]) -> None:
    redis = Redis()
    node = Node(redis)
    node.begin(anew=True)
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
    for drafts, events, told in node.fired:
        assert events is not None
        assert [event.name for event in events] == [draft.name for draft in drafts]
        before = node.told[:told]
        for event in events:
            assert event.duplicate or any(event is one for one in before), "the very event that was told, and before"


class Sessions(SynchronousTestCase):
    def setUp(self) -> None:
        self.redis = Redis()
        self.node = Node(self.redis)
        self.node.begin(anew=True)

    def others(self, *kinds: str) -> None:
        for number, kind in enumerate(kinds):
            self.redis.append(make_drafts(len(self.redis.order) + number, kind), f"o{number}", None, whole=True)

    def names(self) -> list[str]:
        return [event.name for event in self.node.told]

    def test_what_was_stored_between_two_sessions_is_told_when_the_second_begins(self) -> None:
        self.others("s")
        self.node.copy(1)
        self.node.follower.hold()
        self.others("st", "s")
        self.redis.copies.clear()
        self.node.begin(anew=False)
        self.assertEqual([event.offset for event in self.node.told], [1, 2, 3])
        self.others("t", "s")
        self.node.copy(2)
        self.assertEqual([event.offset for event in self.node.told], [1, 2, 3, 0, 4])
        self.assertEqual(self.node.troubles, [])

    def test_what_comes_before_the_greeting_of_a_session_is_told_in_its_place(self) -> None:
        self.node.follower.hold()
        self.others("s")
        self.redis.copies.clear()
        came = self.node.follower.expect("hello")
        self.others("t", "st")
        self.node.copy(2)
        self.assertFalse(came.called)
        self.node.follower.receive(b'["e",%d,2,1.0,"hello",[]]\n' % self.redis.seq)
        self.others("t")
        self.node.copy(1)
        self.successResultOf(Deferred.fromCoroutine(self.node.follower.catch_up("hello", anew=False)))
        self.assertEqual(self.names(), self.redis.order)
        self.assertEqual(self.node.troubles, [])

    def test_a_missing_batch_ends_the_session(self) -> None:
        self.others("s", "s")
        self.redis.copies.popleft()
        self.node.copy(1)
        self.assertEqual(self.node.troubles, ["events are missing"])
        self.assertEqual(self.node.told, [])

    def test_another_epoch_ends_the_session(self) -> None:
        self.node.follower.receive(b'["f",1,0,1.0,"",[]]\n')
        self.node.follower.flush()
        self.assertEqual(self.node.troubles, ["the log started anew"])

    def test_a_batch_that_cannot_be_read_from_the_log_ends_the_session(self) -> None:
        async def fail(after: int, limit: int) -> tuple[bool, list[Stored]]:
            raise Unavailable("gone")

        self.node.follower._read = fail
        self.redis.append(make_drafts(0, "s"), "o", None, whole=False)
        self.node.copy(1)
        [trouble] = self.node.troubles
        self.assertIn("gone", trouble)
        self.assertEqual(self.node.told, [])

    def test_a_read_that_fails_after_its_session_does_not_disturb_the_next(self) -> None:
        reading: Deferred[None] = Deferred()
        read = self.node.follower._read

        async def wait(after: int, limit: int) -> tuple[bool, list[Stored]]:
            await reading
            raise Unavailable("gone")

        self.node.follower._read = wait
        self.redis.append(make_drafts(0, "s"), "o", None, whole=False)
        self.node.copy(1)
        self.node.follower._read = read
        self.node.begin(anew=False)
        reading.callback(None)
        self.others("s")
        self.node.copy(1)
        self.assertEqual(self.node.troubles, [])
        self.assertEqual([event.offset for event in self.node.told], [1, 2])

    def test_what_waits_for_the_log_to_be_read_is_limited(self) -> None:
        self.node.follower.expect("hello")
        large = [Draft("large", AUDIENCE, b"x" * (MAX_INBOX // 4))]
        for number in range(5):
            self.redis.append(large, f"o{number}", None, whole=True)
        self.node.copy(3)
        self.assertEqual(self.node.troubles, [])
        self.node.copy(2)
        self.assertEqual(self.node.troubles[0], "more came than could be kept back")

    def test_a_call_that_waits_for_others_fails_with_its_session(self) -> None:
        self.others("s")
        drafts = make_drafts(9, "s")
        self.node.publish(drafts, whole=True)
        self.node.answer()
        self.assertEqual(self.node.fired, [])
        self.node.follower.hold()
        self.assertEqual(self.node.fired, [(drafts, None, 0)])

    def test_an_answer_that_comes_after_its_session_fails_too(self) -> None:
        drafts = make_drafts(9, "s")
        self.node.publish(drafts, whole=True)
        self.node.follower.hold()
        self.node.answer()
        self.assertEqual(self.node.fired, [(drafts, None, 0)])
