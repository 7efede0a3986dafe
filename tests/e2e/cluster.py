"""Several real `twistd chatws` nodes on one real engine, and a real nginx in front."""

from __future__ import annotations

import asyncio
import http.client
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from chatws.brokers.postgres.schema import migrations
from chatws.database.migrations import apply, transaction
from tests.e2e.conftest import Server
from tests.e2e.nginx import Nginx
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import DEADLINE, until
from tests.postgres import Postgres, find_all_programs
from tests.redis import RedisServer

__all__ = ["ENGINES", "Cluster", "Engine", "PostgresEngine", "RedisEngine", "readiness", "upstream"]

T = TypeVar("T")

#: Short times, so that a run with faults waits little.
TIMES = ("--broker-timeout", "1", "--presence-ttl", "2", "--presence-grace", "1", "--drain-timeout", "0.5")


class Engine(Protocol):
    """The engine that the nodes share, with methods that cause faults. The methods block."""

    @property
    def url(self) -> str:
        """The value of `--broker`."""

    def start(self) -> object:
        """Start it, with its previous data if there are any, and wait until it responds."""

    def stop(self) -> None:
        """Shut it down."""

    def kill(self) -> None:
        """Kill it, as a power cut does."""

    def silence(self) -> None:
        """Freeze it: it responds no more, and closes nothing."""

    def resume(self) -> None:
        """Undo `silence`."""

    def lose_data(self) -> None:
        """Delete all of its data. It runs afterwards."""

    def close(self) -> None:
        """Stop it and remove its data."""


class RedisEngine(RedisServer):
    """A Redis that writes to the disk before it acknowledges."""

    def __init__(self, *options: str) -> None:
        super().__init__(*options, persistent=True)

    def lose_data(self) -> None:
        """Lose the data, as a restart without persistence does."""
        self.kill()
        for path in self.directory.rglob("appendonly.aof*"):
            if path.is_file():
                path.unlink()
        self.start()


class PostgresEngine(Postgres):
    """The newest installed PostgreSQL."""

    def __init__(self) -> None:
        programs = find_all_programs()
        super().__init__(programs[max(programs)])

    def start(self, *, wait: bool = True) -> None:
        super().start(wait=wait)
        with transaction(self.url) as cursor:
            apply(cursor, "chatws", migrations())

    def listen_also(self, address: str, network: str) -> None:
        """Listen for hosts of this network. Call it before the start."""
        self.addresses += f",{address}"
        with (self._directory / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")

    def lose_data(self) -> None:
        """Drop the schema and create it again."""
        self.run("DROP SCHEMA chatws CASCADE")
        self.start()


#: Engines by their name on the command line.
ENGINES: dict[str, Callable[[], Engine]] = {"postgresql": PostgresEngine, "redis": RedisEngine}


class Cluster:
    """Nodes on one engine.

    :ivar nodes: the servers, `chatws-1` and so on in `directory`, with their logs.
    :ivar metrics: their metrics ports, which answer /readyz also during the start.

    :param engine: not started. It is closed with the cluster.
    :param arguments: arguments of every node, after `TIMES`.
    """

    def __init__(self, directory: Path, engine: Engine, count: int, *arguments: str) -> None:
        self.directory = directory
        self.engine = engine
        self.metrics = [free_port() for _ in range(count)]
        self.nodes: list[Server] = []
        for number, port in enumerate(self.metrics, 1):
            place = directory / f"chatws-{number}"
            place.mkdir()
            given = ("--broker", engine.url, "--metrics-port", str(port), *TIMES, *arguments)
            self.nodes.append(Server(place, given, clean_environment()))
        self.nginx: Nginx | None = None
        # an engine ends with the thread that started it (tests.postgres), so this thread stays
        self._hands = ThreadPoolExecutor(1, "cluster")

    def start(self) -> None:
        """Start the engine, then each node."""
        self.engine.start()
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """Stop everything, in any state."""
        if self.nginx is not None and self.nginx.process is not None:
            self.nginx.stop()
        problems = []
        for node in self.nodes:
            if node.process is not None:
                try:
                    node.stop()
                except AssertionError as problem:
                    problems.append(str(problem))
        self.engine.close()
        self._hands.shutdown()
        assert not problems, problems

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def do(self, action: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function from asyncio without blocking."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, action, *arguments)

    def choose(self) -> str:
        """The address of a random node."""
        return random.choice([node.ws_url for node in self.nodes])

    def push_addresses(self, first: int) -> list[str]:
        """The push addresses of all nodes, beginning with this one."""
        addresses = [f"127.0.0.1:{node.push_port}" for node in self.nodes]
        return addresses[first:] + addresses[:first]

    def start_nginx(self) -> Nginx:
        """Start nginx with deploy/nginx/chatws.conf in front of all nodes."""
        public, place = self.directory / "public", self.directory / "nginx"
        public.mkdir()
        place.mkdir()
        (public / "index.html").write_text("the application")
        self.nginx = Nginx(place, upstream(*(f"127.0.0.1:{node.port}" for node in self.nodes)), public)
        self.nginx.start()
        return self.nginx

    def is_ready(self, number: int) -> bool:
        """Whether the node's /readyz is 200."""
        return readiness("127.0.0.1", self.metrics[number])[0] == 200

    def wait_until_ready(self, deadline: float = DEADLINE) -> None:
        """Wait until every node is ready."""
        for number in range(len(self.nodes)):
            until(lambda number=number: self.is_ready(number), f"node {number + 1} to be ready", deadline)

    def faults_in_logs(self) -> dict[str, list[str]]:
        """Lines of tracebacks in the logs, by node."""
        result: dict[str, list[str]] = {}
        for node in self.nodes:
            lines = [line for line in node.log.splitlines() if "Traceback" in line or "Unhandled" in line]
            if lines:
                result[node.directory.name] = lines
        return result


def upstream(*addresses: str) -> str:
    """The `server` lines of several nodes for deploy/nginx/chatws.conf."""
    return ";\n    server ".join(f"{address} max_fails=0" for address in addresses)


def readiness(host: str, port: int, timeout: float = DEADLINE) -> tuple[int, str]:
    """The status and the text of /readyz, or (0, "") without a response."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        answer: Any = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
