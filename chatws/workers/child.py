"""The supervisor's view of one worker: its process, what is asked of it, and the next process when one has ended."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.channel import Channel, take_over
from chatws.config import Config
from chatws.errors import Unavailable
from chatws.workers import control
from chatws.workers.lines import say_again
from chatws.workers.sockets import Door

__all__ = ["Child", "Owner", "environment", "pause_before"]

log = Logger()

#: Seconds before the next start, by how many processes in a row have died young; then the last one.
PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0)
#: Seconds of service after which a process no longer died young.
GROWN_UP = 30.0


class Owner(Protocol):
    """The supervisor, as its workers see it."""

    config: Config

    def log_channel(self, child: Child) -> Channel | None:
        """The end of a new way to the log; None when each worker opens it itself."""
        ...

    def serves(self, child: Child) -> None:
        """It has begun to serve."""
        ...

    def failed(self, child: Child, reason: str) -> None:
        """It says that it cannot start, and ends."""
        ...

    def ended(self, child: Child, how: str) -> None:
        """Its process has ended; after this it may be started again."""
        ...


def pause_before(young_deaths: int) -> float:
    """Seconds to wait before the next start."""
    return PAUSES[min(young_deaths, len(PAUSES) - 1)]


def environment() -> dict[str, str]:
    """What a worker gets of ours: modules from the same places, but no setting, as those come over the channel."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHATWS_", "LISTEN_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Child(ProcessProtocol):
    """Worker `number`, one process after the other.

    :param reactor_name: for `twistd --reactor`; empty for the default.
    :param doors: whose sockets it gets.
    :ivar is_running: it serves.
    :ivar pid: of its process, or None.
    :ivar starts: how many processes there have been.
    """

    def __init__(self, number: int, owner: Owner, doors: Sequence[Door], reactor: Any, reactor_name: str) -> None:
        self.number = number
        self.is_running = False
        self.starts = 0
        self.log_channel: Channel | None = None
        self._owner = owner
        self._doors = doors
        self._reactor = reactor
        self._reactor_name = reactor_name
        self._process: Any = None
        self._channel = Channel(self._received, self._lost)
        self._asked: dict[int, Deferred[Any]] = {}
        self._questions = 0
        self._running_since = 0.0
        self._young_deaths = 0
        self._next: DelayedCall | None = None
        self._killing: DelayedCall | None = None
        self._said: dict[int, bytes] = {}
        self._how: str | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    # The process

    def start(self) -> None:
        """Start a process."""
        self._next = None
        self.starts += 1
        self._said = {1: b"", 2: b""}
        ours, theirs = socket.socketpair()
        self._channel = Channel(self._received, self._lost)
        take_over(self._reactor, self._channel, ours.detach())
        self.log_channel = self._owner.log_channel(self)
        descriptors: dict[int, Any] = {1: "r", 2: "r", control.CONTROL: theirs.fileno()}
        given = [theirs]
        log_descriptor = None
        if self.log_channel is not None:
            ours, theirs = socket.socketpair()
            take_over(self._reactor, self.log_channel, ours.detach())
            log_descriptor = control.CONTROL + 1
            descriptors[log_descriptor] = theirs.fileno()
            given.append(theirs)
        sockets = []
        for door in self._doors:
            descriptor = max(descriptors) + 1
            descriptors[descriptor] = door.of_worker(self.number).fileno()
            sockets.append(door.inherited(descriptor))
        nothing = os.open(os.devnull, os.O_RDONLY)
        descriptors[0] = nothing
        words = [sys.executable, "-P", "-m", "chatws.workers", str(self.number)]
        if self._reactor_name:
            words.append(self._reactor_name)
        try:
            self._process = self._reactor.spawnProcess(self, sys.executable, words, environment(), childFDs=descriptors)
        except OSError as error:  # no memory, say: whoever was killed for the lack of it has to be tried again
            self._how = f"could not be started: {error.strerror}"
        finally:
            os.close(nothing)
            for one in given:
                one.close()
        if self._process is None:
            return  # with no other end the channel is lost in a moment, and then this one has ended
        node = f"w{self.number}-{secrets.token_hex(4)}"
        self._send(control.Setup(self.number, node, self._owner.config, sockets, log_descriptor))

    def start_later(self) -> float:
        """Start the next process: at once, or later when the last ones died young. Tells after how many seconds."""
        pause = pause_before(self._young_deaths - 1 if self._young_deaths else 0)
        self._next = self._reactor.callLater(pause, self.start)
        return pause

    def stop(self, patience: float) -> None:
        """Let it end in its own time; kill it after `patience` seconds. `Owner.ended` follows if there is a process."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._process is not None:
            self._signal("TERM")
            if self._killing is None:
                self._killing = self._reactor.callLater(patience, self._kill_late)

    def kill(self) -> None:
        """End it now."""
        self._signal("KILL")

    def _kill_late(self) -> None:
        self._killing = None
        log.error("worker {worker} does not end, and is killed", worker=self.number)
        self.kill()

    def _signal(self, name: str) -> None:
        if self._process is not None:
            with suppress(ProcessExitedAlready):
                self._process.signalProcess(name)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """See `IProcessProtocol`: what is written past the log, as by Python's interpreter when it breaks down."""
        *lines, rest = (self._said[childFD] + data).split(b"\n")
        self._said[childFD] = rest[-10_000:]
        for line in lines:
            self._wrote(line)

    def _wrote(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        log.error("worker {worker} wrote: {line}", worker=self.number, line=text[:2000])

    def processEnded(self, reason: Failure) -> None:
        """See `IProcessProtocol`."""
        self._how = _how(reason.value)
        self._look_ended()

    def _look_ended(self) -> None:
        """The process has ended, and what it had to say has been read."""
        if self._how is None or self._channel.connected:
            return
        how, self._how = self._how, None
        for rest in self._said.values():
            if rest:
                self._wrote(rest)
        if self._killing is not None:
            self._killing.cancel()
            self._killing = None
        lived = self._reactor.seconds() - self._running_since if self.is_running else 0.0
        self._young_deaths = 0 if lived >= GROWN_UP else self._young_deaths + 1
        self._process = None
        self.is_running = False
        self._owner.ended(self, how)

    # What is said

    def _send(self, message: Any) -> None:
        self._channel.send(control.encode(message))

    def reconfigure(self, config: Config) -> None:
        """Have it take from `config` what can be changed."""
        if self._process is not None:
            self._send(control.Reconfigure(config))

    def metrics(self) -> Deferred[list[control.Family]]:
        """Its metrics, now.

        :raises Unavailable: through the Deferred, as the next: it does not run.
        """
        return self._ask(control.AskMetrics)

    async def problems(self) -> Mapping[str, str]:
        """What does not work there, by part."""
        found: Mapping[str, str] = await self._ask(control.AskReadiness)
        return found

    def _ask(self, kind: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred(lambda _: self._forget(number))
        self._questions += 1
        number = self._questions
        if self.is_running and self._channel.connected:
            self._asked[number] = answer
            self._send(kind(number))
        else:
            answer.errback(Unavailable("does not run"))
        return answer

    def _forget(self, number: int) -> None:
        self._asked.pop(number, None)

    def _received(self, messages: list[bytes]) -> None:
        for message in messages:
            self._told(message)

    def _told(self, message: bytes) -> None:
        told = control.from_worker.decode(message)
        if isinstance(told, control.Said):
            say_again(self.number, told)
        elif isinstance(told, control.Running):
            self.is_running = True
            self._running_since = self._reactor.seconds()
            self._owner.serves(self)
        elif isinstance(told, control.Failed):
            self._owner.failed(self, told.reason)
        elif told.number in self._asked:  # else it was waited for no longer
            answer = told.families if isinstance(told, control.Metrics) else told.problems
            self._asked.pop(told.number).callback(answer)

    def _lost(self) -> None:
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.errback(Unavailable("has ended"))
        self._look_ended()


def _how(error: BaseException | None) -> str:
    """How a process ended, in words."""
    number = getattr(error, "signal", None)
    if number:
        return f"was ended by {signal.Signals(number).name}"
    return f"ended with status {getattr(error, 'exitCode', None) or 0}"
