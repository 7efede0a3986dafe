"""Holding what backends push while the event log cannot be reached (`--push-queue`), instead of refusing it.

Nothing held is acknowledged before the log has it: a backend that waits for its answer waits, one that gives up and
pushes again with the same key is answered as a duplicate.
"""

from __future__ import annotations

import random
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import Draft, Event
from chatws.errors import Unavailable
from chatws.push.executor import PushTarget

__all__ = ["PushQueue"]

#: Seconds between two tries, at the beginning and at most; half of it at random.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
#: Events tried at once.
BATCH = 1000


class _Held(msgspec.Struct, gc=False):
    drafts: list[Draft]
    own_keys: set[str]
    answer: Deferred[list[Event]]


class PushQueue:
    """A `PushTarget` that stands before another one and publishes through it, in order, as soon as that can be done.

    What was tried once may have been stored although the answer was lost, so every event has an idempotency key: the
    backend's, or one of ours.

    :param target: the chat server.
    :param limit: events held at most; beyond it `publish` fails with `Unavailable`.
    :param clock: an IReactorTime.
    :ivar held: events held now.
    """

    _log = Logger()

    def __init__(self, target: PushTarget, limit: int, clock: Any) -> None:
        self._target = target
        self._limit = limit
        self._clock = clock
        self._queue: deque[_Held] = deque()
        self._trying = False
        self._next: DelayedCall | None = None
        self._pause = FIRST_PAUSE
        self._stopped = False
        self.held = 0
        self.disconnect = target.disconnect
        self.unsubscribe = target.unsubscribe
        self.online = target.online
        self.connections_of = target.connections_of
        self.event_id = target.event_id

    @property
    def audiences(self) -> Any:
        """See `PushTarget.audiences`."""
        return self._target.audiences

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `PushTarget.publish`."""
        held = _Held([], set(), Deferred())
        for draft in drafts:
            if draft.key is None:
                key = f"chatws-{uuid.uuid4().hex}"
                held.own_keys.add(key)
                draft = msgspec.structs.replace(draft, key=key)
            held.drafts.append(draft)
        if self._queue:
            return self._hold(held)
        published = self._target.publish(held.drafts)
        if published.called and type(published.result) is list:
            return published.addCallback(_receipts, held)
        published.addCallbacks(
            lambda events: held.answer.callback(_receipts(events, held)), self._not_published, errbackArgs=(held,)
        )
        published.addErrback(lambda failure: self._log.failure("after a publish", failure))
        return held.answer

    def stop(self) -> None:
        """Hold nothing any more: what is not in the log by now is not acknowledged."""
        self._stopped = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        while self._queue:
            self._take().answer.errback(Unavailable("the server stops"))

    def _not_published(self, failure: Failure, held: _Held) -> None:
        if isinstance(failure.value, Unavailable) and not self._stopped:
            self._hold(held)
        else:
            held.answer.errback(failure)

    def _hold(self, held: _Held) -> Deferred[list[Event]]:
        if self.held + len(held.drafts) > self._limit:
            refused = Unavailable("the event log cannot be reached, and no more can be held")
            if held.answer.called:
                return fail(refused)
            held.answer.errback(refused)
            return held.answer
        if not self._queue:
            self._log.warn("the event log cannot be reached: events are held, up to {limit}", limit=self._limit)
        self._queue.append(held)
        self.held += len(held.drafts)
        self._try_later()
        return held.answer

    def _take(self) -> _Held:
        held = self._queue.popleft()
        self.held -= len(held.drafts)
        return held

    def _try_later(self) -> None:
        if not self._trying and self._next is None:
            self._next = self._clock.callLater(self._pause * random.uniform(0.5, 1.0), self._try)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _try(self) -> None:
        self._next = None
        group: list[_Held] = []
        drafts: list[Draft] = []
        for held in self._queue:
            if group and len(drafts) + len(held.drafts) > BATCH:
                break
            group.append(held)
            drafts += held.drafts
        if not group:
            return
        self._trying = True
        tried = self._target.publish(drafts)
        tried.addBoth(self._tried, group)
        tried.addErrback(lambda failure: self._log.failure("after publishing what was held", failure))

    def _tried(self, outcome: list[Event] | Failure, group: list[_Held]) -> None:
        self._trying = False
        if self._stopped:
            return  # answered already
        if isinstance(outcome, Failure):
            if isinstance(outcome.value, Unavailable):
                self._try_later()
                return
            for _ in group:
                self._take().answer.errback(outcome)
        else:
            start = 0
            for held in group:
                self._take()
                end = start + len(held.drafts)
                held.answer.callback(_receipts(outcome[start:end], held))
                start = end
        self._pause = FIRST_PAUSE
        if self._queue:
            self._try()
        else:
            self._log.info("the event log can be reached again: nothing is held any more")


def _receipts(events: list[Event], held: _Held) -> list[Event]:
    """An event that was stored by a try whose answer was lost is no duplicate to a backend that named no key."""
    for event, draft in zip(events, held.drafts, strict=True):
        if event.duplicate and draft.key in held.own_keys:
            event.duplicate = False
    return events
