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


def test_the_page_s_own_origin_on_any_port_and_no_origin_at_all_are_let_in(besieged: Server) -> None:
    for origin in ("http://chat.example", "https://chat.example:8443", None):
        with Raw(besieged.port) as page:
            assert page.upgrade(Origin=origin).pong()


def test_slowloris_heads_are_cut_off_in_time(besieged: Server) -> None:
    request = head(Cookie="x" * 4000)
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(besieged.port)) for _ in range(100)]
        sent = 0
        while any(not one.ended for one in slow):
            assert sent < len(request) - 1, "the whole head was let through"
            for one in slow:
                if not one.ended:
                    one.send(request[sent : sent + 1])
            sent += 1
            try:
                # the wait for an answer is the drip's pace
                one = next(one for one in slow if not one.ended)
                one.rest += one.receive(0.05)
            except TimeoutError:
                continue
            for other in slow:
                other.rest = other.read_to_end()
        assert all(one.rest.startswith(b"HTTP/1.1 408 ") for one in slow)


def test_connections_that_say_nothing_are_closed_in_time(besieged: Server) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(Raw(besieged.port)) for _ in range(100)]
        assert {one.read_to_end() for one in silent} == {b""}


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_head_too_long_is_refused(end: bytes, besieged: Server) -> None:
    with Raw(besieged.port) as page:
        assert page.ask(head()[:-2] + b"Cookie: " + b"x" * 9000 + end)[0] == 431


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
def test_what_is_no_http_request_is_refused_and_not_repeated(request_head: bytes, besieged: Server) -> None:
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
def test_a_request_is_not_smuggled_behind_another(framing: bytes, besieged: Server) -> None:
    smuggled = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with Raw(besieged.port) as page:
        status, answer = page.ask(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + smuggled)
        assert status in (400, 411, 413)
        assert answer.count(b"HTTP/1.1 ") == 1
    with Raw(besieged.port) as page:
        status, answer = page.ask(head()[:-2] + framing + b"\r\n\r\n" + smuggled)
        assert status == 400
        assert answer.count(b"HTTP/1.1 ") == 1


def test_what_stands_in_headers_does_not_forge_the_log(besieged: Server) -> None:
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
        assert "refused 127.0.0.1, page of 'no origin': too many connections from your address" in server.log
        pages[0].close()

        def one_may_enter() -> bool:
            with Raw(server.port) as another:
                another.send(head())
                return another.receive().startswith(b"HTTP/1.1 101 ")

        # the others stay refused, the place that was left is given again
        until(one_may_enter, "the place of the one who went")


def test_what_a_browser_writes_before_its_proxy_is_not_believed_either(chatws_server: Start) -> None:
    server = chatws_server("--max-connections-per-ip", "2")
    with bystander(server), ExitStack() as stack:
        pages = [stack.enter_context(Raw(server.port)) for _ in range(4)]
        for number, page in enumerate(pages):
            page.send(head(X_Forwarded_For=f"192.0.2.{number}, 203.0.113.7"))
            assert page.receive()[9:12] == (b"101" if number < 2 else b"429")
        with Raw(server.port) as other:
            assert other.upgrade(X_Forwarded_For="203.0.113.8").pong()


def test_a_full_server_says_so_and_keeps_those_who_are_in(chatws_server: Start) -> None:
    server = chatws_server("--max-connections", "6")
    with bystander(server), ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Raw(server.port)).upgrade()
        for _ in range(50):
            with Raw(server.port) as page:
                status, answer = page.ask(head())
                assert status == 503
                assert b"Retry-After: " in answer


def test_two_thousand_connections_that_come_and_go_leave_nothing_behind(besieged: Server) -> None:
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
