"""Nodes that cannot reach the engine, without a RST: in both directions, in one, in the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import PostgresEngine, RedisEngine, readiness, upstream
from tests.e2e.conftest import Server
from tests.e2e.network import Network
from tests.e2e.nginx import Nginx
from tests.e2e.process import clean_environment
from tests.e2e.wire import DEADLINE, Backend, Browser, until
from tests.requirements import NETWORK_NAMESPACES, needs

pytestmark = [pytest.mark.long, needs("iproute2"), needs("nginx"), needs(NETWORK_NAMESPACES)]

#: What becomes of each node's packets to the engine, and of the engine's to it.
NODES = {"whole": "", "cut": "both", "mute": "to", "deaf": "from"}
TIMEOUT, LEASE, GRACE = 1.0, 4.0, 1.0
GUEST = 9
SECRET = "a secret of thirty-two characters"


class Cluster:
    """Four nodes, an engine, an nginx, and an outside client, each on its own host."""

    def __init__(self, kind: str, directory: Path, exits: ExitStack) -> None:
        network = self.network = exits.enter_context(Network("engine", "front", "outside", *NODES))
        here = network.address("engine")
        if kind == "redis":
            redis = RedisEngine("--bind", "127.0.0.1", here, "--protected-mode", "no")
            exits.callback(redis.close)
            with network.inside("engine"):
                redis.start()
            url = redis.url.replace("127.0.0.1", here)
        else:
            postgres = PostgresEngine()
            exits.callback(postgres.close)
            postgres.listen_also(here, "10.77.0.0/16")
            with network.inside("engine"):
                postgres.start()
            url = postgres.url.replace("127.0.0.1", here)
        self.servers: dict[str, Server] = {}
        for name in NODES:
            server = self.servers[name] = self.prepare(name, url, directory)
            exits.callback(lambda server=server: server.process is not None and server.stop())
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.start, NODES))
        public, place = directory / "public", directory / "nginx"
        public.mkdir(), place.mkdir()
        addresses = [f"{network.address(name)}:{self.servers[name].port}" for name in NODES]
        self.nginx = Nginx(place, upstream(*addresses), public)
        with network.inside("front"):
            exits.enter_context(self.nginx)

    def prepare(self, name: str, url: str, directory: Path) -> Server:
        place = directory / name
        place.mkdir()
        server = Server(place, (), clean_environment())
        (place / "push-secret").write_text(SECRET)
        (place / "push-secret").chmod(0o600)
        server.arguments = (
            *("--broker", url, "--broker-timeout", f"{TIMEOUT}"),
            *("--presence-ttl", f"{LEASE}", "--presence-grace", f"{GRACE}", "--drain-timeout", "0"),
            *("--message-rate", "0", "--subscription-rate", "0"),
            *("--interface", "", "--auth", "trust", "--push-listen", f"tcp:{server.push_port}"),
            *("--push-secret-file", "push-secret"),
        )
        return server

    def start(self, name: str) -> None:
        with self.network.inside(name):
            self.servers[name].start()

    def partition(self) -> None:
        for name, direction in NODES.items():
            if direction in ("both", "to"):
                self.network.cut(name, "engine")
            if direction in ("both", "from"):
                self.network.cut("engine", name)

    def page(self, name: str, user_id: int, **more: Any) -> Browser:
        """A browser from outside that is on this node."""
        with self.network.inside("outside"):
            page = Browser(f"ws://{self.network.address(name)}:{self.servers[name].port}/ws")
        page.auth(user_id, **more)
        page.subscribe(1, **more)
        return page

    def backend(self, name: str) -> Backend:
        with self.network.inside("outside"):
            backend = Backend((self.network.address(name), self.servers[name].push_port))
        assert backend.request({"op": "auth", "secret": SECRET})["ok"]
        return backend

    def ready(self, name: str) -> tuple[int, str]:
        with self.network.inside("outside"):
            return readiness(self.network.address(name), self.servers[name].port)


@pytest.fixture(
    params=[pytest.param("postgresql", marks=needs("postgresql")), pytest.param("redis", marks=needs("redis-server"))]
)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as exits:
        yield Cluster(request.param, tmp_path, exits)


def push(backend: Backend, key: str) -> dict[str, Any]:
    return backend.request({"event": "new_message", "data": {"conversation_id": 1, "n": key}, "id": key})


def is_taken(backend: Backend, key: str) -> None:
    """… by a node that reaches the engine. `TIMEOUT` is short for a busy machine."""
    until(lambda: push(backend, key)["ok"], f"{key!r} to be taken")


def settled_statuses(page: Browser) -> list[tuple[int, str]]:
    """What the page was told of the agents by now."""
    page.settle()
    result = [item["data"] for item in page.received if item.get("event") == "agent_status"]
    return [(item["agent_id"], item["status"]) for item in result if item["agent_id"] != GUEST]


def test_a_partition_delays_events_and_loses_none(cluster: Cluster) -> None:
    pages = {name: cluster.page(name, number) for number, name in enumerate(NODES, 1)}
    backends = {name: cluster.backend(name) for name in NODES}
    for name in NODES:
        is_taken(backends[name], f"before, by {name}")
    until(lambda: len(settled_statuses(pages["whole"])) == 3, "all to be online")

    cluster.partition()
    # the node that is not cut off continues at once
    is_taken(backends["whole"], "meanwhile")
    # the others respond in time that the broker is unavailable
    began = time.monotonic()
    for name in ("cut", "mute", "deaf"):
        answer = push(backends[name], f"meanwhile, by {name}")
        assert (answer["ok"], answer["code"]) == (False, "unavailable")
    assert time.monotonic() - began < DEADLINE
    for name in ("cut", "mute", "deaf"):
        until(lambda name=name: cluster.ready(name)[0] == 503, f"the node {name} to say that it is not ready")
        assert "broker:" in cluster.ready(name)[1]
    assert cluster.ready("whole")[0] == 200
    # their agents are offline for the others, once the lease and the grace period are over
    until(lambda: len(settled_statuses(pages["whole"])) == 6, "them to be offline")
    # their connections stay open
    is_taken(backends["whole"], "later")
    for name in ("cut", "mute", "deaf"):
        assert [
            item for item in pages[name].settle() if item["event"] == "new_message" and item["data"]["n"] == "later"
        ] == []

    # nginx's host loses the three as well: new clients reach the remaining node and recover there
    for name in ("cut", "mute", "deaf"):
        cluster.network.cut_both("front", name)
    with cluster.network.inside("front"), Browser(cluster.nginx.ws_url) as moved:
        last = next(item["id"] for item in reversed(pages["cut"].received) if "id" in item)
        assert moved.auth(GUEST, last_event_id=last)["recovered"] is True
        assert moved.subscribe(1, last_event_id=last)["recovered"] is True
        assert {"meanwhile", "later"} <= {item["data"].get("n") for item in moved.settle()}

    cluster.network.heal()
    for name in NODES:
        until(lambda name=name: cluster.ready(name)[0] == 200, f"the node {name} to be ready")
    # the rejected events are sent again, to another node, with their keys. What "deaf" sent may be stored already
    for name in ("cut", "mute", "deaf"):
        is_taken(backends["whole"], f"meanwhile, by {name}")
    is_taken(backends["cut"], "after")
    expected = {f"before, by {name}" for name in NODES} | {f"meanwhile, by {name}" for name in ("cut", "mute", "deaf")}
    expected |= {"meanwhile", "later", "after"}
    orders = []
    for page in pages.values():
        page.expect("new_message", n="after")
        orders.append([item["data"]["n"] for item in page.received if item.get("event") == "new_message"])
    assert sorted(orders[0]) == sorted(expected)
    assert orders == [orders[0]] * len(NODES)
    # online once, offline once, online once
    until(lambda: len(settled_statuses(pages["whole"])) == 9, "them to be online")
    told = settled_statuses(pages["whole"])
    for number in (2, 3, 4):
        assert [status for first, status in told if first == number] == ["online", "offline", "online"], told
    for page in (*pages.values(), *backends.values()):
        page.close()
    for server in cluster.servers.values():
        server.finish()
