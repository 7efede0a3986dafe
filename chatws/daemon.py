"""What twistd runs, a server or the supervisor of several: how it binds its ports, starts, and says that it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.config import Config
from chatws.errors import OperatorError
from chatws.logs import use_json

__all__ = ["Daemon"]

log = Logger()


class Daemon(Service):
    """A root service. The ports are bound first, with the rights that twistd itself was started with.

    :ivar twistd: the options of the twistd that runs this, when one does.
    """

    config: Config
    twistd: Mapping[str, Any] | None = None
    _bound: Deferred[None] | None = None
    _failing = False

    def setServiceParent(self, parent: Any) -> None:
        """See `IService`. twistd looks for the observer of its log in the application, which is the parent."""
        if self.config.log_format == "json":
            use_json(parent, self.twistd)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

    def privilegedStartService(self) -> None:
        """See `IService`."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self._bind()

    def startService(self) -> None:
        """See `IService`."""
        super().startService()  # type: ignore[no-untyped-call]
        self._bind()
        Deferred.fromCoroutine(self._start()).addErrback(self._cannot_start)

    def _bind(self) -> Deferred[None]:
        """Bind the ports, once. Fires when that is done, or `_failing`."""
        if self._bound is None:
            self._bound = Deferred.fromCoroutine(self._listen())
            self._bound.addErrback(self._cannot_start)
        return self._bound

    async def _listen(self) -> None:
        """Bind the ports.

        :raises OperatorError: one of them cannot be.
        """
        raise NotImplementedError

    async def _start(self) -> None:
        """Start everything else, unless it is `_failing`.

        :raises OperatorError: it cannot be.
        """
        raise NotImplementedError

    def _cannot_start(self, failure: Failure) -> None:
        if not isinstance(failure.value, OperatorError):
            log.failure("chatws cannot start", failure)
        self._fail(str(failure.value))

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """End the process; called once."""
        raise NotImplementedError
