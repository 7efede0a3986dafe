"""What must not creep back into the hot path: counted, not timed (docs/performance.md has the timings)."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from chatws.brokers.interface import Audience
from chatws.chat import server as chat_server
from chatws.chat.audience import MAX_CACHED_AUDIENCES
from chatws.chat.server import ChatServer
from chatws.push.listener import PushFactory
from chatws.server.fanout import IO_URING_MIN_SENDS, FanOut
from chatws.server.io_uring import Ring
from tests.e2e.wire import until as poll_until
from tests.requirements import needs, needs_io_uring
from tests.server_wire import ServerCase, frame, head

#: Blocks of Python memory that may be made, and kept or not, for one more recipient of an event.
BLOCKS_A_DELIVERY = 0.1
#: Bytes of Python's memory for an idle connection that is authenticated and subscribed to one conversation.
BYTES_A_CONNECTION = 6 * 1024


class CountingSocket:
    """Stands before a socket and counts."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.sends: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sends.append(data)
        return len(data)


class ChatCase(ServerCase):
    def start(self, ring: Ring | None = None) -> None:
        self.serve()
        self.chat = ChatServer(
            reactor=self.reactor, schedule=self.ws.timer_wheel.schedule, send_all=FanOut(ring).send_all
        )
        self.ws.component = self.chat
        self.push = PushFactory(self.chat, secret=lambda: None, reactor=self.reactor)

    def enter(self, user_id: int, conversation_id: int) -> Any:
        """A connection as the server knows it, authenticated and subscribed."""
        wire = self.wire()
        known = set(self.ws.connections)
        wire.send(head())
        wire.send(frame(json.dumps({"type": "auth", "user_id": user_id})))
        wire.send(frame(json.dumps({"type": "subscribe", "conversation_id": conversation_id})))
        (connection,) = self.ws.connections - known
        assert connection.client.session.conversations == {conversation_id}
        return connection

    def backend(self) -> Any:
        protocol = self.push.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        self.addCleanup(self.end, protocol)
        return protocol

    def end(self, protocol: Any) -> None:
        protocol.connectionLost()

    def tearDown(self) -> None:
        for wire in self.wires:
            wire.close()
        self.reactor.turn()
        self.chat.freeze_presence()
        super().tearDown()


def line(conversation_id: int, text: str = "x" * 200) -> bytes:
    message = {"event": "new_message", "data": {"conversation_id": conversation_id, "text": text}}
    return json.dumps(message).encode() + b"\n"


class HotPathTests(ChatCase):
    def count(self, connections: list[Any]) -> list[CountingSocket]:
        counters = []
        for connection in connections:
            counters.append(CountingSocket(connection._socket))
            connection._socket = counters[-1]
        return counters

    def test_lines_of_one_read_are_one_send_per_connection_and_shared_frames(self) -> None:
        self.start()
        counters = self.count([self.enter(user, 1) for user in range(20)])
        backend = self.backend()
        frames: list[bytes] = []
        whole = chat_server.text_frames
        self.patch(chat_server, "text_frames", lambda payloads: frames.extend(payloads) or whole(payloads))
        writers = len(self.reactor.writers)
        backend.dataReceived(line(1) * 16)
        assert [len(counter.sends) for counter in counters] == [1] * 20
        assert len(frames) == 16
        assert all(counter.sends[0] is counters[0].sends[0] for counter in counters), "the bytes are shared"
        assert len(self.reactor.writers) == writers, "the reactor is not asked to write"

    def test_a_connection_that_is_not_addressed_is_not_touched(self) -> None:
        self.start()
        counters = self.count([self.enter(9, 1), *(self.enter(user, 2) for user in range(5))])
        self.backend().dataReceived(line(1) * 3)
        assert [len(counter.sends) for counter in counters] == [1, 0, 0, 0, 0, 0]

    def test_one_more_recipient_makes_no_more_objects(self) -> None:
        self.start()
        for user in range(100):
            self.enter(user, 1)
        self.enter(200, 2)
        for connection in self.ws.connections:
            connection._socket = Sink()
        backend = self.backend()
        many, single = (peak(partial(backend.dataReceived, line(number))) for number in (1, 2))
        # the list of recipients has one word for each; an object would have forty bytes at least
        assert (many - single) / 99 < 16, (many, single)

    @needs_io_uring
    def test_one_more_recipient_of_io_uring_makes_no_more_system_calls(self) -> None:
        ring = Ring()
        asked: list[int] = []
        whole = ring._enter
        ring._enter = lambda count: asked.append(count) or whole(count)  # type: ignore[method-assign]
        self.start(ring)
        for user in range(IO_URING_MIN_SENDS + 100):
            self.enter(user, 1)
        for user in range(IO_URING_MIN_SENDS):
            self.enter(500 + user, 2)
        for wire in self.wires:
            wire.read()
        backend = self.backend()
        asked.clear()
        backend.dataReceived(line(1) * 16)
        assert asked == [IO_URING_MIN_SENDS + 100]
        assert all(len(wire.texts()) == 16 for wire in self.wires[: IO_URING_MIN_SENDS + 100])
        many, few = (peak(partial(backend.dataReceived, line(number))) for number in (1, 2))
        # three numbers for each stand in two arrays each, of twenty bytes together: less than one object in a list
        assert (many - few) / 100 < 44, (many, few)

    def test_objects_left_by_a_delivery_do_not_grow_with_recipients(self) -> None:
        self.start()
        for user in range(100):
            self.enter(user, 1)
        for connection in self.ws.connections:
            connection._socket = Sink()
        backend = self.backend()
        data = line(1)
        backend.dataReceived(data * 50)
        before = sys.getallocatedblocks()
        backend.dataReceived(data * 50)
        kept = sys.getallocatedblocks() - before
        assert kept / (50 * 100) < BLOCKS_A_DELIVERY, kept

    def test_the_events_of_one_conversation_share_their_audience_up_to_so_many_conversations(self) -> None:
        self.start()
        table = self.chat.audiences

        def new_event(conversation_id: int, except_user_id: int | None = None) -> Any:
            data = json.dumps({"conversation_id": conversation_id}).encode()
            return table.new_event("new_message", data, None, except_user_id)

        first = new_event(1)
        assert new_event(1).audience is first.audience
        assert new_event(1, 5).audience == Audience(("conversation:1",), 5)
        assert new_event(1).audience == Audience(("conversation:1",))
        for conversation_id in range(MAX_CACHED_AUDIENCES):
            new_event(conversation_id)
        assert len(table._conversations) <= MAX_CACHED_AUDIENCES

    def test_an_idle_connection_is_small(self) -> None:
        self.start()
        for user in range(20):
            self.enter(user, user)
        gc.collect()
        tracemalloc.start(1)
        try:
            before = tracemalloc.take_snapshot()
            for user in range(100, 200):
                self.enter(user, user)
            gc.collect()
            after = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
        # what the test's own side of the socket holds is not counted
        own = [tracemalloc.Filter(False, "*/tests/*"), tracemalloc.Filter(False, tracemalloc.__file__)]
        grown = after.filter_traces(own).compare_to(before.filter_traces(own), "filename")
        size = sum(difference.size_diff for difference in grown) / 100
        assert size < BYTES_A_CONNECTION, size


def peak(work: Callable[[], object]) -> int:
    """Bytes of Python's memory that `work` takes at once, when it is done for the fiftieth time."""
    result = []
    for _ in range(3):
        for _ in range(50):
            work()
        gc.disable()
        try:
            tracemalloc.start(1)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            work()
            result.append(tracemalloc.get_traced_memory()[1] - before)
        finally:
            tracemalloc.stop()
            gc.enable()
    return min(result)  # the test runner's own thread may take some too


class Sink:
    """A socket that takes everything."""

    def send(self, data: bytes) -> int:
        return len(data)


SERVER = """
import os, sys
from twisted.internet import reactor
from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.server import ChatServer
from chatws.push.listener import PushFactory
from chatws.server import HttpServer, WsServer
from chatws.server.fanout import FanOut
from chatws.server.io_uring import Ring
fan_out = FanOut(Ring() if sys.argv[1:] == ["together"] else None)
# nothing is sent for any other reason than a backend's line: no news of who is online, no pings
chat = ChatServer(audiences=AudienceTable({"agent_status": Kind.NONE}), send_all=fan_out.send_all)
browsers = reactor.listenTCP(0, HttpServer(WsServer(chat, ping_interval=0)), interface="127.0.0.1")
backends = reactor.listenTCP(0, PushFactory(chat, secret=lambda: None, reactor=reactor), interface="127.0.0.1")
reactor.callWhenRunning(print, os.getpid(), browsers.getHost().port, backends.getHost().port, flush=True)
reactor.run()
"""


#: How many get the events that are counted.
PAGES = IO_URING_MIN_SENDS

#: How strace's line of a read ends that brought nothing.
NOTHING_CAME = "= -1 EAGAIN (Resource temporarily unavailable)"


@needs("strace")
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("one-by-one", ["sendto"] * PAGES),
        pytest.param("together", ["io_uring_enter"], marks=needs_io_uring),
    ],
)
def test_an_event_costs_a_bounded_number_of_system_calls(tmp_path: Path, how: str, expected: list[str]) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-fqq", "-s", "4096", "-e", "trace=network,epoll_ctl,io_uring_enter", "-o", trace]
    server = subprocess.Popen(
        [*strace, sys.executable, "-c", SERVER, how],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(chat_server.__file__).parents[2])},
    )
    sockets: list[socket.socket] = []
    pid = 0
    try:
        assert server.stdout is not None
        pid, browsers, backends = map(int, server.stdout.readline().split())

        def dial(port: int) -> socket.socket:
            sockets.append(socket.create_connection(("127.0.0.1", port), 10))
            sockets[-1].settimeout(10)
            return sockets[-1]

        def until(sock: socket.socket, expected_bytes: bytes) -> None:
            data = b""
            while expected_bytes not in data:
                data += sock.recv(65536)

        pages = [dial(browsers) for _ in range(PAGES)]
        for number, page in enumerate(pages):
            page.sendall(head())
            until(page, b"\r\n\r\n")
            page.sendall(frame(f'{{"type":"auth","user_id":{number}}}'))
            page.sendall(frame('{"type":"subscribe","conversation_id":1}'))
            until(page, b'"subscribed"')
        backend = dial(backends)
        backend.sendall(b'{"op":"ping"}\n')
        until(backend, b"true")
        backend.sendall(line(1, "begin"))
        for page in pages:
            until(page, b'"begin"')
        backend.sendall(line(1, "counted") + line(1, "counted too"))
        for page in pages:
            until(page, b'"counted too"')
        # what is sent sooner is found when the server looks whether more has come
        poll_until(lambda: trace.read_text().splitlines()[-1].endswith(NOTHING_CAME), "the server to look for more")
        backend.sendall(line(1, "finish"))
        for page in pages:
            until(page, b'"finish"')
    finally:
        for sock in sockets:
            sock.close()
        # strace goes when what it looks at has gone
        os.kill(pid or server.pid, signal.SIGKILL)
        server.wait(10)
        if server.stdout is not None:
            server.stdout.close()
    calls = trace.read_text().splitlines()
    reads = [index for index, call in enumerate(calls) if "recv" in call and "event" in call and "new_message" in call]
    begin, counted, finish = reads[-3:]
    assert ["begin" in calls[begin], calls[counted].count("counted"), "finish" in calls[finish]] == [True, 2, True]
    *sent, looked = calls[counted + 1 : finish]
    assert [call.split("(")[0].split()[-1] for call in sent] == expected, sent
    assert "recvfrom(" in looked
    assert looked.endswith(NOTHING_CAME)
