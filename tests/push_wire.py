"""A push listener on real sockets for tests, that can be killed and started again; and blocking peers, in threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.task import deferLater

from chatws.push.listener import PushFactory
from tests.certificates import SelfSigned
from tests.e2e.process import free_port
from tests.fakes_push import FakeTarget

reactor: Any = _reactor
T = TypeVar("T")


class PushServer:
    """A listener in this process.

    :ivar target: survives restarts, and so do the idempotency keys it knows.
    :param path: of a Unix socket, instead of a TCP port.
    :param certificate: to speak TLS.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        certificate: SelfSigned | None = None,
        **options: Any,
    ) -> None:
        self.target = FakeTarget()
        self.port = free_port()  # one that nobody is given while the server is stopped
        self._path = path
        self._certificate = certificate
        self._options = options
        self._port: Any = None
        self.factory: PushFactory

    async def start(self, factory: Any = None) -> None:
        """Listen, each time on the same port. `factory`: instead of a PushFactory."""
        self.factory = PushFactory(self.target, reactor=reactor, **self._options)
        if self._path is not None:
            endpoint: Any = UNIXServerEndpoint(reactor, self._path)
        elif self._certificate is not None:
            options = ssl.PrivateCertificate.loadPEM(self._certificate.both).options()
            endpoint = SSL4ServerEndpoint(reactor, self.port, options, interface="127.0.0.1")
        else:
            endpoint = TCP4ServerEndpoint(reactor, self.port, interface="127.0.0.1")
        self._port = await endpoint.listen(factory or self.factory)

    async def stop(self) -> None:
        """Stop listening, and cut every connection as a killed process would."""
        if self._port is not None:
            port, self._port = self._port, None
            await port.stopListening()
        for connection in list(self.factory.connections):
            connection.abort()
        await until(lambda: all(connection.is_lost for connection in self.factory.connections))

    @property
    def address(self) -> str:
        """As the blocking client takes it."""
        return f"unix:{self._path}" if self._path else f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """A blocking socket, for the use in a thread (or without waiting)."""
        if self._path:
            result = socket.socket(socket.AF_UNIX)
            result.connect(self._path)
            return result
        return socket.create_connection(("127.0.0.1", self.port), 20)


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts servers with the given options, and stops them."""
    servers = []
    calls = set(reactor.getDelayedCalls())

    async def start(**options: Any) -> PushServer:
        server = PushServer(**options)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        pytest_twisted.blockon(Deferred.fromCoroutine(server.stop()))
    assert set(reactor.getDelayedCalls()) <= calls


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Let the reactor turn until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await deferLater(reactor, 0.002)


def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> Deferred[T]:
    """What `function` returns or raises in a thread of its own, which has ended when the Deferred fires."""
    done: Deferred[T] = Deferred()

    def run() -> None:
        try:
            fire, result = done.callback, function(*arguments, **options)
        except BaseException as error:
            fire, result = done.errback, error  # type: ignore[assignment]
        reactor.callFromThread(finish, fire, result)

    def finish(fire: Any, result: Any) -> None:
        thread.join()
        fire(result)

    thread = threading.Thread(target=run)
    thread.start()
    return done


def read_to_the_end(connection: socket.socket) -> bytes:
    """Until the other side closes; raises when it resets instead."""
    connection.settimeout(20)
    received = bytearray()
    while more := connection.recv(65536):
        received += more
    return bytes(received)
