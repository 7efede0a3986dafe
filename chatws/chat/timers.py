"""The timers of a connection: its deadline, and pauses in reading."""

from __future__ import annotations

import time
from collections.abc import Callable

from chatws.chat.actions import Action
from chatws.chat.client import Client
from chatws.errors import CloseCode
from chatws.interfaces import Clock, Schedule

__all__ = ["ConnectionTimers"]


class ConnectionTimers:
    """Starts and cancels the timers of clients.

    :param execute: executes the actions of a client's session when a timer ends.
    :param clock: schedules the ends of pauses, which may be shorter than the resolution of `schedule`.
    :param schedule: schedules deadlines.
    :param wall_clock: seconds since 1970, with which expiry times are compared.
    """

    def __init__(
        self,
        execute: Callable[[Client, list[Action]], None],
        clock: Clock,
        schedule: Schedule,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._execute = execute
        self._clock = clock
        self._schedule = schedule
        self._wall_clock = wall_clock

    def start_auth_deadline(self, client: Client, seconds: float) -> None:
        """Close the connection with 4408 unless it has sent an `auth` in time."""
        client.deadline = self._schedule(seconds, lambda: self._on_auth_deadline(client))

    def set_expiry(self, client: Client, expires_at: float | None) -> None:
        """Replace the deadline: close the connection with 4000 when its token expires.

        :param expires_at: seconds since 1970, or None for no deadline.
        """
        self.cancel_deadline(client)
        if expires_at is not None:
            delay = max(0.0, expires_at - self._wall_clock())
            client.deadline = self._schedule(delay, lambda: self._on_expiry(client))

    def cancel_deadline(self, client: Client) -> None:
        """Cancel the deadline, if there is one."""
        if client.deadline is not None:
            client.deadline.cancel()
            client.deadline = None

    def pause_reading(self, client: Client, seconds: float) -> None:
        """Read nothing for `seconds`, and longer if the session asks for it then."""
        if client.pause is None:
            client.connection.pause_reading()
            client.pause = self._clock.callLater(seconds, self._on_pause_end, client)

    def cancel_pause(self, client: Client) -> None:
        """Cancel the timer of a pause, if there is one: the connection closes."""
        if client.pause is not None:
            client.pause.cancel()
            client.pause = None

    def _on_auth_deadline(self, client: Client) -> None:
        client.deadline = None
        self._execute(client, client.session.on_auth_deadline())

    def _on_expiry(self, client: Client) -> None:
        client.deadline = None
        self._execute(client, client.session.close(CloseCode.RECONNECT, "the token has expired", True))

    def _on_pause_end(self, client: Client) -> None:
        delay = client.read_delay(self._clock.seconds())
        if delay:
            client.pause = self._clock.callLater(delay, self._on_pause_end, client)
        else:
            client.pause = None
            client.connection.resume_reading()
