"""The timers of a connection: its deadline, and pauses in reading."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from chatws.chat.actions import Action
from chatws.chat.client import Client
from chatws.chat.interfaces import Identity
from chatws.errors import CloseCode
from chatws.interfaces import Clock, Schedule

__all__ = ["ConnectionTimers"]

#: Longest wait of one timer. A cancelled timer stays in memory until then (chatws.server.timer_wheel).
MAX_WAIT = 120.0
#: A renewal comes up to this part of its time early, by chance: all pages connect together after a restart.
SPREAD = 0.1


class ConnectionTimers:
    """Starts and cancels the timers of clients.

    :param execute: executes the actions of a client's session when a timer ends.
    :param renew: authenticates a client's request again.
    :param clock: schedules the ends of pauses, which may be shorter than the resolution of `schedule`.
    :param schedule: schedules deadlines.
    :param wall_clock: seconds since 1970, with which expiry times are compared.
    """

    def __init__(
        self,
        execute: Callable[[Client, list[Action]], None],
        renew: Callable[[Client], None],
        clock: Clock,
        schedule: Schedule,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._execute = execute
        self._renew = renew
        self._clock = clock
        self._schedule = schedule
        self._wall_clock = wall_clock

    def start_auth_deadline(self, client: Client, seconds: float) -> None:
        """Close the connection with 4408 unless it has sent an `auth` in time."""
        client.deadline = self._schedule(seconds, lambda: self._on_auth_deadline(client))

    def set_expiry(self, client: Client, identity: Identity) -> None:
        """Replace the deadline: at the end of the identity's time, close the connection with 4000 or renew it."""
        self.cancel_deadline(client)
        if identity.expires_at is not None:
            self._wait(client, max(0.0, identity.expires_at - self._wall_clock()), self._on_expiry)
        elif identity.renew_after is not None:
            self.schedule_renewal(client, identity.renew_after)

    def schedule_renewal(self, client: Client, seconds: float) -> None:
        """Replace the deadline: renew the identity in about `seconds`, and never later."""
        self.cancel_deadline(client)
        self._wait(client, seconds * random.uniform(1 - SPREAD, 1), self._renew)

    def _wait(self, client: Client, seconds: float, on_end: Callable[[Client], None]) -> None:
        part = min(seconds, MAX_WAIT)

        def on_part_end() -> None:
            client.deadline = None
            if seconds > part:
                self._wait(client, seconds - part, on_end)
            else:
                on_end(client)

        client.deadline = self._schedule(part, on_part_end)

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
        self._execute(client, client.session.close(CloseCode.RECONNECT, "the token has expired", True))

    def _on_pause_end(self, client: Client) -> None:
        delay = client.read_delay(self._clock.seconds())
        if delay:
            client.pause = self._clock.callLater(delay, self._on_pause_end, client)
        else:
            client.pause = None
            client.connection.resume_reading()
