"""A push listener on real sockets for tests, that can be killed and started again; and blocking peers, in threads."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.task import deferLater

from chatws.push.listener import PushFactory
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
        certificate: ssl.PrivateCertificate | None = None,
        **options: Any,
    ) -> None:
        self.target = FakeTarget()
        self.port = 0
        self._path = path
        self._certificate = certificate
        self._options = options
        self._listening: Any = None
        self.factory: PushFactory

    async def start(self, factory: Any = None) -> None:
        """Listen; after the first time, on the same port. `factory`: instead of a PushFactory."""
        self.factory = PushFactory(self.target, reactor=reactor, **self._options)
        if self._path is not None:
            endpoint: Any = UNIXServerEndpoint(reactor, self._path)
        elif self._certificate is not None:
            endpoint = SSL4ServerEndpoint(reactor, self.port, self._certificate.options(), interface="127.0.0.1")
        else:
            endpoint = TCP4ServerEndpoint(reactor, self.port, interface="127.0.0.1")
        self._listening = await endpoint.listen(factory or self.factory)
        if self._path is None:
            self.port = self._listening.getHost().port

    async def stop(self) -> None:
        """Stop listening, and cut every connection as a killed process would."""
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await listening.stopListening()
        for connection in list(self.factory.connections):
            connection.abort()
        await until(lambda: all(connection._lost for connection in self.factory.connections))

    @property
    def address(self) -> str:
        """As the blocking client takes it."""
        return f"unix:{self._path}" if self._path else f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        """A blocking socket, for the use in a thread (or without waiting)."""
        if self._path:
            found = socket.socket(socket.AF_UNIX)
            found.connect(self._path)
            return found
        return socket.create_connection(("127.0.0.1", self.port), 10)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
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
    connection.settimeout(10)
    received = bytearray()
    while more := connection.recv(65536):
        received += more
    return bytes(received)


def self_signed() -> ssl.PrivateCertificate:
    """A certificate for 127.0.0.1 and localhost, valid for a day."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    return ssl.PrivateCertificate.loadPEM(pem)
