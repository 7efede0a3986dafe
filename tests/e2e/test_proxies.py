"""chatws behind each proxy of deploy/: a node that hangs gets no new browsers."""

from __future__ import annotations

import signal
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus, WebSocketException

from tests.e2e.caddy import Caddy
from tests.e2e.cluster import upstream
from tests.e2e.conftest import Server
from tests.e2e.haproxy import ShippedHaProxy
from tests.e2e.nginx import Nginx
from tests.e2e.wire import DEADLINE, Browser
from tests.requirements import needs

Start = Callable[..., Server]

#: Pages that connect at the same time while a node hangs.
PAGES = 24


@contextmanager
def proxy_before(name: str, nodes: list[Server], directory: Path) -> Iterator[str]:
    """The proxy with its shipped file before these nodes. Yields its address, `127.0.0.1:PORT`."""
    place, root = directory / name, directory / "public"
    place.mkdir()
    root.mkdir()
    (root / "index.html").write_text("the application")
    match name:
        case "nginx":
            with Nginx(place, upstream(*(f"127.0.0.1:{node.port}" for node in nodes)), root) as nginx:
                yield f"127.0.0.1:{nginx.port}"
        case "haproxy":
            ports = [(node.port, node.push_port) for node in nodes]
            with ShippedHaProxy(place, ports, proxied=False) as haproxy:
                yield f"127.0.0.1:{haproxy.ports['browsers']}"
        case _:
            with Caddy(place, tuple(node.port for node in nodes), root) as caddy:
                yield f"127.0.0.1:{caddy.port}"


@contextmanager
def frozen(node: Server) -> Iterator[None]:
    """The node hangs for the block: the kernel still accepts its connections."""
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.process.send_signal(signal.SIGCONT)


def attempts_of_page(address: str, number: int) -> int:
    """Connect and authenticate as a page does that repeats failed attempts. Returns how many it needed."""
    for attempt in range(1, 6):
        try:
            with Browser(f"ws://{address}/ws") as browser:
                browser.auth(number)
                return attempt
        except (OSError, WebSocketException):
            continue
    raise AssertionError("five attempts have failed")


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param("nginx", marks=needs("nginx")),
        pytest.param("haproxy", marks=[needs("haproxy"), pytest.mark.long]),
        pytest.param("caddy", marks=[needs("caddy"), pytest.mark.long]),
    ],
)
def test_new_pages_while_a_node_hangs_are_served_by_the_other(proxy: str, chatws_server: Start, tmp_path: Path) -> None:
    nodes = [chatws_server("--trusted-proxy", "127.0.0.1") for _ in range(2)]
    with proxy_before(proxy, nodes, tmp_path) as address:
        for number in range(4):
            assert attempts_of_page(address, number) == 1
        with frozen(nodes[0]), ThreadPoolExecutor(PAGES) as pool:
            attempts = list(pool.map(lambda number: attempts_of_page(address, number), range(PAGES)))
    # without a check of the nodes it would be half of them at most
    assert attempts.count(1) >= PAGES * 3 / 4, attempts


@needs("caddy")
def test_caddy_serves_pages_the_library_and_web_sockets(chatws_server: Start, tmp_path: Path) -> None:
    node = chatws_server("--max-connections-per-ip", "1")
    with proxy_before("caddy", [node, node], tmp_path) as address:
        with urllib.request.urlopen(f"http://{address}/", timeout=DEADLINE) as answer:
            assert answer.read() == b"the application"
        with urllib.request.urlopen(f"http://{address}/assets/js/websocket-client.js", timeout=DEADLINE) as answer:
            assert b"ChatwsClient" in answer.read()
        # Caddy trusts no X-Forwarded-For of a client, and Host is that of the page
        headers = {"X-Forwarded-For": "203.0.113.1"}
        with Browser(f"ws://{address}/ws", origin=f"http://{address}", headers=headers) as browser:
            browser.auth(1)
            with pytest.raises(InvalidStatus, match="429"):
                Browser(f"ws://{address}/ws")
