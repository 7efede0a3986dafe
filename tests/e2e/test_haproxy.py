"""A real HAProxy in front: health checks, and the PROXY protocol in all its forms."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.e2e.conftest import Server
from tests.e2e.haproxy import HaProxy, ShippedHaProxy
from tests.e2e.process import free_port
from tests.e2e.wire import DEADLINE, Backend, Browser, until
from tests.requirements import needs

pytestmark = needs("haproxy")

Start = Callable[..., Server]

#: A push that ends its input at once: three answers, one of them from the broker.
LINES = b'{"op":"ping"}\n{"event":"note","data":{},"to":{"user_id":7},"ack":true}\n{"op":"presence"}'


def push_and_half_close(port: int) -> list[dict[str, object]]:
    with Backend(port) as backend:
        backend.send_bytes(LINES)
        backend.half_close()
        return [json.loads(line) for line in backend.read_to_end().splitlines()]


def test_shipped_file_with_two_nodes_serves_browsers_and_backends(chatws_server: Start, tmp_path: Path) -> None:
    ports = [(free_port(), free_port()) for _ in range(2)]
    for pair in ports:
        browsers, push = (f"haproxy:tcp:{port}:interface=127.0.0.1" for port in pair)
        chatws_server("--listen", browsers, "--push-listen", push)
    with ShippedHaProxy(tmp_path, ports) as proxy:
        until(lambda: proxy.check("browsers", "node1") == "UP L7OK 200", "the check of browsers to pass")
        until(lambda: proxy.check("push", "node1").startswith("UP L4OK"), "the check of backends to pass")
        with Browser(f"ws://127.0.0.1:{proxy.ports['browsers']}/ws") as browser:
            browser.auth(7)
            assert [answer["ok"] for answer in push_and_half_close(proxy.ports["push"])] == [True, True, True]


@pytest.mark.parametrize("check", ["option httpchk", "option httpchk OPTIONS /readyz", "option httpchk GET /healthz"])
def test_haproxy_s_health_check_finds_a_node_up_and_a_stopped_one_down(
    chatws_server: Start, tmp_path: Path, check: str
) -> None:
    server = chatws_server()
    lines = f"mode http\n{check}\nserver chatws 127.0.0.1:{server.port} check inter 100ms fall 2 rise 1"
    with HaProxy(tmp_path, {"browsers": lines}) as proxy:
        until(lambda: proxy.check("browsers").startswith("UP L7OK 20"), f"the check to pass: {proxy.check('browsers')}")
        with Browser(f"ws://127.0.0.1:{proxy.ports['browsers']}/ws") as browser:
            browser.auth(7)
        server.stop()
        until(lambda: proxy.check("browsers").startswith("DOWN"), "the node to count as down")


def test_haproxy_s_check_of_readyz_finds_a_node_without_its_database_down(chatws_server: Start, tmp_path: Path) -> None:
    shop = tmp_path / "shop.db"
    server = chatws_server("--database", f"sqlite:///{shop}", "--auth", "trust")
    lines = f"mode http\noption httpchk OPTIONS /readyz\nserver chatws 127.0.0.1:{server.port} check inter 100ms"
    with HaProxy(tmp_path, {"browsers": lines}) as proxy:
        until(lambda: "503" in proxy.check("browsers"), "the check to fail")
        shop.touch()
        until(lambda: proxy.check("browsers") == "UP L7OK 200", "the check to pass")


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_push_by_haproxy_that_half_closes_gets_its_answers(
    chatws_server: Start, tmp_path: Path, version: str, workers: str
) -> None:
    port = free_port()
    server = chatws_server("--push-listen", f"haproxy:tcp:{port}:interface=127.0.0.1", "--workers", workers)
    server.expect_log("listen for browsers" if workers == "2" else "listening for browsers", 60)
    backend = f"mode tcp\nserver chatws 127.0.0.1:{port} {version} check inter 100ms"
    with HaProxy(tmp_path, {"push": backend}) as proxy:
        until(lambda: proxy.check("push").startswith("UP L4OK"), "the check to pass")
        answers = push_and_half_close(proxy.ports["push"])
        assert [answer["ok"] for answer in answers] == [True, True, True]
    assert "closed a connection from" not in server.log


def test_a_push_by_haproxy_to_a_unix_socket_that_half_closes_gets_its_answers(
    chatws_server: Start, tmp_path: Path
) -> None:
    path = tmp_path / "push.sock"
    chatws_server("--push-listen", f"haproxy:unix:{path}", "--broker", "sqlite:///log.db")
    with HaProxy(tmp_path, {"push": f"mode tcp\nserver chatws {path} send-proxy-v2"}) as proxy:
        assert [answer["ok"] for answer in push_and_half_close(proxy.ports["push"])] == [True, True, True]


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_haproxy_sends_its_header_before_tls_to_browsers_and_backends(
    chatws_server: Start, tmp_path: Path, version: str
) -> None:
    authority = Authority()
    signed = authority.issue()
    (tmp_path / "root.pem").write_bytes(authority.root)
    (tmp_path / "both.pem").write_bytes(signed.key + signed.fullchain)
    port, push_port = free_port(), free_port()
    tls = f"privateKey={tmp_path}/both.pem:interface=127.0.0.1"
    server = chatws_server(
        "--listen", f"haproxy:ssl:{port}:{tls}", "--push-listen", f"haproxy:ssl:{push_port}:{tls}",
        "--broker", "sqlite:///log.db",
    )  # fmt: skip
    options = f"ssl verify required ca-file {tmp_path}/root.pem sni str(localhost) {version} check inter 100ms"
    with HaProxy(
        tmp_path,
        {
            "browsers": f"mode http\noption httpchk\nserver chatws 127.0.0.1:{port} alpn http/1.1 {options}",
            "push": f"mode tcp\nserver chatws 127.0.0.1:{push_port} {options}",
        },
    ) as proxy:
        until(lambda: proxy.check("browsers") == "UP L7OK 204", "the check to pass")
        with Browser(f"ws://127.0.0.1:{proxy.ports['browsers']}/ws") as browser:
            browser.auth(7)
            assert [answer["ok"] for answer in push_and_half_close(proxy.ports["push"])] == [True, True, True]
            browser.expect("note")
    assert "closed a connection from" not in server.log


def test_the_client_s_address_is_that_of_the_proxy_header(chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    server = chatws_server("--listen", f"haproxy:tcp:{port}:interface=127.0.0.1")
    # it connects from 127.0.0.2, and HAProxy itself from 127.0.0.1
    with HaProxy(tmp_path, {"browsers": f"mode http\nserver chatws 127.0.0.1:{port} send-proxy-v2"}) as proxy:
        plain = socket.create_connection(
            ("127.0.0.1", proxy.ports["browsers"]), DEADLINE, source_address=("127.0.0.2", 0)
        )
        with Browser(f"ws://127.0.0.1:{proxy.ports['browsers']}/ws", sock=plain) as browser:
            browser.auth(7)
            browser.socket.socket.sendall(b"\x81\x02hi")  # not masked
            server.expect_log("user 7, from 127.0.0.2: ended abnormally")


def test_a_client_without_a_proxy_header_is_closed_and_logged_once(chatws_server: Start) -> None:
    port = free_port()
    server = chatws_server("--listen", f"haproxy:tcp:{port}:interface=127.0.0.1")
    for _ in range(3):
        with pytest.raises(OSError, match=r"reset|closed"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=DEADLINE)
    line = "closed a connection from 127.0.0.1: no PROXY header; a haproxy: endpoint is for a proxy"
    server.expect_log(line)
    assert server.log.count(line) == 1
