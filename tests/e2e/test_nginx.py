"""chatws behind a real nginx with deploy/nginx/chatws.conf."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import Server
from tests.e2e.nginx import CONFIGURATION, Nginx
from tests.e2e.wire import DEADLINE, Browser
from tests.requirements import needs

pytestmark = needs("nginx")

CLIENT = "/assets/js/websocket-client.js"


@contextmanager
def nginx_before(upstream: str, directory: Path) -> Iterator[Nginx]:
    (directory / "nginx").mkdir()
    (directory / "public").mkdir()
    (directory / "public" / "index.html").write_text("the application")
    with Nginx(directory / "nginx", upstream, directory / "public") as connection:
        yield connection


def get(nginx: Nginx, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def status_of_upgrade(url: str, **options: object) -> int:
    """The HTTP status that an attempt to open a WebSocket is answered with."""
    try:
        Browser(url, **options).close()  # type: ignore[arg-type]
    except InvalidStatus as refusal:
        return refusal.response.status_code
    return 101


def test_websockets_and_pages_share_one_port(server: Server, tmp_path: Path) -> None:
    with (
        nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx,
        Browser(nginx.ws_url, origin=nginx.url) as browser,
    ):
        browser.auth(1)
        browser.subscribe(456)
        with server.backend() as backend:
            assert backend.push("new_message", {"conversation_id": 456, "message": {"content": "x" * 500_000}})
        assert len(browser.expect("new_message")["data"]["message"]["content"]) == 500_000
        assert get(nginx, "/")[::2] == (200, b"the application")
        status, _, body = get(nginx, "/ws")
        assert status == 426
        assert b"This is a WebSocket endpoint" in body
        assert get(nginx, "/healthz")[0] == 404, "that is for the machine itself"


def test_chatws_may_be_on_a_unix_socket(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server("--listen", f"unix:{tmp_path}/ws.sock:mode=666")
    with (
        nginx_before(f"unix:{tmp_path}/ws.sock", tmp_path) as nginx,
        Browser(nginx.ws_url, origin=nginx.url) as connection,
    ):
        connection.auth(1)
        with server.backend() as backend:
            assert backend.request({"op": "presence"})["online"] == [1]


def test_a_page_of_another_host_is_refused(server: Server, tmp_path: Path) -> None:
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        assert status_of_upgrade(nginx.ws_url, origin="http://evil.example") == 403
        assert status_of_upgrade(nginx.ws_url, origin=nginx.url) == 101
        assert status_of_upgrade(nginx.ws_url) == 101


def test_each_browser_counts_by_its_own_address(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    """The client is on the loopback, which is trusted, so that an X-Forwarded-For of its own is another proxy's."""
    server = chatws_server("--max-connections-per-ip", "1")
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:

        def from_address(address: str) -> dict[str, object]:
            return {"headers": {"X-Forwarded-For": address}}

        with Browser(nginx.ws_url, **from_address("203.0.113.1")):  # type: ignore[arg-type]
            assert status_of_upgrade(nginx.ws_url, **from_address("203.0.113.1")) == 429
            assert status_of_upgrade(nginx.ws_url, **from_address("203.0.113.2")) == 101
            assert status_of_upgrade(nginx.ws_url, **from_address("203.0.113.1, 203.0.113.3")) == 101


def test_oversized_requests_get_the_same_answer_behind_nginx(server: Server, tmp_path: Path) -> None:
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        with Browser(nginx.ws_url) as browser:
            browser.auth(1)
            browser.send({"type": "ping", "x": "x" * 70_000})
            assert browser.expect_close()[0] == 1009
        assert status_of_upgrade(nginx.ws_url, headers={"Cookie": "x" * 30_000}) == 101
        assert get(nginx, CLIENT, Cookie="x" * 30_000)[0] == 200
        assert status_of_upgrade(nginx.ws_url, headers={"X-One": "x" * 20_000, "X-Two": "x" * 20_000}) == 431
    server.expect_log("rejected a request from 127.0.0.1: a request head has at most 32768 bytes; see max_head_size")


def test_a_restart_behind_nginx_recovers(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server("--broker", f"sqlite:///{tmp_path}/log.db")
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        browser = Browser(nginx.ws_url)
        last = browser.auth(1)["last_event_id"]
        server.stop()
        assert browser.expect_close()[0] == 4012
        assert status_of_upgrade(nginx.ws_url) == 502
        server.start()
        with server.backend() as backend:
            backend.push("note", {"n": 1}, to="everyone")
        with Browser(nginx.ws_url) as browser:
            assert browser.auth(1, last_event_id=last)["recovered"] is True
            browser.expect("note", n=1)


def test_a_server_that_dies_is_noticed_behind_it(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        browser = Browser(nginx.ws_url)
        browser.auth(1)
        server.stop(9)
        assert browser.expect_close()[0] == 1006


def test_the_client_library_is_kept_and_answered_also_while_chatws_is_away(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = chatws_server()
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        status, headers, script = get(nginx, CLIENT)
        assert (status, headers["x-cache"]) == (200, "MISS")
        assert b"ChatwsClient" in script
        assert "max-age" in headers["cache-control"]
        etag = headers["etag"]
        assert get(nginx, CLIENT)[1]["x-cache"] == "HIT"
        assert get(nginx, CLIENT, **{"If-None-Match": etag})[0] == 304
        server.stop()
        status, headers, again = get(nginx, CLIENT)
        assert (status, headers["x-cache"], again) == (200, "HIT", script)


def test_an_idle_connection_outlives_the_read_time_out(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    """The time-outs of the file, made shorter in proportion."""
    text = CONFIGURATION.read_text()
    assert "proxy_read_timeout 120s;" in text
    server = chatws_server("--ping-interval", "0.5", "--ping-timeout", "20")
    with nginx_before(f"127.0.0.1:{server.port}", tmp_path) as nginx:
        path = nginx.directory / "chatws.conf"
        path.write_text(path.read_text().replace("proxy_read_timeout 120s;", "proxy_read_timeout 5s;"))
        nginx.stop()
        nginx.start()
        with Browser(nginx.ws_url) as browser:
            browser.auth(1)
            with pytest.raises(TimeoutError):
                browser.receive(8)
            assert browser.settle() == []
