"""Sends webhooks: on every node of a broker, of which one at a time is the sender.

One loop asks the broker for the queue's events (`Broker.exchange_webhooks`), which makes the node the sender or keeps
it so, and sends one request after the other. Neither a slow receiver nor an unavailable broker delays anything else.
docs/adr/0021-webhooks.md proves that the reported state ends right.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Broker
from chatws.brokers.webhook_queue import WebhookReply, WebhookRequest
from chatws.errors import Unavailable
from chatws.ids import Id, sort_ids
from chatws.interfaces import Reactor, zope_clock
from chatws.runtime.backoff import backoff
from chatws.runtime.throttled_log import ThrottledLog
from chatws.webhooks.batches import MAX_EVENTS, Agents, Batches, Delivery, Snapshot, body_of
from chatws.webhooks.client import Answer

__all__ = ["Poster", "ServerState", "WebhookSender", "WebhookSettings", "WebhookStats"]

#: Seconds beyond a request's time-out for which a node stays the sender without another exchange. If it dies, another
#: node takes over after both.
LEASE_MARGIN = 10.0
#: Seconds after an exchange in which a request may begin. A process that was paused in between asks again.
FRESH = LEASE_MARGIN / 2
#: Seconds between two exchanges of a sender without events, and of a node that is not the sender.
IDLE_PAUSE, STANDBY_PAUSE = 1.0, 2.0
#: Seconds between attempts after a failure: the first, and the longest; and the longest that a receiver may ask for.
FIRST_RETRY, LONGEST_RETRY, LONGEST_RETRY_AFTER = 1.0, 60.0, 300.0
#: Seconds between two exchanges while a retry waits: the lease is renewed, and the snapshot of a reset stays new.
WAITING_PAUSE = 5.0
#: Seconds that a stop waits for the broker: twice, for the present exchange and for its last one.
STOP_TIMEOUT = 2.0
#: The number of the reset that is due when a queue begins.
FIRST_RESET = 1
#: Statuses that say nothing about the size of the request.
REFUSALS = frozenset({401, 403, 429, 503})


class Poster(Protocol):
    """Sends requests: `chatws.webhooks.client.WebhookClient`."""

    def post(self, body: bytes) -> Coroutine[Deferred[Any], Any, Answer]:
        """Sign and send a request. Never fails, also when it is cancelled."""
        ...


class ServerState(Agents, Protocol):
    """What the server knows about its clients besides the queue."""

    def statuses(self) -> Mapping[str, str]:
        """Return the statuses of agents online whose status is not `online`, by the text of the id."""
        ...

    def contacts(self) -> Awaitable[Sequence[tuple[Id, Id]]]:
        """Return the contacts online, each with its conversation."""
        ...

    def forget(self, online: Set[Id]) -> None:
        """Forget agents that are not online."""
        ...


@dataclass(frozen=True)
class WebhookSettings:
    """Settings.

    :ivar events: the names of the events to send.
    :ivar timeout: seconds for a request.
    :ivar max_body: bytes of a request body.
    :ivar heartbeat: seconds between two heartbeats of an agent.
    :ivar start_delay: seconds after the start of a broker in memory in which nothing is sent.
    """

    events: frozenset[str]
    timeout: float = 10.0
    max_body: int = 65_536
    heartbeat: float = 30.0
    start_delay: float = 40.0


@dataclass
class WebhookStats:
    """Counters since the start.

    :ivar is_sender: whether this node is the sender.
    :ivar requests: requests by status; 0 without an answer.
    :ivar queued: events in the queue, as of the last exchange of this node as the sender.
    :ivar dropped: events that the full queue has dropped, by priority, as of then.
    :ivar failing_since: when the first of the present failures in a row was, in seconds since 1970; 0 without one.
    """

    is_sender: bool = False
    requests: dict[int, int] = field(default_factory=dict)
    queued: int = 0
    dropped: tuple[int, int, int] = (0, 0, 0)
    failing_since: float = 0.0


class WebhookSender:
    """The loop.

    :param node: the name of this node.
    :param jitter: returns a number from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        broker: Broker,
        client: Poster,
        state: ServerState,
        settings: WebhookSettings,
        *,
        node: str,
        reactor: Reactor,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.stats = WebhookStats()
        self.batches = Batches(settings.events, settings.max_body, state)
        self._broker = broker
        self._client = client
        self._state = state
        self._settings = settings
        self._node = node
        self._reactor = reactor
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._throttled_log = ThrottledLog(self._log, reactor, max_reasons=100)
        self._is_running = False
        self._is_awake = False
        self._pause: Deferred[None] | None = None
        self._posting: Deferred[Answer] | None = None
        self._loop: Deferred[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._next_heartbeat = 0.0

    def start(self) -> None:
        """Begin."""
        self._is_running = True
        self._loop = Deferred.fromCoroutine(self._run())

    async def stop(self) -> None:
        """Give up the present request, and let another node be the sender."""
        self._is_running = False
        for waiting in (self._pause, self._posting):
            if waiting is not None:
                waiting.cancel()
        if self._loop is not None:
            await self._within_stop_timeout(self._loop)
        if self.stats.is_sender:
            self.stats.is_sender = False
            released = self._broker.exchange_webhooks(self._request(seconds=0.0))
            await self._within_stop_timeout(released.addErrback(_ignore_unavailable))

    async def _within_stop_timeout(self, work: Deferred[Any]) -> None:
        """Wait for `work`, but not for a broker that does not respond."""
        over: Deferred[None] = Deferred()
        timer = self._reactor.callLater(STOP_TIMEOUT, over.callback, None)

        def done(_: object) -> None:
            if timer.active():
                timer.cancel()
                over.callback(None)

        work.addBoth(done)
        await over

    def wake(self) -> None:
        """Look at the queue now: something has been added."""
        self._is_awake = True
        if self.stats.is_sender and self._pause is not None and self._reactor.seconds() >= self._not_before:
            self._pause.cancel()

    async def _run(self) -> None:
        while self._is_running:
            try:
                pause = await self._step()
            except Unavailable as error:
                self._throttled_log.warn("unavailable", "webhooks wait for the broker: {reason}", reason=error.message)
                pause = STANDBY_PAUSE
            except Exception:
                self._log.failure("the sender of webhooks failed")
                pause = WAITING_PAUSE
            if pause and self._is_running and not self._is_awake:
                await self._sleep(pause)

    async def _sleep(self, seconds: float) -> None:
        self._pause = deferLater(zope_clock(self._reactor), seconds)
        with suppress(CancelledError):
            await self._pause
        self._pause = None

    def _request(self, seconds: float) -> WebhookRequest:
        batches = self.batches
        return WebhookRequest(
            self._node,
            seconds,
            batches.queue,
            batches.acked,
            batches.loaded,
            batches.room,
            batches.reset_done,
            MAX_EVENTS,
            self._settings.start_delay,
        )

    async def _step(self) -> float:
        """Ask the broker, and send at most one request. Return the seconds until the next step."""
        settings, batches, reactor = self._settings, self.batches, self._reactor
        self._is_awake = False
        asked_at = reactor.seconds()
        reply = await self._broker.exchange_webhooks(self._request(settings.timeout + LEASE_MARGIN))
        if not reply.is_sender:
            self.stats.is_sender = False
            return STANDBY_PAUSE
        if not self.stats.is_sender or reply.name != batches.queue:
            await self._become_sender(reply)
            return 0.0 if not reply.wait else min(reply.wait, WAITING_PAUSE)
        self._note(reply)
        if reply.wait:
            return min(reply.wait, WAITING_PAUSE)
        if batches.needs_reset(reply.reset):
            await self._start_reset(reply)
        else:
            batches.add(reply.items)
        now = reactor.seconds()
        if now >= self._next_heartbeat and "heartbeat" in settings.events:
            batches.remove_heartbeats()
            if not reply.more and not batches.reset:
                self._next_heartbeat = max(self._next_heartbeat + settings.heartbeat, now + settings.heartbeat / 2)
                batches.add_heartbeats(self._wall_clock())
                self._state.forget(batches.view)
        if not batches:
            return 0.0 if reply.more else min(IDLE_PAUSE, self._heartbeat_pause(now))
        if now < self._not_before:
            return min(self._not_before - float(now), WAITING_PAUSE)
        if now - asked_at > FRESH:
            return 0.0
        await self._send(reply.first_number)
        return 0.0

    def _heartbeat_pause(self, now: float) -> float:
        return max(0.01, self._next_heartbeat - now) if "heartbeat" in self._settings.events else IDLE_PAUSE

    async def _become_sender(self, reply: WebhookReply) -> None:
        """Begin with the events that are not acknowledged. The next exchange returns them."""
        if not self.stats.is_sender:
            self._log.info("this node sends webhooks")
        self.batches.clear(reply.name)
        self._failures, self._not_before = 0, 0.0
        self._next_heartbeat = self._reactor.seconds()
        self.batches.start_from(await self._broker.online())
        self.stats.is_sender = True

    def _note(self, reply: WebhookReply) -> None:
        stats = self.stats
        stats.queued = reply.queued
        if sum(reply.dropped) > sum(stats.dropped):
            self._throttled_log.warn(
                "dropped",
                "the queue of webhooks is full: {count} events have been dropped so far, and the receiver gets the "
                "whole state; raise --webhook-queue, or see why the receiver does not answer",
                count=sum(reply.dropped),
            )
        stats.dropped = reply.dropped

    async def _start_reset(self, reply: WebhookReply) -> None:
        online = await self._broker.online()
        contacts = None
        if self._settings.events & {"contact_online", "contact_offline"}:
            contacts = await self._state.contacts()
        snapshot = Snapshot(sort_ids(online), self._state.statuses(), contacts)
        # a new queue has every change since it began; only after a loss are changes older than the state left out
        position = reply.last if reply.reset > FIRST_RESET else 0
        self.batches.start_reset(reply.reset, snapshot, position, self._wall_clock())

    async def _send(self, first_number: int) -> None:
        batches = self.batches
        events = batches.next(first_number)
        answer = await self._post(body_of(events, self._wall_clock()))
        if answer.is_success:
            self._succeeded()
            batches.done(Delivery.ACKNOWLEDGED)
            return
        if not self._is_running:
            return
        is_refusal = answer.is_refused or answer.status in REFUSALS
        batches.done(Delivery.REFUSED if is_refusal else Delivery.FAILED)
        self._failed(answer)
        if batches.has_poison and (await self._post(body_of((), self._wall_clock()))).is_success:
            dropped = batches.drop_poison()
            self._log.error(
                "the receiver of webhooks fails with one event, which is dropped: {event}; last answer: {answer}",
                event=dropped,
                answer=answer.describe(),
            )
            self._failures, self._not_before = 0, 0.0
            if not dropped.startswith("presence_reset"):
                await self._broker.add_webhooks([], reset=True)

    async def _post(self, body: bytes) -> Answer:
        self._posting = Deferred.fromCoroutine(self._client.post(body))
        answer = await self._posting
        self._posting = None
        self.stats.requests[answer.status] = self.stats.requests.get(answer.status, 0) + 1
        return answer

    def _succeeded(self) -> None:
        if self._failures:
            self._log.info("the receiver of webhooks acknowledges again, after {count} failures", count=self._failures)
        self._failures, self._not_before, self.stats.failing_since = 0, 0.0, 0.0

    def _failed(self, answer: Answer) -> None:
        pause = backoff(self._failures, FIRST_RETRY, LONGEST_RETRY, self._jitter)
        if answer.retry_after is not None:
            pause = max(pause, min(answer.retry_after, LONGEST_RETRY_AFTER))
        self._failures += 1
        self._not_before = self._reactor.seconds() + pause
        self.stats.failing_since = self.stats.failing_since or self._wall_clock()
        self._throttled_log.warn(
            f"{answer.status}{answer.problem}",
            "a webhook was not acknowledged ({answer}); {hint}the next attempt is in {pause:.1f} s",
            answer=answer.describe(),
            hint=_hint(answer),
            pause=pause,
        )


def _ignore_unavailable(failure: Failure) -> None:
    """Take the failure of the last exchange: the lease ends by itself."""
    failure.trap(Unavailable)  # type: ignore[no-untyped-call]


def _hint(answer: Answer) -> str:
    """Return what to do about an answer that receivers give while they are set up."""
    if 300 <= answer.status < 400:
        return "redirects are not followed: use the URL that it redirects to; "
    if answer.status == 419:
        return "Laravel's CSRF protection refuses it: except the path from it; "
    if answer.status in (401, 403):
        return "does the receiver use the secret of --webhook-secret-file? "
    return ""
