"""What the supervisor does when a worker starts, fails, dies or does not end; what it shows of all. No process."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.config import validate
from chatws.config.schema import Config
from chatws.errors import ConfigError, Unavailable
from chatws.runtime.logging import format_event
from chatws.workers import control_messages, supervisor
from chatws.workers.control_messages import Family, LogRecord
from chatws.workers.ipc import IpcConnection, encode_frame
from chatws.workers.log_relay import MAX_UNSENT, RelayingObserver, relog
from chatws.workers.metrics_collector import merge, readiness
from chatws.workers.supervisor import STOP_TIMEOUT, Supervisor, per_worker_config
from chatws.workers.worker_process import CHECKS, MIN_UPTIME, WorkerProcess, environment, restart_delay
from tests.fakes_channel import FakePipe


class FakeProcess:
    """A worker's process, as the supervisor sees it, with its end of the channel."""

    def __init__(
        self, number: int, protocol: WorkerProcess, channel: IpcConnection, descriptors: dict[int, Any]
    ) -> None:
        self.pid = 1000 + number
        self.protocol = protocol
        self.channel = channel
        self.descriptors = descriptors
        self.signals: list[str] = []
        self.has_ended = False

    def signalProcess(self, name: str) -> None:
        if self.has_ended:
            raise ProcessExitedAlready
        self.signals.append(name)

    def say(self, message: Any) -> None:
        self.channel.dataReceived(encode_frame(control_messages.encode(message)))

    def heard(self) -> list[Any]:
        """What the supervisor has sent since the last time."""
        transport = self.channel._transport
        messages: list[Any] = []
        end = IpcConnection(
            lambda some: messages.extend(map(control_messages.from_supervisor.decode, some)), lambda: None
        )
        end.makeConnection(FakePipe())
        end.dataReceived(transport.value())
        transport.clear()
        return messages

    def end(self, reason: Exception | None = None) -> None:
        self.has_ended = True
        self.protocol.processEnded(Failure(reason or ProcessDone(0)))
        self.channel.connectionLost()


class FakeReactor(Clock):
    """Starts no process, and connects channels to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.channels: list[IpcConnection] = []
        self.refusal: OSError | None = None

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Factory) -> None:
        channel: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
        channel.makeConnection(FakePipe())
        self.channels.append(channel)

    def spawnProcess(
        self, protocol: Any, executable: str, words: list[str], environment: Any, childFDs: dict[int, Any]
    ) -> FakeProcess:
        if self.refusal is not None:
            raise self.refusal
        process = FakeProcess(len(self.processes), protocol, self.channels[-2], childFDs)
        self.processes.append(process)
        return process


class SupervisorTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.failures: list[tuple[str, int]] = []
        self.patch(
            supervisor, "exit_with_error", lambda reactor, reason, status: self.failures.append((reason, status))
        )
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        config = Config(workers=2, port=0, push_port=0, max_connections=5, drain_timeout=1.0)
        self.supervisor = Supervisor(config, self.reactor)
        self.supervisor.startService()
        self.first, self.second = self.reactor.processes

    def observe(self, event: dict[str, Any]) -> None:
        self.lines.append(json.loads(format_event(event))["message"])

    def tearDown(self) -> None:
        stopping = self.supervisor.stopService()
        for process in self.reactor.processes:
            if not process.has_ended:
                process.end()
        self.successResultOf(stopping)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def run_all(self) -> None:
        for process in self.reactor.processes:
            process.say(control_messages.Running())

    def newest(self) -> FakeProcess:
        return self.reactor.processes[-1]

    def die(self, process: FakeProcess) -> None:
        process.end(ProcessTerminated(signal=9))


class StartTests(SupervisorTestCase):
    def test_each_worker_gets_its_number_and_its_sockets(self) -> None:
        (first,), (two,) = self.first.heard(), self.second.heard()
        self.assertEqual((first.number, two.number), (0, 1))
        self.assertTrue(first.node.startswith("w0-"))
        self.assertNotEqual(first.node[3:], two.node[3:])
        self.assertEqual(first.config.max_connections, 2)
        self.assertEqual([socket.listener for socket in first.sockets], ["backends", "browsers"])
        inherited = {socket.descriptor for socket in first.sockets} | {
            0,
            1,
            2,
            control_messages.CONTROL,
            first.broker_descriptor,
            first.counts.descriptor,
        }
        self.assertEqual(set(self.first.descriptors), inherited)
        of_one, of_two = (
            {process.descriptors[socket.descriptor] for socket in setup.sockets}
            for process, setup in ((self.first, first), (self.second, two))
        )
        self.assertFalse(of_one & of_two)

    def test_the_supervisor_is_ready_when_all_workers_are(self) -> None:
        self.first.say(control_messages.Running())
        self.assertFalse([line for line in self.lines if line.startswith("2 workers listen")])
        self.second.say(control_messages.Running())
        self.assertTrue([line for line in self.lines if line.startswith("2 workers listen for browsers on 127.0.0.1")])

    def test_start_with_a_failing_worker_ends_with_its_reason(self) -> None:
        self.first.say(control_messages.Failed("the key cannot be read", 78))
        self.first.end(ProcessTerminated(1))
        self.second.say(control_messages.Failed("the key cannot be read", 78))
        self.assertEqual(self.failures, [("the key cannot be read", 78)])

    def test_start_with_a_worker_that_exits_silently_fails(self) -> None:
        self.die(self.second)
        self.assertEqual(self.failures, [("worker 1 was ended by SIGKILL before it could serve: see the log", 1)])

    def test_a_stop_while_the_broker_opens_starts_no_worker(self) -> None:
        reactor = FakeReactor()
        supervisor = Supervisor(Config(workers=2, port=0, push_port=0), reactor)
        opened: Deferred[None] = Deferred()
        with mock.patch.object(supervisor._broker_server, "start", return_value=opened):
            supervisor.startService()
        stopping = supervisor.stopService()
        opened.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(reactor.processes, [])


class DeathTests(SupervisorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.run_all()

    def test_an_ended_worker_is_replaced_at_once_with_its_number(self) -> None:
        self.first.heard()
        self.reactor.advance(MIN_UPTIME)
        self.die(self.first)
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 3)
        (setup,) = self.newest().heard()
        self.assertEqual(setup.number, 0)
        self.assertIn("worker 0 was ended by SIGKILL; another one starts now", self.lines)
        self.assertEqual(self.failures, [])

    def test_workers_that_fail_early_are_replaced_with_growing_delays(self) -> None:
        pauses = []
        for _ in range(6):
            count = len(self.reactor.processes)
            self.die(self.newest())
            began = self.reactor.seconds()
            while len(self.reactor.processes) == count:
                self.reactor.advance(0.25)
            pauses.append(self.reactor.seconds() - began)
        self.assertEqual(pauses, [0.25, 0.5, 1.0, 2.0, 4.0, 5.0])
        self.newest().say(control_messages.Running())
        self.reactor.advance(MIN_UPTIME)
        self.die(self.newest())
        self.reactor.advance(0)
        self.assertFalse(self.newest().has_ended)

    def test_restart_that_cannot_fork_is_retried(self) -> None:
        self.die(self.first)
        self.reactor.refusal = OSError(errno.ENOMEM, "Cannot allocate memory")
        self.reactor.advance(0)
        for channel in self.reactor.channels[-2:]:
            channel.connectionLost()  # as the other ends are closed
        self.assertEqual(len(self.reactor.processes), 2)
        self.assertIn("worker 0 could not be started: Cannot allocate memory; another one starts in 0.5 s", self.lines)
        self.reactor.refusal = None
        self.reactor.advance(0.5)
        self.assertEqual(len(self.reactor.processes), 3)
        (setup,) = self.newest().heard()
        self.assertEqual(setup.number, 0)

    def test_the_last_output_of_a_worker_is_read_before_its_end(self) -> None:
        self.first.has_ended = True
        self.first.protocol.processEnded(Failure(ProcessTerminated(1)))
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 2)
        self.first.say(control_messages.Failed("the certificate has gone", 78))
        self.first.channel.connectionLost()
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 3)
        self.assertIn("worker 0 cannot start: the certificate has gone", self.lines)

    def test_output_outside_of_the_log_is_logged_by_lines(self) -> None:
        self.first.protocol.childDataReceived(2, b"Segmenta")
        self.first.protocol.childDataReceived(2, b"tion fault\nrest")
        self.die(self.first)
        output = [line for line in self.lines if line.startswith("worker 0 wrote")]
        self.assertEqual(output, ["worker 0 wrote: Segmentation fault", "worker 0 wrote: rest"])

    def test_a_worker_that_reads_no_events_is_killed(self) -> None:
        self.supervisor._kill_stuck_worker(self.supervisor.workers[1])
        self.assertEqual((self.first.signals, self.second.signals), ([], ["KILL"]))

    def check(self, times: int, *responding: FakeProcess) -> None:
        """Let `times` checks pass, to which the given processes respond."""
        for _ in range(times):
            self.reactor.advance(self.supervisor.config.worker_timeout / CHECKS)
            for process in responding:
                process.say(control_messages.ReportAlive())

    def test_a_worker_that_does_not_respond_is_killed_and_replaced(self) -> None:
        self.check(CHECKS, self.second)
        self.assertEqual(self.first.signals, [])
        self.check(1, self.second)
        self.assertEqual((self.first.signals, self.second.signals), (["KILL"], []))
        self.assertIn("worker 0, process 1000, did not respond for 30 s: the supervisor kills it", self.lines)
        self.assertEqual([worker.hung for worker in self.supervisor.workers], [1, 0])
        self.die(self.first)
        self.reactor.advance(0)
        self.newest().say(control_messages.Running())
        self.check(CHECKS * 3, self.second, self.newest())
        self.assertEqual((self.newest().signals, self.second.signals), ([], []))

    def test_a_worker_that_responds_late_is_not_killed(self) -> None:
        for _ in range(5):
            self.check(CHECKS, self.second)
            self.first.say(control_messages.ReportAlive())
        self.assertEqual(self.first.signals, [])

    def test_a_pause_of_the_supervisor_does_not_count(self) -> None:
        self.reactor.advance(3600)  # one turn: the reactor did not run meanwhile
        self.check(CHECKS - 1)
        self.assertEqual(self.first.signals + self.second.signals, [])
        self.check(1)
        self.assertEqual((self.first.signals, self.second.signals), (["KILL"], ["KILL"]))

    def test_a_worker_that_is_starting_or_stopping_is_not_checked(self) -> None:
        self.die(self.first)
        self.reactor.advance(0)
        self.check(CHECKS * 2, self.second)
        self.assertEqual(self.newest().signals, [])
        self.newest().heard()
        self.supervisor.stopService()
        self.check(1)
        self.assertEqual(self.newest().heard(), [])

    def test_a_timeout_of_0_disables_the_checks(self) -> None:
        self.die(self.first)
        self.supervisor.config = replace(self.supervisor.config, worker_timeout=0.0)
        self.reactor.advance(0)
        self.newest().say(control_messages.Running())
        self.newest().heard()
        self.reactor.advance(1000)
        self.assertEqual(self.newest().heard(), [])

    def test_a_stop_ends_all_workers_and_kills_those_that_remain(self) -> None:
        stopping = self.supervisor.stopService()
        self.assertEqual((self.first.signals, self.second.signals), (["TERM"], ["TERM"]))
        self.first.end()
        self.reactor.advance(1.0 + STOP_TIMEOUT - 0.1)
        self.assertEqual(self.second.signals, ["TERM"])
        self.reactor.advance(0.1)
        self.assertEqual(self.second.signals, ["TERM", "KILL"])
        self.assertNoResult(stopping)
        self.die(self.second)
        self.successResultOf(stopping)
        self.assertEqual(len(self.reactor.processes), 2)

    def test_a_stop_cancels_pending_replacements(self) -> None:
        self.die(self.first)
        stopping = self.supervisor.stopService()
        self.second.end()
        self.successResultOf(stopping)
        self.assertEqual(len(self.reactor.processes), 2)


class ConfigurationTests(SupervisorTestCase):
    def test_a_valid_reload_reaches_all_workers_and_replacements(self) -> None:
        self.run_all()
        for process in self.reactor.processes:
            process.heard()
        whole = Config(workers=2, port=0, push_port=0, max_connections=9, max_subscriptions=7, drain_timeout=1.0)
        lines = self.supervisor.reconfigure(replace(whole, ping_interval=1.0))
        self.assertIn("max_connections: 5 → 9", lines)
        self.assertIn("ping_interval has changed: this needs a restart", lines)
        for process in self.reactor.processes:
            (told,) = process.heard()
            self.assertEqual((told.config.max_connections, told.config.max_subscriptions), (4, 7))
        with self.assertRaises(ConfigError):
            self.supervisor.reconfigure(replace(whole, audience=("x=nobody",)))
        self.assertEqual(self.first.heard(), [])
        self.die(self.first)
        self.reactor.advance(0)
        (setup,) = self.newest().heard()
        self.assertEqual((setup.config.max_subscriptions, setup.config.ping_interval), (7, Config().ping_interval))


class MonitoringTests(SupervisorTestCase):
    def ask(self) -> dict[str, str]:
        ready = readiness(self.supervisor.workers, lambda: "", self.reactor)
        return dict(self.successResultOf(self.answered(ready())))

    def answered(self, deferred: Any) -> Any:
        """Both workers answer, the second with a problem."""
        for process, problems in ((self.first, {}), (self.second, {"database": "away"})):
            for question in process.heard():
                if isinstance(question, control_messages.AskReadiness):
                    process.say(control_messages.ReadinessReport(question.number, problems))
        return deferred

    def test_readiness_requires_every_worker(self) -> None:
        self.run_all()
        self.assertEqual(self.ask(), {"worker 1": "database: away"})

    def test_readiness_with_a_stopped_worker_fails(self) -> None:
        self.assertEqual(self.ask(), {"worker 0": "does not run", "worker 1": "does not run"})

    def test_a_request_to_a_worker_that_dies_fails(self) -> None:
        self.run_all()
        asked = self.supervisor.workers[0].metrics()
        self.die(self.first)
        self.failureResultOf(asked, Unavailable)

    def test_a_late_response_is_ignored(self) -> None:
        self.run_all()
        asked = self.supervisor.workers[0].metrics()
        asked.cancel()
        self.failureResultOf(asked)
        self.first.heard()
        self.first.say(control_messages.Metrics(1, []))

    def test_metrics_of_all_workers_share_a_family_with_a_worker_label(self) -> None:
        gauge = GaugeMetricFamily("chatws_connections", "Open.", value=2)
        counter = CounterMetricFamily("chatws_events", "Events.", labels=["event"])
        counter.add_metric(["typing"], 3)
        told = Family("chatws_connections", "Open.", "gauge", [("chatws_connections", {}, 5.0)])
        merged = merge([("0", [gauge, counter]), ("1", [told])])
        self.assertEqual([family.name for family in merged], ["chatws_connections", "chatws_events"])
        self.assertEqual(
            [(sample.name, sample.labels, sample.value) for family in merged for sample in family.samples],
            [
                ("chatws_connections", {"worker": "0"}, 2),
                ("chatws_connections", {"worker": "1"}, 5),
                ("chatws_events_total", {"event": "typing", "worker": "0"}, 3),
            ],
        )


class LineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.output: list[LogRecord] = []
        self.channel = IpcConnection(lambda messages: None, lambda: None)
        self.transport = FakePipe()
        self.channel.makeConnection(self.transport)
        self.log = Logger(namespace="chatws.chat", observer=RelayingObserver(self.channel))

    def told(self) -> list[LogRecord]:
        result: list[Any] = []
        end = IpcConnection(lambda some: result.extend(map(control_messages.from_worker.decode, some)), lambda: None)
        end.makeConnection(FakePipe())
        end.dataReceived(self.transport.value())
        self.transport.clear()
        return result

    def again(self) -> list[dict[str, Any]]:
        """Through the supervisor's log, as JSON."""
        lines: list[dict[str, Any]] = []

        def observe(event: dict[str, Any]) -> None:
            lines.append(json.loads(format_event(event)))

        globalLogPublisher.addObserver(observe)
        try:
            for item in self.told():
                relog(4, item)
        finally:
            globalLogPublisher.removeObserver(observe)
        return lines

    def test_a_worker_s_log_line_is_written_with_its_number(self) -> None:
        self.log.warn("user {user}: {text}", user=7, text="{evil}", other=[1])
        (line,) = self.again()
        self.assertEqual(line["message"], "worker 4: user 7: {evil}")
        self.assertEqual((line["level"], line["logger"], line["worker"]), ("warn", "chatws.chat", 4))
        self.assertEqual((line["user"], line["text"], line["other"]), (7, "{evil}", "[1]"))

    def test_relayed_failure_keeps_its_traceback(self) -> None:
        try:
            raise KeyError("here")
        except KeyError:
            self.log.failure("a fault")
        (line,) = self.again()
        self.assertEqual(line["message"], "worker 4: a fault")
        self.assertIn("KeyError: 'here'", line["traceback"])
        self.flushLoggedErrors(RuntimeError)

    def test_log_lines_that_the_supervisor_does_not_read_are_counted(self) -> None:
        self.transport.room = 0
        for _ in range(3000):
            self.log.info("{text}", text="x" * 1000)
        self.assertLess(self.channel.unsent, MAX_UNSENT + 10_000)
        self.transport.drain()
        self.log.info("after")
        last = self.told()[-1].fields["message"]
        self.assertRegex(last, r"^after \(before this, \d+ lines were dropped\)$")


class PlainTests(SynchronousTestCase):
    def test_per_worker_config_divides_the_connection_limit_and_keeps_no_limit(self) -> None:
        for limit, each in ((0, 0), (9, 4), (2, 1)):
            self.assertEqual(per_worker_config(Config(workers=2, max_connections=limit)).max_connections, each)

    def test_config_sent_to_a_worker_is_unchanged(self) -> None:
        config = Config(workers=2, secret=("a", "b"), listen=("unix:x",), message_rate=0.0, compression=True)
        table = control_messages.CountsTable(5, 2, b"secret")
        setup = control_messages.from_supervisor.decode(
            control_messages.encode(control_messages.Setup(0, "w0-1", config, [], None, table))
        )
        assert isinstance(setup, control_messages.Setup)
        self.assertEqual(setup.config, config)

    def test_the_first_replacement_is_immediate(self) -> None:
        self.assertEqual(restart_delay(0), 0.0)
        self.assertEqual(restart_delay(100), 5.0)

    def test_a_worker_inherits_modules_and_no_secrets(self) -> None:
        given = {"CHATWS_SECRET": "s" * 32, "LISTEN_FDS": "2", "PGPASSFILE": "x"}
        with mock.patch.dict(os.environ, given):
            result = environment()
        self.assertNotIn("CHATWS_SECRET", result)
        self.assertNotIn("LISTEN_FDS", result)
        self.assertEqual(result["PGPASSFILE"], "x")
        self.assertIn(str(Path(validate.__file__).parents[2]), result["PYTHONPATH"].split(os.pathsep))

    def test_settings_that_workers_cannot_share_are_rejected_first(self) -> None:
        for settings, output in (
            ({"listen": ("fd:3",), "auth_methods": ("trust",)}, '--listen "fd:3"'),
            ({"demo": True}, "--demo runs in one process"),
            ({"max_connections": 1}, "--max-connections"),
        ):
            with self.assertRaises(ConfigError) as caught:
                validate.check(Config(workers=2, **settings), None)
            self.assertIn(output, str(caught.exception))
