"""Hold clients that have seen newer events than this node: they come from a node that has read further.

If this node admitted them at once, it would send them events twice, or claim that no event is missing when one may
be. So their `auth` or `subscribe` waits until this node has read that far, usually a few milliseconds. Their other
messages wait behind it.

A client may also claim an event that was never published, or that a restored history has lost. The queue asks the
broker for its last offset, one query at a time. It does not hold a client that is beyond it: that client's recovery
fails, and its page reloads its state.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from chatws.brokers.interface import Broker
from chatws.chat.actions import Action
from chatws.chat.client import Client
from chatws.chat.history import History
from chatws.chat.messages import Auth, Position, Subscribe
from chatws.errors import CloseCode, Unavailable
from chatws.interfaces import Cancellable, Schedule

__all__ = ["ResumeWaitQueue"]

log = Logger()

#: Seconds after which a waiting client is closed with 4503 and tries another node: far above the usual lag of a node,
#: and short for a person who waits for the page.
RESUME_WAIT_TIMEOUT = 5.0
#: Replaces a `last_event_id` beyond the broker's last event. No history can recover from it.
UNRECOVERABLE = ""


class _PendingResume:
    """A client that waits.

    :ivar offset: the offset that the history has to reach.
    :ivar message: the message that waits.
    :ivar start: runs the check that the client waits for.
    """

    __slots__ = ("client", "message", "offset", "start", "timer")

    timer: Cancellable

    def __init__(
        self, offset: int, client: Client, message: Auth | Subscribe, start: Callable[[], list[Action] | None]
    ) -> None:
        self.offset = offset
        self.client = client
        self.message = message
        self.start = start


class ResumeWaitQueue:
    """The waiting clients. Its length is their number.

    :param execute: executes the actions of a client whose wait has ended.
    :param schedule: schedules the timeouts.
    :ivar broker: holds the history. If it is not shared, no other node can be ahead of this one.
    """

    broker: Broker

    def __init__(self, history: History, execute: Callable[[Client, list[Action]], None], schedule: Schedule) -> None:
        self._history = history
        self._execute = execute
        self._schedule = schedule
        self._pending: list[_PendingResume] = []
        self._unchecked: list[_PendingResume] = []  # those that came after the query in progress had started
        self._is_querying = False

    def __len__(self) -> int:
        return len(self._pending)

    def run(
        self, client: Client, message: Auth | Subscribe, start: Callable[[], list[Action] | None]
    ) -> list[Action] | None:
        """Call `start` at once, or when the history has reached the last event that the client has seen.

        :param message: its `last_event_id` is replaced if the broker has no such event.
        :return: the result of `start`, or None if it is called later.
        """
        if message.last_event_id is None:
            return start()
        position = Position.parse(message.last_event_id)
        if position.epoch != self._history.epoch or position.offset <= self._history.last:
            return start()
        if not self.broker.shared:
            message.last_event_id = UNRECOVERABLE  # events published during the check must not make it valid
            return start()
        resume = _PendingResume(position.offset, client, message, start)
        resume.timer = self._schedule(RESUME_WAIT_TIMEOUT, lambda: self._reject(resume))
        self._pending.append(resume)
        self._unchecked.append(resume)
        self._query_broker()
        return None

    def _query_broker(self) -> None:
        """Compare the clients that no query has checked with the broker's last offset."""
        if self._is_querying or not self._unchecked:
            return
        self._is_querying = True
        checked, self._unchecked = self._unchecked, []
        epoch = self._history.epoch
        self.broker.offset_range().addCallbacks(
            lambda offsets: self._release_beyond(checked, epoch, offsets[1]),
            lambda failure: failure.trap(Unavailable),  # the clients wait until their timeout
        ).addErrback(lambda failure: log.failure("Cannot compare clients with the broker's history", failure)).addBoth(
            self._on_query_end
        )

    def _on_query_end(self, _: object) -> None:
        self._is_querying = False
        self._query_broker()

    def _release_beyond(self, checked: list[_PendingResume], epoch: str, last: int) -> None:
        """Start the clients that have seen an event which the broker does not have."""
        if self._history.epoch != epoch:
            return  # a reset forces all clients to resync
        beyond = [resume for resume in checked if resume.offset > last and resume in self._pending]
        for resume in beyond:
            resume.message.last_event_id = UNRECOVERABLE
        self._start(beyond)

    def history_advanced(self) -> None:
        """Resume the clients that the history has caught up with."""
        last = self._history.last
        self._start([resume for resume in self._pending if resume.offset <= last])

    def _start(self, ready: list[_PendingResume]) -> None:
        if not ready:
            return
        started = set(ready)
        self._pending = [resume for resume in self._pending if resume not in started]
        for resume in ready:
            resume.timer.cancel()
        for resume in ready:
            actions = resume.start() if resume.client.connection.is_open else None
            if actions:
                self._execute(resume.client, actions)

    def forget(self, client: Client) -> None:
        """Remove a client whose connection has closed."""
        for resume in self._pending:
            if resume.client is client:
                resume.timer.cancel()
        self._pending = [resume for resume in self._pending if resume.client is not client]
        self._unchecked = [resume for resume in self._unchecked if resume.client is not client]

    def _reject(self, resume: _PendingResume) -> None:
        self._pending.remove(resume)
        actions = resume.client.session.close(CloseCode.UNAVAILABLE, "this node is behind, try again")
        self._execute(resume.client, actions)
