"""Sockets that a supervisor opens and workers listen on: here both are in this process, over real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.python.systemd import ListenFDs

from chatws.errors import ConfigError
from chatws.net import listeners
from chatws.net.endpoints import BACKLOG
from chatws.workers.shared_listener import SharedListener, adopting_endpoint, bind_listener
from tests.certificates import self_signed


class ListeningWorker:
    """Listens on its share of some sockets, and sends its name to each client."""

    def __init__(self, reactor: Any, number: int) -> None:
        self.reactor = reactor
        self.number = number
        self.ports: list[Any] = []

    async def listen(self, listener: SharedListener) -> None:
        name = b"%d" % self.number

        class Greeting(Protocol):
            def connectionMade(self) -> None:
                self.transport.write(name)
                self.transport.loseConnection()

        factory = Factory()
        factory.protocol = Greeting  # type: ignore[assignment]
        factory.noisy = False
        descriptor = os.dup(listener.socket_for(self.number).fileno())
        self.ports.append(await adopting_endpoint(self.reactor, listener.inherited(descriptor)).listen(factory))

    async def end(self) -> None:
        ports, self.ports = self.ports, []
        for port in ports:
            await port.stopListening()


class Greeted(Protocol):
    def __init__(self) -> None:
        self.output: Deferred[bytes] = Deferred()
        self._data = b""

    def dataReceived(self, data: bytes) -> None:
        self._data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.output.callback(self._data)


async def greeting(client: Any) -> bytes:
    """What is said to one who connects to that endpoint."""
    factory = Factory()
    factory.protocol = Greeted  # type: ignore[assignment]
    factory.noisy = False
    protocol: Any = await client.connect(factory)
    output: bytes = await protocol.output
    return output


class SharedListeners:
    """Opens listeners and workers, and closes them all."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.listeners: list[SharedListener] = []
        self.workers: list[ListeningWorker] = []

    def open(self, description: str, workers: int = 2) -> SharedListener:
        listener = bind_listener("browsers", description, "--listen", workers)
        self.listeners.append(listener)
        return listener

    async def worker(self, number: int, listener: SharedListener) -> ListeningWorker:
        worker = ListeningWorker(self.reactor, number)
        self.workers.append(worker)
        await worker.listen(listener)
        return worker


@pytest.fixture
def shared() -> Iterator[SharedListeners]:
    """Nothing is open."""
    from twisted.internet import reactor

    made = SharedListeners(reactor)
    yield made
    for listener in made.listeners:
        listener.close()
    for worker in made.workers:
        pytest_twisted.blockon(Deferred.fromCoroutine(worker.end()))


@pytest_twisted.ensureDeferred
async def test_each_worker_has_an_accept_queue_that_its_replacement_takes_over(shared: SharedListeners) -> None:
    listener = shared.open("tcp:0:interface=127.0.0.1")
    port = listener.getHost().port
    first, _ = await shared.worker(0, listener), await shared.worker(1, listener)
    client = clientFromString(shared.reactor, f"tcp:127.0.0.1:{port}")
    output: set[bytes] = set()
    for _ in range(100):
        output.add(await greeting(client))
        if len(output) == 2:
            break
    assert output == {b"0", b"1"}
    await first.end()
    waiting = [Deferred.fromCoroutine(greeting(client)) for _ in range(40)]
    # those of the other worker are answered: half of them as a rule, and hardly ever fewer than three
    while sum(item.called for item in waiting) < 3:
        await deferLater(shared.reactor, 0.01)
    assert sum(item.called for item in waiting) < 40
    await shared.worker(0, listener)
    assert {await item for item in waiting} == {b"0", b"1"}


@pytest_twisted.ensureDeferred
async def test_a_port_that_another_server_shares_out_is_in_use_nevertheless(shared: SharedListeners) -> None:
    port = shared.open("tcp:0:interface=127.0.0.1").getHost().port
    with pytest.raises(ConfigError, match=f"--listen: cannot listen on 127.0.0.1 port {port}"):
        shared.open(f"tcp:{port}:interface=127.0.0.1")


@pytest_twisted.ensureDeferred
async def test_tls_is_spoken_by_the_workers(shared: SharedListeners, tmp_path: Path) -> None:
    certificate = self_signed()
    pem = tmp_path / "key-and-certificate.pem"
    pem.write_bytes(certificate.both)
    listener = shared.open(f"ssl:0:privateKey={pem}:certKey={pem}:interface=127.0.0.1")
    for number in (0, 1):
        await shared.worker(number, listener)
    port = clientFromString(shared.reactor, f"tcp:127.0.0.1:{listener.getHost().port}")
    trusted = optionsForClientTLS(
        "localhost", trustRootFromCertificates([Certificate.loadPEM(certificate.certificate)])
    )
    assert await greeting(wrapClientTLS(trusted, port)) in (b"0", b"1")


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_one_for_all_and_goes_with_the_supervisor(
    shared: SharedListeners, tmp_path: Path
) -> None:
    path = tmp_path / "listener.sock"
    listener = shared.open(f"unix:{path}:mode=600")
    assert path.stat().st_mode & 0o777 == 0o600
    client = clientFromString(shared.reactor, f"unix:{path}")
    worker = await shared.worker(0, listener)
    assert await greeting(client) == b"0"
    await worker.end()
    assert path.exists()
    await shared.worker(1, listener)
    assert await greeting(client) == b"1"
    shared.listeners.remove(listener)
    listener.close()
    assert not path.exists()


@pytest.mark.parametrize("family", ["INET", "UNIX"])
@pytest_twisted.ensureDeferred
async def test_systemds_socket_is_one_for_all_and_stays(
    shared: SharedListeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    ours = socket.socket(getattr(socket, f"AF_{family}"))
    ours.bind(("127.0.0.1", 0) if family == "INET" else f"{tmp_path}/s")
    ours.listen(BACKLOG)
    monkeypatch.setattr(listeners, "_systemd", ListenFDs([ours.fileno()], ()))
    prefix = "haproxy:" if family == "INET" else ""
    listener = shared.open(f"{prefix}systemd:domain={family}:index=0")
    workers = [await shared.worker(number, listener) for number in (0, 1)]
    if family == "UNIX":  # behind haproxy: a client would have to begin with a PROXY line
        assert await greeting(clientFromString(shared.reactor, f"unix:{tmp_path}/s")) in (b"0", b"1")
    for worker in workers:
        await worker.end()
    shared.listeners.remove(listener)
    listener.close()
    with socket.socket(ours.family) as client:
        client.connect(ours.getsockname())  # systemd's own is open as before
    ours.close()
