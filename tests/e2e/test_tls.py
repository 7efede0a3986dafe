"""TLS listeners with real clients: Chromium, curl, OpenSSL; and certificates that are renewed under them."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from tests.certificates import Authority, Signed
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.test_workers import process_of
from tests.e2e.wire import DEADLINE, Backend, Browser, until
from tests.requirements import needs
from tests.variants import others_long

Start = Callable[..., Server]


class TlsServer:
    """A server whose listeners for browsers and for backends are both `ssl:`.

    :ivar port: for browsers, and :ivar push_port: for backends.
    """

    def __init__(self, start: Start, directory: Path, *arguments: str) -> None:
        self.authority = Authority()
        self.directory = directory
        self.install(self.authority.issue())
        self.root = directory / "root.pem"
        self.root.write_bytes(self.authority.root)
        self.port, self.push_port = free_port(), free_port()
        files = f"privateKey={directory}/key.pem:certKey={directory}/fullchain.pem:interface=127.0.0.1"
        self.listen, self.push_listen = f"ssl:{self.port}:{files}", f"ssl:{self.push_port}:{files}"
        self.server = start("--listen", self.listen, "--push-listen", self.push_listen, *arguments)

    def install(self, signed: Signed) -> None:
        """Write a key and a certificate over the ones before, as a renewal does."""
        (self.directory / "key.pem").write_bytes(signed.key)
        (self.directory / "fullchain.pem").write_bytes(signed.fullchain)

    def browser(self) -> Browser:
        return Browser(f"wss://localhost:{self.port}/ws", ssl=self.authority.trusted())

    def backend(self) -> TlsBackend:
        return TlsBackend(self.push_port, self.authority.trusted())

    def serial(self, port: int) -> int:
        """The serial number of the certificate that a new connection gets."""
        plain = socket.create_connection(("127.0.0.1", port), DEADLINE)
        with self.authority.trusted().wrap_socket(plain, server_hostname="localhost") as secured:
            return int(secured.getpeercert()["serialNumber"], 16)  # type: ignore[index,arg-type]

    def reload(self) -> str:
        """Send SIGHUP, and return what the log says of it."""
        before = len(self.server.log)
        os.kill(self.server.pid, signal.SIGHUP)

        def answered() -> str:
            output = self.server.log[before:]
            return output if re.search(r"configuration: |is rejected|nothing has changed", output) else ""

        return until(answered, "the answer to SIGHUP")


class TlsBackend(Backend):
    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self._reader = self.socket.makefile("rb")


@pytest.fixture
def tls_server(chatws_server: Start, tmp_path: Path) -> Callable[..., TlsServer]:
    return lambda *arguments: TlsServer(chatws_server, tmp_path, *arguments)


def run(*words: str, **options: Any) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, **options)
    return done.stdout + done.stderr


# --- clients that offer ALPN ----------------------------------------------------------------------------------------


@needs("openssl")
@pytest.mark.parametrize(
    ("offered", "browsers", "backends"),
    [
        ("http/1.1", "ALPN protocol: http/1.1", "No ALPN negotiated"),
        ("h2,http/1.1", "ALPN protocol: http/1.1", "No ALPN negotiated"),
        ("h2", "No ALPN negotiated", "No ALPN negotiated"),
        ("", "No ALPN negotiated", "No ALPN negotiated"),
    ],
)
def test_openssl_with_alpn_gets_the_whole_chain(
    tls_server: Callable[..., TlsServer], offered: str, browsers: str, backends: str
) -> None:
    server = tls_server()
    for port, negotiated in ((server.port, browsers), (server.push_port, backends)):
        output = run(
            "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(server.root), "-showcerts",
            "-verify_return_error", *(["-alpn", offered] if offered else []), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Verify return code: 0 (ok)" in output
        assert negotiated in output
        assert output.count("BEGIN CERTIFICATE") == 2
        assert "alert" not in output


@needs("curl")
def test_curl_verifies_and_is_answered(tls_server: Callable[..., TlsServer]) -> None:
    server = tls_server()
    output = run(
        "curl", "-sv", "--noproxy", "*", "--cacert", str(server.root), f"https://localhost:{server.port}/healthz"
    )
    assert "SSL certificate verify ok" in output
    assert "HTTP/1.1 200 OK" in output
    assert "ok\n" in output


@needs("chromium")
def test_chromium_opens_a_websocket_over_tls(tls_server: Callable[..., TlsServer]) -> None:
    from tests.e2e.browser import open_browser, open_page

    server = tls_server()
    with (
        open_browser("--ignore-certificate-errors") as browser,
        open_page(browser, f"https://localhost:{server.port}/healthz", forgive="404") as page,  # it has no icon
    ):
        page.add_script_tag(url=f"https://localhost:{server.port}/assets/js/websocket-client.js")
        page.evaluate(
            """() => {
                window.events = [];
                wsClient.on("authenticated", (data) => events.push(["authenticated", data.user_id]));
                wsClient.on("order_paid", (data) => events.push(["order_paid", data.order]));
                wsClient.connect(7);
            }"""
        )
        page.wait_for_function("events.length === 1")
        with server.backend() as backend:
            assert backend.push("order_paid", {"order": 3}, to={"user_id": 7})["delivered"] == 1
        page.wait_for_function("events.length === 2")
        assert page.evaluate("events") == [["authenticated", 7], ["order_paid", 3]]
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "http/1.1"


# --- renewal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", others_long(["1", "2"]))
def test_sighup_takes_a_renewed_certificate_and_keeps_connections(
    tls_server: Callable[..., TlsServer], workers: str
) -> None:
    server = tls_server("--workers", workers)
    server.server.expect_log("listen for browsers" if workers == "2" else "listening for browsers", 60)
    before = server.serial(server.port)
    with server.browser() as browser, server.backend() as backend:
        browser.auth(7)
        server.install(server.authority.issue("localhost", "new.example", end=30))
        output = server.reload()
        for setting in (f'--listen "{server.listen}"', f'--push-listen "{server.push_listen}"'):
            assert (
                f'configuration: {setting}: new connections get the new certificate "localhost", valid until 20'
                in output
            )
        until(lambda: server.serial(server.port) != before, "the new certificate")
        until(lambda: server.serial(server.push_port) == server.serial(server.port), "it for backends")
        backend.push("note", {}, to={"user_id": 7})
        browser.expect("note")
        assert "nothing has changed" in server.reload()


@pytest.mark.parametrize("workers", others_long(["1", "2"]))
def test_sighup_with_a_broken_certificate_keeps_the_old_one_and_logs_why(
    tls_server: Callable[..., TlsServer], workers: str
) -> None:
    server = tls_server("--workers", workers)
    server.server.expect_log("listen for browsers" if workers == "2" else "listening for browsers", 60)
    before = server.serial(server.port)
    with server.browser() as browser:
        browser.auth(7)
        kept = (server.directory / "key.pem").read_bytes()
        for content, reason in (
            (b"", "contains no private key in PEM form"),
            (server.authority.issue().key, "does not belong to the certificate"),
        ):
            (server.directory / "key.pem").write_bytes(content)
            output = server.reload()
            assert "the new configuration is rejected, the old one stays: --listen" in output
            assert reason in output
            assert server.serial(server.port) == server.serial(server.push_port) == before
        (server.directory / "key.pem").write_bytes(kept)
        assert "nothing has changed" in server.reload()
        assert browser.settle() == []


@pytest.mark.long
def test_a_worker_that_starts_late_gets_the_certificate_that_was_checked(
    tls_server: Callable[..., TlsServer],
) -> None:
    server = tls_server("--workers", "2")
    server.server.expect_log("workers listen for browsers", 60)
    before = server.serial(server.port)
    (server.directory / "key.pem").write_bytes(b"half writ")
    first = process_of(server.server, 0)
    os.kill(first, signal.SIGKILL)
    until(lambda: process_of(server.server, 0) != first, "the next worker 0", 60)
    for _ in range(8):  # of both workers, as a rule
        assert server.serial(server.port) == before


# --- the end of input -----------------------------------------------------------------------------------------------


def push_and_half_close(server: TlsServer, *, close_notify: bool) -> bytes:
    """Push three lines, end the output, and read the answers."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    plain = socket.create_connection(("127.0.0.1", server.push_port), DEADLINE)
    plain.settimeout(None)
    client = SSL.Connection(context, plain)
    client.set_connect_state()
    client.do_handshake()
    client.sendall(b'{"op":"ping"}\n{"event":"note","data":{},"to":{"user_id":7},"ack":true}\n{"op":"presence"}')
    if close_notify:
        client.shutdown()
    plain.shutdown(socket.SHUT_WR)
    answers = b""
    try:
        while True:
            answers += client.recv(4096)
    except SSL.ZeroReturnError:
        return answers
    finally:
        plain.close()


@pytest.mark.parametrize("close_notify", [True, False])
def test_a_push_over_tls_that_half_closes_gets_its_answers(
    tls_server: Callable[..., TlsServer], close_notify: bool
) -> None:
    server = tls_server("--broker", "sqlite:///log.db")  # answers after the read, unlike the log in memory
    answers = push_and_half_close(server, close_notify=close_notify).splitlines()
    assert len(answers) == 3
    assert all(b'"ok":true' in answer for answer in answers)


def test_a_push_over_tls_without_json_gets_an_error(tls_server: Callable[..., TlsServer]) -> None:
    server = tls_server()
    with server.backend() as backend:
        backend.send_bytes(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert backend.read_line()["code"] == "bad_json"
        assert backend.read_to_end() == b""
