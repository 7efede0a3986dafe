"""What the supervisor does when a worker starts, fails, dies or does not end; what it shows of all. No process."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
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

from chatws import startup
from chatws.channel import Channel, framed
from chatws.config import Config
from chatws.errors import OperatorError, Unavailable
from chatws.logs import format_event
from chatws.workers import control
from chatws.workers.child import GROWN_UP, Child, environment, pause_before
from chatws.workers.control import Family, Said
from chatws.workers.lines import MOST_UNSENT, RelayingObserver, say_again
from chatws.workers.monitoring import merge, readiness
from chatws.workers.supervisor import PATIENCE, Supervisor, shared_out
from tests.fakes_channel import FakePipe


class FakeProcess:
    """A worker's process, as the supervisor sees it, with its end of the channel."""

    def __init__(self, number: int, protocol: Child, channel: Channel, descriptors: dict[int, Any]) -> None:
        self.pid = 1000 + number
        self.protocol = protocol
        self.channel = channel
        self.descriptors = descriptors
        self.signals: list[str] = []
        self.ended = False

    def signalProcess(self, name: str) -> None:
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(name)

    def say(self, message: Any) -> None:
        self.channel.dataReceived(framed(control.encode(message)))

    def heard(self) -> list[Any]:
        """What the supervisor has sent since the last time."""
        transport = self.channel._transport
        messages: list[Any] = []
        end = Channel(lambda some: messages.extend(map(control.from_supervisor.decode, some)), lambda: None)
        end.makeConnection(FakePipe())
        end.dataReceived(transport.value())
        transport.clear()
        return messages

    def end(self, reason: Exception | None = None) -> None:
        self.ended = True
        self.protocol.processEnded(Failure(reason or ProcessDone(0)))
        self.channel.connectionLost()


class FakeReactor(Clock):
    """Starts no process, and connects channels to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.channels: list[Channel] = []
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
        self.failures: list[str] = []
        self.patch(startup, "fail", lambda reactor, reason: self.failures.append(reason))
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        config = Config(workers=2, port=0, push_port=0, max_connections=5, drain_seconds=1.0)
        self.supervisor = Supervisor(config, self.reactor)
        self.supervisor.startService()
        self.first, self.second = self.reactor.processes

    def observe(self, event: dict[str, Any]) -> None:
        self.lines.append(json.loads(format_event(event))["message"])

    def tearDown(self) -> None:
        stopping = self.supervisor.stopService()
        for process in self.reactor.processes:
            if not process.ended:
                process.end()
        self.successResultOf(stopping)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def run_all(self) -> None:
        for process in self.reactor.processes:
            process.say(control.Running())

    def newest(self) -> FakeProcess:
        return self.reactor.processes[-1]

    def die(self, process: FakeProcess) -> None:
        process.end(ProcessTerminated(signal=9))


class StartTests(SupervisorTestCase):
    def test_each_worker_is_told_who_it_is_and_gets_its_own_sockets(self) -> None:
        (one,), (two,) = self.first.heard(), self.second.heard()
        self.assertEqual((one.number, two.number), (0, 1))
        self.assertTrue(one.node.startswith("w0-"))
        self.assertNotEqual(one.node[3:], two.node[3:])
        self.assertEqual(one.config.max_connections, 2)
        self.assertEqual([socket.door for socket in one.sockets], ["backends", "browsers"])
        inherited = {socket.descriptor for socket in one.sockets} | {0, 1, 2, control.CONTROL, one.log}
        self.assertEqual(set(self.first.descriptors), inherited)
        of_one, of_two = (
            {process.descriptors[socket.descriptor] for socket in setup.sockets}
            for process, setup in ((self.first, one), (self.second, two))
        )
        self.assertFalse(of_one & of_two)

    def test_it_serves_when_all_do(self) -> None:
        self.first.say(control.Running())
        self.assertFalse([line for line in self.lines if line.startswith("2 workers listen")])
        self.second.say(control.Running())
        self.assertTrue([line for line in self.lines if line.startswith("2 workers listen for browsers on 127.0.0.1")])

    def test_a_worker_that_cannot_start_at_the_beginning_ends_it_all_with_its_reason(self) -> None:
        self.first.say(control.Failed("the key cannot be read"))
        self.first.end(ProcessTerminated(1))
        self.second.say(control.Failed("the key cannot be read"))
        self.assertEqual(self.failures, ["the key cannot be read"])

    def test_a_worker_that_ends_without_a_word_at_the_beginning_ends_it_all(self) -> None:
        self.die(self.second)
        self.assertEqual(self.failures, ["worker 1 was ended by SIGKILL before it could serve: see the log"])

    def test_one_that_is_told_to_stop_while_the_log_opens_starts_no_worker(self) -> None:
        reactor = FakeReactor()
        supervisor = Supervisor(Config(workers=2, port=0, push_port=0), reactor)
        opened: Deferred[None] = Deferred()
        with mock.patch.object(supervisor._exchange, "start", return_value=opened):
            supervisor.startService()
        stopping = supervisor.stopService()
        opened.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(reactor.processes, [])


class DeathTests(SupervisorTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.run_all()

    def test_who_has_served_is_followed_at_once_by_a_successor_with_the_same_number(self) -> None:
        self.first.heard()
        self.reactor.advance(GROWN_UP)
        self.die(self.first)
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 3)
        (setup,) = self.newest().heard()
        self.assertEqual(setup.number, 0)
        self.assertIn("worker 0 was ended by SIGKILL; another one starts now", self.lines)
        self.assertEqual(self.failures, [])

    def test_those_who_die_young_are_followed_later_and_later(self) -> None:
        pauses = []
        for _ in range(6):
            count = len(self.reactor.processes)
            self.die(self.newest())
            began = self.reactor.seconds()
            while len(self.reactor.processes) == count:
                self.reactor.advance(0.25)
            pauses.append(self.reactor.seconds() - began)
        self.assertEqual(pauses, [0.25, 0.5, 1.0, 2.0, 5.0, 5.0])
        self.newest().say(control.Running())
        self.reactor.advance(GROWN_UP)
        self.die(self.newest())
        self.reactor.advance(0)
        self.assertFalse(self.newest().ended)

    def test_a_successor_that_the_system_has_no_room_for_is_tried_again(self) -> None:
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

    def test_what_it_said_last_is_read_before_it_counts_as_ended(self) -> None:
        self.first.ended = True
        self.first.protocol.processEnded(Failure(ProcessTerminated(1)))
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 2)
        self.first.say(control.Failed("the certificate has gone"))
        self.first.channel.connectionLost()
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.processes), 3)
        self.assertIn("worker 0 cannot start: the certificate has gone", self.lines)

    def test_what_is_written_past_the_log_is_logged_by_lines(self) -> None:
        self.first.protocol.childDataReceived(2, b"Segmenta")
        self.first.protocol.childDataReceived(2, b"tion fault\nrest")
        self.die(self.first)
        said = [line for line in self.lines if line.startswith("worker 0 wrote")]
        self.assertEqual(said, ["worker 0 wrote: Segmentation fault", "worker 0 wrote: rest"])

    def test_one_that_reads_no_events_is_killed(self) -> None:
        self.supervisor._stuck(self.supervisor.children[1])
        self.assertEqual((self.first.signals, self.second.signals), ([], ["KILL"]))

    def test_the_end_is_for_all_at_once_and_who_does_not_end_is_killed(self) -> None:
        stopping = self.supervisor.stopService()
        self.assertEqual((self.first.signals, self.second.signals), (["TERM"], ["TERM"]))
        self.first.end()
        self.reactor.advance(1.0 + PATIENCE - 0.1)
        self.assertEqual(self.second.signals, ["TERM"])
        self.reactor.advance(0.1)
        self.assertEqual(self.second.signals, ["TERM", "KILL"])
        self.assertNoResult(stopping)
        self.die(self.second)
        self.successResultOf(stopping)
        self.assertEqual(len(self.reactor.processes), 2)

    def test_a_successor_that_was_to_come_does_not(self) -> None:
        self.die(self.first)
        stopping = self.supervisor.stopService()
        self.second.end()
        self.successResultOf(stopping)
        self.assertEqual(len(self.reactor.processes), 2)


class ConfigurationTests(SupervisorTestCase):
    def test_a_change_goes_to_all_and_to_their_successors_and_a_bad_one_to_nobody(self) -> None:
        self.run_all()
        for process in self.reactor.processes:
            process.heard()
        whole = Config(workers=2, port=0, push_port=0, max_connections=9, max_subscriptions=7, drain_seconds=1.0)
        lines = self.supervisor.reconfigure(replace(whole, ping_interval=1.0))
        self.assertIn("max_connections: 5 → 9", lines)
        self.assertIn("ping_interval has changed too: that takes a restart", lines)
        for process in self.reactor.processes:
            (told,) = process.heard()
            self.assertEqual((told.config.max_connections, told.config.max_subscriptions), (4, 7))
        with self.assertRaises(OperatorError):
            self.supervisor.reconfigure(replace(whole, audience=("x=nobody",)))
        self.assertEqual(self.first.heard(), [])
        self.die(self.first)
        self.reactor.advance(0)
        (setup,) = self.newest().heard()
        self.assertEqual((setup.config.max_subscriptions, setup.config.ping_interval), (7, Config().ping_interval))


class MonitoringTests(SupervisorTestCase):
    def ask(self) -> dict[str, str]:
        ready = readiness(self.supervisor.children, lambda: "", self.reactor)
        return dict(self.successResultOf(self.answered(ready())))

    def answered(self, deferred: Any) -> Any:
        """Both workers answer, the second with a problem."""
        for process, problems in ((self.first, {}), (self.second, {"database": "away"})):
            for question in process.heard():
                if isinstance(question, control.AskReadiness):
                    process.say(control.Readiness(question.number, problems))
        return deferred

    def test_it_is_ready_when_every_worker_is(self) -> None:
        self.run_all()
        self.assertEqual(self.ask(), {"worker 1": "database: away"})

    def test_a_worker_that_does_not_run_is_not_ready(self) -> None:
        self.assertEqual(self.ask(), {"worker 0": "does not run", "worker 1": "does not run"})

    def test_who_dies_while_it_is_asked_does_not_answer(self) -> None:
        self.run_all()
        asked = self.supervisor.children[0].metrics()
        self.die(self.first)
        self.failureResultOf(asked, Unavailable)

    def test_an_answer_that_comes_too_late_is_passed_over(self) -> None:
        self.run_all()
        asked = self.supervisor.children[0].metrics()
        asked.cancel()
        self.failureResultOf(asked)
        self.first.heard()
        self.first.say(control.Metrics(1, []))

    def test_the_samples_of_all_stand_in_one_family_with_their_worker(self) -> None:
        gauge = GaugeMetricFamily("chatws_connections", "Open.", value=2)
        counter = CounterMetricFamily("chatws_events", "Events.", labels=["event"])
        counter.add_metric(["typing"], 3)
        told = Family("chatws_connections", "Open.", "gauge", [("chatws_connections", {}, 5.0)])
        merged = merge([("0", [gauge, counter]), ("1", [told])])
        self.assertEqual([family.name for family in merged], ["chatws_connections", "chatws_events"])
        self.assertEqual(
            [(one.name, one.labels, one.value) for family in merged for one in family.samples],
            [
                ("chatws_connections", {"worker": "0"}, 2),
                ("chatws_connections", {"worker": "1"}, 5),
                ("chatws_events_total", {"event": "typing", "worker": "0"}, 3),
            ],
        )


class LineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.said: list[Said] = []
        self.channel = Channel(lambda messages: None, lambda: None)
        self.transport = FakePipe()
        self.channel.makeConnection(self.transport)
        self.log = Logger(namespace="chatws.chat", observer=RelayingObserver(self.channel))

    def told(self) -> list[Said]:
        found: list[Any] = []
        end = Channel(lambda some: found.extend(map(control.from_worker.decode, some)), lambda: None)
        end.makeConnection(FakePipe())
        end.dataReceived(self.transport.value())
        self.transport.clear()
        return found

    def again(self) -> list[dict[str, Any]]:
        """Through the supervisor's log, as JSON."""
        lines: list[dict[str, Any]] = []

        def observe(event: dict[str, Any]) -> None:
            lines.append(json.loads(format_event(event)))

        globalLogPublisher.addObserver(observe)
        try:
            for one in self.told():
                say_again(4, one)
        finally:
            globalLogPublisher.removeObserver(observe)
        return lines

    def test_a_line_comes_out_as_it_was_with_the_workers_number(self) -> None:
        self.log.warn("user {user}: {text}", user=7, text="{evil}", other=[1])
        (line,) = self.again()
        self.assertEqual(line["message"], "worker 4: user 7: {evil}")
        self.assertEqual((line["level"], line["logger"], line["worker"]), ("warn", "chatws.chat", 4))
        self.assertEqual((line["user"], line["text"], line["other"]), (7, "{evil}", "[1]"))

    def test_a_failure_keeps_its_traceback(self) -> None:
        try:
            raise KeyError("here")
        except KeyError:
            self.log.failure("a fault")
        (line,) = self.again()
        self.assertEqual(line["message"], "worker 4: a fault")
        self.assertIn("KeyError: 'here'", line["traceback"])
        self.flushLoggedErrors(RuntimeError)

    def test_what_the_supervisor_does_not_read_is_dropped_and_counted(self) -> None:
        self.transport.room = 0
        for _ in range(3000):
            self.log.info("{text}", text="x" * 1000)
        self.assertLess(self.channel.unsent, MOST_UNSENT + 10_000)
        self.transport.drain()
        self.log.info("after")
        last = self.told()[-1].fields["message"]
        self.assertRegex(last, r"^after \(before this, \d+ lines were dropped\)$")


class PlainTests(SynchronousTestCase):
    def test_the_limit_on_connections_is_divided_and_none_stays_none(self) -> None:
        for limit, each in ((0, 0), (9, 4), (2, 1)):
            self.assertEqual(shared_out(Config(workers=2, max_connections=limit)).max_connections, each)

    def test_a_configuration_arrives_as_it_was(self) -> None:
        config = Config(workers=2, secret=("a", "b"), listen=("unix:x",), rate=0.0, compression=True)
        setup = control.from_supervisor.decode(control.encode(control.Setup(0, "w0-1", config, [], None)))
        assert isinstance(setup, control.Setup)
        self.assertEqual(setup.config, config)

    def test_the_first_successor_comes_at_once(self) -> None:
        self.assertEqual(pause_before(0), 0.0)
        self.assertEqual(pause_before(100), 5.0)

    def test_a_worker_inherits_modules_and_no_secrets(self) -> None:
        given = {"CHATWS_SECRET": "s" * 32, "LISTEN_FDS": "2", "PGPASSFILE": "x"}
        with mock.patch.dict(os.environ, given):
            found = environment()
        self.assertNotIn("CHATWS_SECRET", found)
        self.assertNotIn("LISTEN_FDS", found)
        self.assertEqual(found["PGPASSFILE"], "x")
        self.assertIn(os.path.dirname(os.path.dirname(startup.__file__)), found["PYTHONPATH"].split(os.pathsep))

    def test_what_cannot_be_shared_is_refused_before_anything_is_opened(self) -> None:
        for settings, said in (
            ({"listen": ("fd:3",), "auth": ("trust",)}, '--listen "fd:3"'),
            ({"demo": True}, "--demo runs in one process"),
            ({"max_connections": 1}, "--max-connections"),
        ):
            with self.assertRaises(OperatorError) as caught:
                startup.check(Config(workers=2, **settings), None)
            self.assertIn(said, str(caught.exception))
