"""What twistd runs, a server or the supervisor of several: how it binds its ports, starts, and says that it cannot."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from chatws.config.schema import Config
from chatws.errors import ConfigError
from chatws.runtime.clock import ClockWatch
from chatws.runtime.start_report import StartReport
from chatws.runtime.systemd import SystemdNotifier

__all__ = ["RootService"]

log = Logger()


class RootService(Service):
    """A root service. The ports are bound first, with the rights that twistd itself was started with.

    :ivar start_report: tells the process that started a daemon whether it serves; None where twistd does not run this.
    :ivar log_observer: for the log of the twistd that runs this; None where something else runs it.
    :ivar systemd: notifies systemd; None in workers and embedded servers.
    :ivar clock_watch: warns about a changed system clock while the service runs; None in workers and embedded servers.
    """

    config: Config
    log_observer: Any = None
    start_report: StartReport | None = None
    systemd: SystemdNotifier | None = None
    clock_watch: ClockWatch | None = None
    _bound: Deferred[None] | None = None
    _failing = False
    _stopping = False

    def setServiceParent(self, parent: Any) -> None:
        """See `IService`. twistd looks for the observer of its log in the application, which is the parent."""
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def reconfigure(self, new: Config) -> tuple[str, ...]:
        """Apply what can be changed while clients are connected.

        :returns: a sentence for each setting that has changed, without any secret.
        :raises ConfigError: `new` is invalid. Then nothing has changed.
        """
        raise NotImplementedError

    def privilegedStartService(self) -> None:
        """See `IService`."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._bind()

    def startService(self) -> None:
        """See `IService`."""
        super().startService()  # type: ignore[no-untyped-call]
        if self.start_report is not None:
            self.start_report.take_over()
        if self.clock_watch is not None:
            self.clock_watch.start()
        self._bind()
        Deferred.fromCoroutine(self._start()).addErrback(self._cannot_start)

    def stopService(self) -> Any:
        """See `IService`. A start that is under way ends without an error."""
        self._stopping = True
        if self.systemd is not None:
            self.systemd.stopping()
        if self.clock_watch is not None:
            self.clock_watch.stop()
        return super().stopService()  # type: ignore[no-untyped-call]

    def _bind(self) -> Deferred[None]:
        """Bind the ports, once. Fires when that is done, or `_failing`."""
        if self._bound is None:
            self._bound = Deferred.fromCoroutine(self._listen())
            self._bound.addErrback(self._cannot_start)
        return self._bound

    async def _listen(self) -> None:
        """Bind the ports.

        :raises ConfigError: one of them cannot be.
        """
        raise NotImplementedError

    async def _start(self) -> None:
        """Start everything else. Each step may be the last: afterwards the service may be `_failing` or `_stopping`.

        :raises ConfigError: it cannot be.
        """
        raise NotImplementedError

    def _cannot_start(self, failure: Failure) -> None:
        if self._stopping:  # the parts that the start waits for have been stopped
            log.info("stopped before the start was complete: {reason}", reason=str(failure.value))
            return
        if isinstance(failure.value, ConfigError):
            self._fail(str(failure.value), failure.value.exit_status)
        else:
            log.failure("chatws cannot start", failure)
            self._fail(str(failure.value), 1)

    def _fail(self, reason: str, status: int) -> None:
        if not self._failing:
            self._failing = True
            if self.start_report is not None:
                self.start_report.failed(reason, status)
            self._abort_start(reason, status)

    def _started(self) -> None:
        """Report that the server serves."""
        if self.start_report is not None:
            self.start_report.started()
        if self.systemd is not None:
            self.systemd.ready()

    def _abort_start(self, reason: str, status: int) -> None:
        """End the process with `status`, and `reason` as the error. Called once."""
        raise NotImplementedError
