"""Connections that the system cannot accept are counted, and logged once a minute."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chatws.server.accept_log import ACCEPT_PAUSE, AcceptLog


class FakeReactor(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.reading: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.reading.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.reading.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        pass


class FailingSocket:
    """A listening socket whose `accept` fails with some errors, then gives connections, then has no more."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)

    def accept(self) -> Any:
        result = self.results.pop(0) if self.results else errno.EAGAIN
        if isinstance(result, int):
            raise OSError(result, "")
        return result

    def close(self) -> None:
        pass


class AcceptLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.port: Any = tcp.Port(0, Factory.forProtocol(Protocol), reactor=self.reactor, interface="127.0.0.1")
        self.port.startListening()
        self.real, self.accepts = self.port.socket, AcceptLog(self.reactor)
        self.accepts.watch(self.port)

    def tearDown(self) -> None:
        self.port.connected = False
        self.real.close()
        for call in self.reactor.getDelayedCalls():
            call.cancel()

    def read(self, *results: Any) -> list[str]:
        self.port.socket = FailingSocket(*results)
        with capturedLogs() as logged:
            self.port.doRead()
        return [formatEvent(event) for event in logged]

    def test_accept_without_a_free_file_closes_waiting_connections_and_logs_once(self) -> None:
        def waiting(count: int) -> list[Any]:
            return [(socket.socketpair()[0], ("192.0.2.7", 1)) for _ in range(count)]

        assert self.read(errno.EMFILE, *waiting(30)) == [
            "cannot accept connections: EMFILE (1 so far); see the limit of open files"
        ]
        self.port.numberAccepts = 100
        assert self.read(errno.EMFILE, *waiting(30)) == []
        assert self.accepts.errors == 60
        assert self.port in self.reactor.reading
        self.reactor.advance(60)
        assert self.read(errno.EMFILE, *waiting(1)) == [
            "cannot accept connections: EMFILE (61 so far); see the limit of open files"
        ]

    def test_without_memory_or_files_of_the_whole_system_the_listener_pauses(self) -> None:
        for number in (errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            (line,) = self.read(number)
            assert errno.errorcode[number] in line
            assert self.port not in self.reactor.reading, "it would spin"
            self.reactor.advance(ACCEPT_PAUSE)
            assert self.port in self.reactor.reading

    def test_a_connection_that_broke_before_it_was_accepted_does_not_pause_the_listener(self) -> None:
        assert len(self.read(errno.ECONNABORTED)) == 1
        assert self.port in self.reactor.reading

    def test_a_listener_that_is_closed_during_the_pause_is_left_alone(self) -> None:
        self.read(errno.ENFILE)
        self.port.connected = False
        self.reactor.advance(ACCEPT_PAUSE)
        assert self.port not in self.reactor.reading
