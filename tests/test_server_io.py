"""IoServer as a service on the real reactor: ports, binding errors, draining."""

from __future__ import annotations

import resource
import socket
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.application.service import MultiService
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, UNIXServerEndpoint

from chatws.errors import ConfigError
from chatws.server import EchoServer, HttpServer, IoServer, WsServer, raise_file_limit
from chatws.server.io_server import FALLBACK_FILES
from tests.e2e.process import free_port
from tests.server_wire import Recorder, head


def make(component: Any = None, port: int = 0, address: str = "127.0.0.1") -> IoServer:
    return IoServer.factory(HttpServer(WsServer(component or EchoServer())), port, address)


class RecordingClient(WebSocketClientProtocol):
    def __init__(self) -> None:
        super().__init__()
        self.received: defer.DeferredQueue[str] = defer.DeferredQueue()
        self.closed: defer.Deferred[int] = defer.Deferred()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.received.put(payload.decode())

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.closed.callback(code)


async def dial(server: IoServer) -> RecordingClient:
    port = server.ports[0].getHost().port
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{port}/ws")
    factory.noisy = False
    factory.protocol = RecordingClient
    client = await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
    await client.is_open
    return client


@pytest_twisted.ensureDeferred
async def test_autobahns_own_client_is_echoed() -> None:
    before = set(reactor.getDelayedCalls())
    server = make()
    await server.listen()
    client = await dial(server)
    client.sendMessage("olá".encode())
    assert await client.received.get() == "olá"
    client.sendClose(1000)
    assert await client.closed == 1000
    await server.stopService()
    assert set(reactor.getDelayedCalls()) <= before


@pytest_twisted.ensureDeferred
async def test_a_service_in_a_tree_listens_when_started_and_closes_all_when_stopped() -> None:
    before = set(reactor.getDelayedCalls())
    parent = MultiService()
    server = make()
    server.setServiceParent(parent)
    parent.startService()
    await server.listen()
    client = await dial(server)
    await parent.stopService()
    assert await client.closed == 4012
    assert server.ports == []
    parent.startService()
    await server.listen()
    assert len(server.ports) == 1
    await parent.stopService()
    assert set(reactor.getDelayedCalls()) <= before


@pytest_twisted.ensureDeferred
async def test_waiting_connections_are_accepted_in_bounded_batches() -> None:
    server = make()
    await server.listen()
    port, visitors = server.ports[0], server.app.http_connections
    address = ("127.0.0.1", port.getHost().port)

    def accepted() -> int:
        before = len(visitors)
        port.doRead()
        return len(visitors) - before

    with ExitStack() as callers:
        for _ in range(3):  # while it is quiet, one at a time
            callers.enter_context(socket.create_connection(address))
            assert accepted() == 1
        for _ in range(200):
            callers.enter_context(socket.create_connection(address))
        portions = [accepted()]
        while portions[-1]:
            portions.append(accepted())
        assert sum(portions) == 200
        assert len(portions) < 8
        assert max(portions) <= 70
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_a_request_that_arrived_with_its_connection_is_answered_at_once() -> None:
    server = make()
    await server.listen()
    port = server.ports[0]
    address = ("127.0.0.1", port.getHost().port)
    with socket.create_connection(address) as early, socket.create_connection(address) as late:
        early.settimeout(10)
        early.sendall(head())
        while len(server.app.http_connections) + len(server.app.app.connections) < 2:
            port.doRead()
        assert early.recv(12) == b"HTTP/1.1 101"
        late.setblocking(False)
        with pytest.raises(BlockingIOError):
            late.recv(1)
        (visitor,) = server.app.http_connections
        late.settimeout(10)
        late.sendall(head())
        visitor.transport.doRead()
        assert late.recv(12) == b"HTTP/1.1 101"
    await server.stopService()


@pytest_twisted.ensureDeferred
async def test_stop_listening_keeps_connections() -> None:
    recorder = Recorder()
    server = make(recorder, free_port())  # one that nobody else listens on afterwards
    await server.listen()
    client = await dial(server)
    number = server.ports[0].getHost().port
    await server.stop_listening()
    with socket.socket() as late:
        assert late.connect_ex(("127.0.0.1", number)) != 0
    recorder.connections[0].send("still")
    assert await client.received.get() == "still"
    await server.stopService()
    await client.closed


@pytest_twisted.ensureDeferred
async def test_port_in_use_is_a_config_error_and_no_endpoint_listens() -> None:
    first = make()
    await first.listen()
    taken = first.ports[0].getHost().port
    endpoints = [TCP4ServerEndpoint(reactor, port, interface="127.0.0.1") for port in (0, taken)]
    second = IoServer(first.app, endpoints)
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            await second.listen()
        words = f"port {taken} on 127.0.0.1 is in use: stop the other server or choose another with --port"
        assert str(caught.value) == words
    assert second.ports == []
    await first.stopService()


@pytest_twisted.ensureDeferred
async def test_other_addresses_that_cannot_be_bound_say_so_in_one_line(tmp_path: Any) -> None:
    for address, words in (("192.0.2.1", "cannot listen on port"), ("2001:db8::1", "cannot listen on port")):
        with pytest.raises(ConfigError) as caught:
            await make(port=45678, address=address).listen()
        assert str(caught.value).startswith(words)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        await IoServer(make().app, [UNIXServerEndpoint(reactor, str(tmp_path / "no" / "x"))]).listen()
    assert "x: No such file" in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_ipv6_addresses_are_taken() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    server = make(address="::1")
    try:
        await server.listen()
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    assert server.ports[0].getHost().host == "::1"
    await server.stopService()


def test_the_soft_limit_of_open_files_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        assert raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Limits:
    """setrlimit(2) of a system that refuses soft limits above `most`, whatever the hard limit says."""

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.soft, self.hard, self.most = soft, hard, most

    def get(self, which: int) -> tuple[int, int]:
        return self.soft, self.hard

    def set(self, which: int, limits: tuple[int, int]) -> None:
        soft, hard = limits
        if soft == resource.RLIM_INFINITY or soft > self.most:
            raise ValueError("not allowed to raise maximum limit")
        self.soft, self.hard = soft, hard


@pytest.mark.parametrize(
    ("soft", "hard", "most", "becomes"),
    [
        (256, resource.RLIM_INFINITY, 10_240, 10_240),  # macOS
        (256, 61_440, 10_240, 10_240),  # macOS after `launchctl limit`
        (256, resource.RLIM_INFINITY, 5_000, 256),  # neither is allowed
        (20_000, resource.RLIM_INFINITY, 10_240, 20_000),  # never lowered
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 0, resource.RLIM_INFINITY),
        (256, 4_096, 4_096, 4_096),
    ],
)
def test_rejected_hard_limit_is_replaced_by_10240_files(
    soft: int, hard: int, most: int, becomes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(soft, hard, most)
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    monkeypatch.setattr(resource, "setrlimit", limits.set)
    assert raise_file_limit() == limits.soft == becomes
    assert limits.hard == hard


def test_without_limits_the_answer_is_10240_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert raise_file_limit() == FALLBACK_FILES == 10_240
