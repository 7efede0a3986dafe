"""Notifications for systemd: the server serves, it stops, and it does not hang (sd_notify(3), sd_watchdog_enabled(3)).

With `Type=notify`, `systemctl start` returns when the server serves. With `WatchdogSec=`, systemd kills and restarts a
process whose event loop no longer runs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from twisted.logger import Logger

from chatws.interfaces import Clock

__all__ = ["SystemdNotifier"]

log = Logger()

#: Notifications in each `WatchdogSec`. sd_watchdog_enabled(3) recommends two. With three, one may come late.
PER_WATCHDOG_INTERVAL = 3


class SystemdNotifier:
    """Sends notifications to systemd, or to no one if the process is not a service of `Type=notify`.

    It removes systemd's variables from the environment, because they are not for the processes that this one starts.

    :param environment: the variables of this process.
    """

    def __init__(self, environment: MutableMapping[str, str], clock: Clock) -> None:
        self._clock = clock
        path = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        microseconds = environment.pop("WATCHDOG_USEC", "")
        is_for_this_process = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval = 0.0
        if self._address and is_for_this_process and microseconds.isdecimal():
            self._interval = int(microseconds) / 1e6 / PER_WATCHDOG_INTERVAL

    def ready(self) -> None:
        """Report that the server serves, and begin to report that its event loop runs."""
        self._send("READY=1")
        if self._interval:
            log.info(
                "systemd restarts this process if it hangs for {seconds:g} s",
                seconds=self._interval * PER_WATCHDOG_INTERVAL,
            )
            self._report_alive()

    def stopping(self) -> None:
        """Report that the server stops. It still reports that its event loop runs."""
        self._send("STOPPING=1")

    def _report_alive(self) -> None:
        self._send("WATCHDOG=1")
        self._clock.callLater(self._interval, self._report_alive)

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.connect(self._address)
                notify.send(state.encode())
        except OSError as error:
            # systemd is busy or gone: the next notification follows within a third of its limit
            log.warn("systemd cannot be notified: {reason}", reason=str(error))
