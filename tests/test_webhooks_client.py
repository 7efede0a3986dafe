"""The HTTP client of webhooks (chatws.webhooks.client), with real receivers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from chatws.webhooks.client import MAX_ANSWER, Answer, WebhookClient, tls_policy
from tests.certificates import Authority
from tests.webhook_receiver import Receiver, webhook_receiver

SECRETS = (b"new secret", b"old secret")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver("old secret") as receiver:
        yield receiver


def make(url: str, *, timeout: float = 20.0, headers: tuple[tuple[str, str], ...] = (), policy: Any = None) -> Any:
    from twisted.internet import reactor

    return WebhookClient(
        url.encode(),
        timeout=timeout,
        secrets=lambda: SECRETS,
        headers=lambda: headers,
        policy=policy or tls_policy(None),
        reactor=reactor,
        wall_clock=time.time,
    )


async def post_once(client: Any, body: bytes = b'{"events":[]}') -> Answer:
    answer: Answer = await client.post(body)
    await client.stop()
    return answer


@contextmanager
def raw_server(handle: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Run a server that handles the nth connection, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    handle(connection, number)
                number += 1

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"
        server.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> bytes:
    """Read a request with a body that ends with `}`."""
    received = b""
    while not received.endswith(b"}"):
        chunk = connection.recv(65_536)
        if not chunk:
            return received
        received += chunk
    return received


@pytest_twisted.ensureDeferred
async def test_request_is_signed_with_each_secret_and_has_the_headers(receiver: Receiver) -> None:
    answer = await post_once(make(receiver.url, headers=(("Authorization", "Bearer gateway"),)))
    assert answer.is_success
    (headers,) = receiver.headers
    assert headers["content-type"] == "application/json"
    assert headers["authorization"] == "Bearer gateway"
    assert headers["x-chatws-signature"].count("v1=") == 2


@pytest_twisted.ensureDeferred
async def test_connection_is_used_again(receiver: Receiver) -> None:
    client = make(receiver.url)
    for _ in range(3):
        assert (await client.post(b'{"events":[]}')).is_success
    await client.stop()
    assert receiver.connections == 1


@pytest_twisted.ensureDeferred
async def test_connection_that_died_unanswered_is_replaced_at_once() -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket, number: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        if number == 0:
            seen.append(read_request(connection))  # the receiver restarts here

    with raw_server(handle) as url:
        client = make(url)
        assert (await client.post(b'{"n":1}')).is_success
        assert (await client.post(b'{"n":2}')).is_success
        await client.stop()
    assert [request.rpartition(b"\r\n")[2] for request in seen] == [b'{"n":1}', b'{"n":2}', b'{"n":2}']


@pytest_twisted.ensureDeferred
async def test_new_connection_that_dies_is_a_failure() -> None:
    with raw_server(lambda connection, number: read_request(connection) and None) as url:
        answer = await post_once(make(url))
    assert (answer.status, answer.is_refused) == (0, False)
    assert answer.problem


@pytest_twisted.ensureDeferred
async def test_receiver_that_hangs_is_given_up_after_the_timeout(receiver: Receiver) -> None:
    released = threading.Event()

    def hang(request: Any) -> tuple[int, dict[str, str], bytes]:
        released.wait(20)
        return (200, {}, b"")

    receiver.answer = hang
    answer = await post_once(make(receiver.url, timeout=0.3))
    released.set()
    assert answer.problem == "no complete answer in 0.3 s"


@pytest_twisted.ensureDeferred
async def test_answer_that_is_not_complete_in_time_is_a_failure(receiver: Receiver) -> None:
    receiver.answer = lambda request: (200, {"Content-Length": "100"}, b"half")
    answer = await post_once(make(receiver.url, timeout=0.3))
    assert answer.problem == "no complete answer in 0.3 s"


@pytest_twisted.ensureDeferred
async def test_answer_that_ends_in_the_middle_is_a_failure() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with raw_server(handle) as url:
        answer = await post_once(make(url))
    assert not answer.is_success
    assert answer.problem


@pytest_twisted.ensureDeferred
async def test_only_the_first_bytes_of_an_endless_answer_are_read() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 1024)

    with raw_server(handle) as url:
        answer = await post_once(make(url))
    assert answer.is_success
    assert len(answer.body) == MAX_ANSWER


@pytest_twisted.ensureDeferred
async def test_endless_head_of_an_answer_is_given_up() -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"x-filler: " + b"y" * 1000 + b"\r\n")

    with raw_server(handle) as url:
        answer = await post_once(make(url))
    assert "bytes" in answer.problem


@pytest_twisted.ensureDeferred
async def test_redirect_is_shown_and_not_followed(receiver: Receiver) -> None:
    receiver.answer = lambda request: (307, {"Location": receiver.url}, b"moved\n\n here")
    answer = await post_once(make(receiver.url))
    assert len(receiver.requests) == 1
    assert answer.describe() == f"status 307, Location: {receiver.url}, moved here"


@pytest_twisted.ensureDeferred
async def test_refused_connection_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    answer = await post_once(make(f"http://127.0.0.1:{port}/"))
    assert (answer.is_refused, answer.status) == (True, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("", None), ("soon", None), ("-1", None)],
)
@pytest_twisted.ensureDeferred
async def test_retry_after_is_seconds_or_a_date(receiver: Receiver, value: str, seconds: float | None) -> None:
    receiver.answer = lambda request: (503, {"Retry-After": value}, b"")
    assert (await post_once(make(receiver.url))).retry_after == seconds


@pytest_twisted.ensureDeferred
async def test_localhost_includes_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                read_request(connection)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        answer = await post_once(make(f"http://localhost:{server.getsockname()[1]}/"))
    assert answer.status == 204


@pytest_twisted.ensureDeferred
async def test_certificate_of_an_own_authority_needs_its_file(tmp_path: Path) -> None:
    import ssl

    authority = Authority()
    signed = authority.issue("localhost")
    pem = tmp_path / "server.pem"
    pem.write_bytes(signed.key + signed.fullchain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def handle(connection: socket.socket, number: int) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            read_request(secured)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(handle) as url:
        url = url.replace("http://127.0.0.1", "https://localhost")
        rejected = await post_once(make(url))
        accepted = await post_once(make(url, policy=tls_policy(authority.root)))
    assert "certificate" in rejected.problem
    assert accepted.is_success


def test_file_without_certificates_is_an_error() -> None:
    with pytest.raises(ValueError, match="no certificate"):
        tls_policy(b"nothing")
    with pytest.raises(ValueError, match="invalid certificate"):
        tls_policy(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
