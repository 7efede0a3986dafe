"""Attacks on a real server before there is a WebSocket: whatever is sent, a bystander still gets its events."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import Raw, head, rss
from tests.e2e.siege import besieged, bystander, unharmed
from tests.e2e.wire import until

__all__ = ["besieged", "unharmed"]

Start = Callable[..., Server]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://chat.example.evil.example",
        "http://chat.example@evil.example",
        "http://chat.example:8080, https://evil.example",
        "file://",
        "http://chat.example/",
        "wss://chat.example:8080",
        "",
    ],
)
def test_a_page_of_another_site_is_refused_before_the_upgrade(origin: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        status, answer = page.ask(head(Origin=origin))
        assert status == 403
        assert b"101" not in answer
        assert b"evil" not in answer


def test_a_second_origin_does_not_hide_the_first(besieged: Server) -> None:
    two = head(Origin="https://evil.example").replace(b"Upgrade:", b"Origin: http://chat.example:8080\r\nUpgrade:", 1)
    with Raw(besieged.port) as page:
        assert page.ask(two)[0] == 403


def test_own_origin_on_any_port_and_absent_origin_are_accepted(besieged: Server) -> None:
    for origin in ("http://chat.example", "https://chat.example:8443", None):
        with Raw(besieged.port) as page:
            assert page.upgrade(Origin=origin).pong()


def test_slowloris_heads_are_cut_off_in_time(besieged: Server) -> None:
    request = head(Cookie="x" * 4000)
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(besieged.port)) for _ in range(100)]
        sent = 0
        while any(not raw.at_eof for raw in slow):
            assert sent < len(request) - 1, "the whole head was let through"
            for raw in slow:
                if not raw.at_eof:
                    raw.send(request[sent : sent + 1])
            sent += 1
            try:
                # the wait for an answer is the drip's pace
                raw = next(raw for raw in slow if not raw.at_eof)
                raw.buffer += raw.receive(0.05)
            except TimeoutError:
                continue
            for other in slow:
                other.buffer = other.read_to_end()
        assert all(raw.buffer.startswith(b"HTTP/1.1 408 ") for raw in slow)


def test_silent_connections_are_closed_after_the_timeout(besieged: Server) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(Raw(besieged.port)) for _ in range(100)]
        assert {raw.read_to_end() for raw in silent} == {b""}


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_head_too_long_is_refused(end: bytes, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        assert page.ask(head()[:-2] + b"Cookie: " + b"x" * 33_000 + end)[0] == 431


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /ws\rX: y HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /ws%0d%0aX-Injected:%20yes\nX-Injected: yes HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  /ws HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\n X-Folded: yes\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET /ws HTTP/1.1\nHost: a\n\n",
        b"GET evil.example:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /ws HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"\x00\xff" * 1000,
    ],
    ids=lambda value: ascii(value)[2:32],
)
def test_an_invalid_http_request_is_rejected_without_an_echo(request_head: bytes, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        status, answer = page.ask(request_head)
        assert status == 400
        assert b"Injected" not in answer
        assert answer.count(b"HTTP/1.1") == 1


def test_tls_on_the_plain_port_is_refused_at_once(besieged: Server) -> None:
    context = ssl.create_default_context()
    with Raw(besieged.port) as page, pytest.raises(ssl.SSLError):
        context.wrap_socket(page.socket, server_hostname="chat.example")


@pytest.mark.parametrize(
    "path",
    [
        "/assets/js/../../../../../etc/passwd",
        "/assets/js/%2e%2e/%2e%2e/config.py",
        "/assets/js/..%2f..%2f..%2fetc%2fpasswd",
        "/assets/js/websocket-client.js/../../../config.py",
        "/assets/js/websocket-client.js%00.html",
        "/assets/../config.py",
        "//etc/passwd",
        "/assets/js/",
        "/assets/js/..\\..\\config.py",
    ],
)
def test_no_path_leads_out_of_the_assets(path: str, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        status, answer = page.ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert status in (400, 404)
        assert b"root:" not in answer
        assert b"import" not in answer


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: xchunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Content-Length: 99999999999999999999",
    ],
)
def test_a_request_cannot_be_smuggled_behind_another(framing: bytes, besieged: Server) -> None:
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with Raw(besieged.port) as page:
        status, answer = page.ask(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + smuggled)
        assert status in (400, 411, 413)
        assert answer.count(b"HTTP/1.1 ") == 1
    with Raw(besieged.port) as page:
        status, answer = page.ask(head()[:-2] + framing + b"\r\n\r\n" + smuggled)
        assert status == 400
        assert answer.count(b"HTTP/1.1 ") == 1


def test_header_values_cannot_forge_log_lines(besieged: Server) -> None:
    with Raw(besieged.port) as page:
        assert page.ask(head(Origin="http://a.example/\x1b[2J\r\n2026-01-01 forged"))[0] == 400
    with Raw(besieged.port) as page:
        page.ask(head(Origin="http://\xe9\x85\xa8{secret}%s.example"))
    assert "forged" not in besieged.log
    assert "\x1b" not in besieged.log


def test_a_forged_forwarded_address_is_not_believed(chatws_server: Start) -> None:
    server = chatws_server("--trusted-proxy", "10.0.0.0/8", "--max-connections-per-ip", "5")
    with bystander(server), ExitStack() as stack:
        pages = [stack.enter_context(Raw(server.port)) for _ in range(10)]
        for number, page in enumerate(pages):
            forged = {"X-Forwarded-For": f"203.0.113.{number}", "X-Real-IP": f"198.51.100.{number}"}
            page.send(head(**forged))
            assert page.receive()[9:12] == (b"101" if number < 5 else b"429")
        server.expect_log("rejected a request from 127.0.0.1, origin 'none': too many connections from your address")
        pages[0].close()

        def one_may_enter() -> bool:
            with Raw(server.port) as another:
                another.send(head())
                return another.receive().startswith(b"HTTP/1.1 101 ")

        # the others stay refused, the place that was left is given again
        until(one_may_enter, "the place of the one who went")


def test_forwarded_addresses_of_untrusted_peers_are_ignored(chatws_server: Start) -> None:
    server = chatws_server("--max-connections-per-ip", "2")
    with bystander(server), ExitStack() as stack:
        pages = [stack.enter_context(Raw(server.port)) for _ in range(4)]
        for number, page in enumerate(pages):
            page.send(head(X_Forwarded_For=f"192.0.2.{number}, 203.0.113.7"))
            assert page.receive()[9:12] == (b"101" if number < 2 else b"429")
        with Raw(server.port) as other:
            assert other.upgrade(X_Forwarded_For="203.0.113.8").pong()


def test_a_full_server_rejects_newcomers_and_keeps_its_connections(chatws_server: Start) -> None:
    server = chatws_server("--max-connections", "6")
    with bystander(server), ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Raw(server.port)).upgrade()
        for _ in range(50):
            with Raw(server.port) as page:
                status, answer = page.ask(head())
                assert status == 503
                assert b"Retry-After: " in answer


def test_two_thousand_short_connections_do_not_grow_memory(besieged: Server) -> None:
    def storm() -> int:
        for number in range(1000):
            with Raw(besieged.port) as page:
                if number % 4 == 0:
                    page.upgrade()
                elif number % 4 == 1:
                    page.send(head()[:40])
                elif number % 4 == 2:
                    page.ask(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
        return rss(besieged.pid)

    first = storm()
    assert storm() < first + 8 * 1024 * 1024


@pytest.mark.long
def test_slow_heads_use_at_most_the_memory_of_a_head(chatws_server: Start) -> None:
    server = chatws_server(
        "--handshake-timeout", "600", MALLOC_MMAP_THRESHOLD_="16384", MALLOC_TRIM_THRESHOLD_="131072"
    )
    head_size, count = 32_768, 300
    part = head(Cookie="x" * head_size)[: head_size - 100]
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(server.port)) for _ in range(count)]
        for raw in slow:
            raw.send(head()[:100])
        before = rss(server.pid)
        for raw in slow:
            raw.send(part[100:])
        for raw in slow:  # the next byte is taken only when the former have been
            raw.send(b"x")
        with Raw(server.port) as other:
            assert other.ask(head("/healthz", Upgrade=None))[0] == 200
        until(lambda: rss(server.pid) - before > count * head_size / 2, "the heads to be read")
        assert rss(server.pid) - before < count * head_size * 2
        assert slow[0].ask(b"x" * 200)[0] == 431
