"""The supervisor's view of one worker: its process, the requests to it, and its restart after an exit."""

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

from chatws.config.schema import Config
from chatws.errors import Unavailable
from chatws.interfaces import Reactor
from chatws.runtime import signals
from chatws.runtime.backoff import backoff
from chatws.runtime.connection_counts import CountsFile
from chatws.workers import control_messages
from chatws.workers.ipc import IpcConnection, adopt_socket
from chatws.workers.log_relay import relog
from chatws.workers.shared_listener import SharedListener

__all__ = ["WorkerEvents", "WorkerProcess", "environment", "restart_delay"]

log = Logger()

#: Seconds: the first and the longest pause before a restart after several early exits. The first early exit has none.
#: Five seconds keep a worker that fails at once from filling the log. Its clients use the other workers meanwhile.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
#: Seconds of service after which an exit is not early, and the pauses begin again with none. They exceed the longest
#: pause several times, so a worker that fails soon after each start keeps its pauses.
MIN_UPTIME = 30.0
#: Bytes of unfinished output that are held, and characters of an output line that are logged: enough for any message
#: of the interpreter, and a bound for a program that writes binary data.
MAX_OUTPUT_HELD, MAX_OUTPUT_LINE = 10_000, 2000
#: Checks within `worker_timeout`. The supervisor counts checks and not seconds: after a pause of its own or of the
#: machine, one check is overdue at most, and the worker has the time of the others to respond.
CHECKS = 6


class WorkerEvents(Protocol):
    """The part of the supervisor that its workers call."""

    config: Config
    counts: CountsFile

    def broker_channel(self, worker: WorkerProcess) -> IpcConnection | None:
        """Return the end of a new channel to the broker, or None if each worker opens its own."""
        ...

    def on_ready(self, worker: WorkerProcess) -> None:
        """Note that the worker serves."""
        ...

    def failed(self, worker: WorkerProcess, reason: str, status: int) -> None:
        """Note that the worker cannot start, and ends.

        :param status: the exit status that the reason has for a server without workers.
        """
        ...

    def on_exit(self, worker: WorkerProcess, outcome: str) -> None:
        """Note that the worker's process has ended. The worker can be started again.

        :param outcome: a predicate, such as "ended with status 1".
        """
        ...


def restart_delay(early_exits: int) -> float:
    """Return the seconds to wait before the next start. There is no jitter: the workers are few, and share no peer."""
    return backoff(early_exits - 1, FIRST_PAUSE, LONGEST_PAUSE, lambda: 1.0) if early_exits else 0.0


def environment() -> dict[str, str]:
    """Return a worker's environment: the same module path, but no settings. The channel carries the settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHATWS_", "LISTEN_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class WorkerProcess(ProcessProtocol):
    """One worker, and its processes one after the other.

    :param number: the worker's number, from 0.
    :param owner: the supervisor.
    :param listeners: the listeners; each process inherits one socket of each.
    :param reactor_name: the name of the reactor, as in `twistd --reactor`; empty for the default.
    :ivar is_running: whether the worker serves.
    :ivar pid: the id of its process, or None.
    :ivar starts: number of processes started so far.
    :ivar hung: number of processes killed because they did not respond.
    :ivar broker_channel: the channel to the supervisor's broker; None if each worker opens its own.
    """

    def __init__(
        self, number: int, owner: WorkerEvents, listeners: Sequence[SharedListener], reactor: Reactor, reactor_name: str
    ) -> None:
        self.number = number
        self.is_running = False
        self.starts = 0
        self.hung = 0
        self.broker_channel: IpcConnection | None = None
        self._owner = owner
        self._listeners = listeners
        self._reactor = reactor
        self._reactor_name = reactor_name
        self._process: Any = None
        self._channel = IpcConnection(self._on_messages, self._on_channel_lost)
        self._pending: dict[int, Deferred[Any]] = {}
        self._last_request = 0
        self._running_since = 0.0
        self._early_exits = 0
        self._restart_call: DelayedCall | None = None
        self._kill_call: DelayedCall | None = None
        self._check_call: DelayedCall | None = None
        self._unanswered = 0
        self._output: dict[int, bytes] = {}
        self._outcome: str | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    # The process

    def start(self) -> None:
        """Start a process and send it the settings."""
        self._restart_call = None
        self.starts += 1
        self._output = {1: b"", 2: b""}
        ours, theirs = socket.socketpair()
        self._channel = IpcConnection(self._on_messages, self._on_channel_lost)
        adopt_socket(self._reactor, self._channel, ours.detach())
        self.broker_channel = self._owner.broker_channel(self)
        descriptors: dict[int, Any] = {1: "r", 2: "r", control_messages.CONTROL: theirs.fileno()}
        passed_sockets = [theirs]
        broker_descriptor = None
        if self.broker_channel is not None:
            ours, theirs = socket.socketpair()
            adopt_socket(self._reactor, self.broker_channel, ours.detach())
            broker_descriptor = control_messages.CONTROL + 1
            descriptors[broker_descriptor] = theirs.fileno()
            passed_sockets.append(theirs)
        sockets = []
        for listener in self._listeners:
            descriptor = max(descriptors) + 1
            descriptors[descriptor] = listener.socket_for(self.number).fileno()
            sockets.append(listener.inherited(descriptor))
        counts = self._owner.counts
        counts_descriptor = max(descriptors) + 1
        descriptors[counts_descriptor] = counts.descriptor
        null_input = os.open(os.devnull, os.O_RDONLY)
        descriptors[0] = null_input
        arguments = [sys.executable, "-P", "-m", "chatws.workers", str(self.number)]
        if self._reactor_name:
            arguments.append(self._reactor_name)
        try:
            with signals.block():
                self._process = self._reactor.spawnProcess(
                    self, sys.executable, arguments, environment(), childFDs=descriptors
                )
        except OSError as error:  # for example, out of memory: `start_later` tries again
            self._outcome = f"could not be started: {error.strerror}"
        finally:
            os.close(null_input)
            for passed in passed_sockets:
                passed.close()
        if self._process is None:
            return  # the other end of the channel is closed: `_on_channel_lost` reports the exit
        node = f"w{self.number}-{secrets.token_hex(4)}"
        table = control_messages.CountsTable(counts_descriptor, counts.rows, counts.secret)
        self._send(control_messages.Setup(self.number, node, self._owner.config, sockets, broker_descriptor, table))

    def start_later(self) -> float:
        """Start the next process: at once, or later after several early exits.

        :returns: seconds until the start.
        """
        pause = restart_delay(self._early_exits - 1 if self._early_exits else 0)
        self._restart_call = self._reactor.callLater(pause, self.start)
        return pause

    def stop(self, timeout: float) -> None:
        """Stop the process, and kill it after `timeout` seconds. `WorkerEvents.on_exit` follows if it runs."""
        if self._restart_call is not None:
            self._restart_call.cancel()
            self._restart_call = None
        self._stop_checks()
        if self._process is not None:
            self._signal("TERM")
            if self._kill_call is None:
                self._kill_call = self._reactor.callLater(timeout, self._kill_after_timeout)

    def kill(self) -> None:
        """Kill the process."""
        self._signal("KILL")

    def _schedule_check(self) -> None:
        timeout = self._owner.config.worker_timeout
        if timeout:
            self._check_call = self._reactor.callLater(timeout / CHECKS, self._check)

    def _check(self) -> None:
        """Ask the worker whether its event loop runs. Kill it if it has left `CHECKS` of these requests unanswered."""
        self._check_call = None
        if self._unanswered >= CHECKS:
            self.hung += 1
            log.error(
                "worker {worker}, process {pid}, did not respond for {seconds:g} s: the supervisor kills it",
                worker=self.number,
                pid=self.pid,
                seconds=self._owner.config.worker_timeout,
            )
            self.kill()
            return
        self._unanswered += 1
        self._send(control_messages.CheckAlive())
        self._schedule_check()

    def _stop_checks(self) -> None:
        if self._check_call is not None:
            self._check_call.cancel()
            self._check_call = None

    def _kill_after_timeout(self) -> None:
        self._kill_call = None
        log.error("worker {worker} does not end: the supervisor kills it", worker=self.number)
        self.kill()

    def _signal(self, name: str) -> None:
        if self._process is not None:
            with suppress(ProcessExitedAlready):
                self._process.signalProcess(name)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """See `IProcessProtocol`. Log output that bypasses the log, such as that of Python's faulthandler."""
        *lines, rest = (self._output[childFD] + data).split(b"\n")
        self._output[childFD] = rest[-MAX_OUTPUT_HELD:]
        for line in lines:
            self._log_output(line)

    def _log_output(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        log.error("worker {worker} wrote: {line}", worker=self.number, line=text[:MAX_OUTPUT_LINE])

    def processEnded(self, reason: Failure) -> None:
        """See `IProcessProtocol`."""
        self._outcome = _describe_exit(reason.value)
        self._report_exit()

    def _report_exit(self) -> None:
        """Report the end of the process, once its output has been read."""
        if self._outcome is None or self._channel.connected:
            return
        outcome, self._outcome = self._outcome, None
        for rest in self._output.values():
            if rest:
                self._log_output(rest)
        if self._kill_call is not None:
            self._kill_call.cancel()
            self._kill_call = None
        self._stop_checks()
        uptime = self._reactor.seconds() - self._running_since if self.is_running else 0.0
        self._early_exits = 0 if uptime >= MIN_UPTIME else self._early_exits + 1
        self._process = None
        self.is_running = False
        self._owner.counts.clear(self.number)
        self._owner.on_exit(self, outcome)

    # Messages

    def _send(self, message: Any) -> None:
        self._channel.send(control_messages.encode(message))

    def reconfigure(self, config: Config) -> None:
        """Send the worker the settings that can change while it runs, and the certificates of the listeners."""
        if self._process is not None:
            self._send(
                control_messages.Reconfigure(config, [listener.tls.pem for listener in self._listeners if listener.tls])
            )

    def metrics(self) -> Deferred[list[control_messages.Family]]:
        """Request the worker's metrics.

        :raises Unavailable: through the Deferred: the worker does not run, or ends before it responds.
        """
        return self._ask(control_messages.AskMetrics)

    async def problems(self) -> Mapping[str, str]:
        """Return the worker's problems by component.

        :raises Unavailable: the worker does not run, or ends before it responds.
        """
        problems: Mapping[str, str] = await self._ask(control_messages.AskReadiness)
        return problems

    def _ask(self, kind: Any) -> Deferred[Any]:
        response: Deferred[Any] = Deferred(lambda _: self._forget(number))
        self._last_request += 1
        number = self._last_request
        if self.is_running and self._channel.connected:
            self._pending[number] = response
            self._send(kind(number))
        else:
            response.errback(Unavailable("does not run"))
        return response

    def _forget(self, number: int) -> None:
        self._pending.pop(number, None)

    def _on_messages(self, messages: list[bytes]) -> None:
        for message in messages:
            self._handle(control_messages.from_worker.decode(message))

    def _handle(self, message: control_messages.ToSupervisor) -> None:
        if isinstance(message, control_messages.LogRecord):
            relog(self.number, message)
        elif isinstance(message, control_messages.Running):
            self.is_running = True
            self._running_since = self._reactor.seconds()
            self._unanswered = 0
            self._schedule_check()
            self._owner.on_ready(self)
        elif isinstance(message, control_messages.ReportAlive):
            self._unanswered = 0
        elif isinstance(message, control_messages.Failed):
            self._owner.failed(self, message.reason, message.status)
        elif message.number in self._pending:  # else the request was cancelled
            response = message.families if isinstance(message, control_messages.Metrics) else message.problems
            self._pending.pop(message.number).callback(response)

    def _on_channel_lost(self) -> None:
        pending, self._pending = self._pending, {}
        for response in pending.values():
            response.errback(Unavailable("has ended"))
        self._report_exit()


def _describe_exit(error: BaseException | None) -> str:
    """Describe the exit of a process as a predicate: "ended with status 1"."""
    number = getattr(error, "signal", None)
    if number:
        return f"was ended by {signal.Signals(number).name}"
    return f"ended with status {getattr(error, 'exitCode', None) or 0}"
