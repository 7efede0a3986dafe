"""Several real `twistd chatws` nodes on one real engine, and a real nginx before them."""

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

#: Short, so that a run with faults does not consist of waiting.
TIMES = ("--broker-timeout", "1", "--presence-lease", "2", "--presence-grace", "1", "--drain-seconds", "0.5")


class Engine(Protocol):
    """What the nodes share, and what a fault does to it. The methods block."""

    @property
    def url(self) -> str:
        """For `--broker`."""

    def start(self) -> object:
        """Start it, or start it again, with the data that it had, and wait until it answers."""

    def stop(self) -> None:
        """End it in order."""

    def kill(self) -> None:
        """End it as a power cut would."""

    def silence(self) -> None:
        """Have it answer nothing more, without closing anything."""

    def resume(self) -> None:
        """Undo `silence`."""

    def lose_data(self) -> None:
        """It runs on, or again, with nothing in it."""

    def close(self) -> None:
        """Stop it and remove its data."""


class RedisEngine(RedisServer):
    """A Redis that has on disk what it has acknowledged."""

    def __init__(self, *options: str) -> None:
        super().__init__(*options, persistent=True)

    def lose_data(self) -> None:
        """As one does that is restarted without persistence."""
        self.kill()
        for one in self.directory.rglob("appendonly.aof*"):
            if one.is_file():
                one.unlink()
        self.start()


class PostgresEngine(Postgres):
    """The newest PostgreSQL there is."""

    def __init__(self) -> None:
        programs = find_all_programs()
        super().__init__(programs[max(programs)])

    def start(self, *, wait: bool = True) -> None:
        super().start(wait=wait)
        with transaction(self.url) as cursor:
            apply(cursor, "chatws", migrations())

    def listen_also(self, address: str, network: str) -> None:
        """… for whoever is in that network. To be called before it is started."""
        self.addresses += f",{address}"
        with (self._directory / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")

    def lose_data(self) -> None:
        """As when somebody makes the schema anew."""
        self.run("DROP SCHEMA chatws CASCADE")
        self.start()


#: By the name that the command line takes.
ENGINES: dict[str, Callable[[], Engine]] = {"postgresql": PostgresEngine, "redis": RedisEngine}


class Cluster:
    """:ivar nodes: the servers, `chatws-1` and so on in `directory`. Their logs are there.
    :ivar metrics: their metrics ports, which answer /readyz also while they start.

    :param engine: not started; it is closed with the cluster.
    :param arguments: of every node, after `TIMES`.
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
        # an engine ends with the thread that has started it (tests.postgres), so this one stays
        self._hands = ThreadPoolExecutor(1, "cluster")

    def start(self) -> None:
        """The engine, then each node."""
        self.engine.start()
        for node in self.nodes:
            node.start()

    def stop(self) -> None:
        """End everything, whatever state it is in."""
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
        """In asyncio: call what blocks, without blocking."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, action, *arguments)

    def choose(self) -> str:
        """The address of one of the nodes, by chance."""
        return random.choice([node.ws_url for node in self.nodes])

    def push_addresses(self, first: int) -> list[str]:
        """Of all nodes, beginning with this one."""
        addresses = [f"127.0.0.1:{node.push_port}" for node in self.nodes]
        return addresses[first:] + addresses[:first]

    def start_nginx(self) -> Nginx:
        """nginx with deploy/nginx/chatws.conf before all nodes."""
        public, place = self.directory / "public", self.directory / "nginx"
        public.mkdir()
        place.mkdir()
        (public / "index.html").write_text("the application")
        self.nginx = Nginx(place, upstream(*(f"127.0.0.1:{node.port}" for node in self.nodes)), public)
        self.nginx.start()
        return self.nginx

    def is_ready(self, number: int) -> bool:
        """Whether the node's /readyz says yes."""
        return readiness("127.0.0.1", self.metrics[number])[0] == 200

    def wait_until_ready(self, deadline: float = DEADLINE) -> None:
        """Until every node says that it is."""
        for number in range(len(self.nodes)):
            until(lambda number=number: self.is_ready(number), f"node {number + 1} to be ready", deadline)

    def faults_in_logs(self) -> dict[str, list[str]]:
        """Lines of tracebacks, by node."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            lines = [line for line in node.log.splitlines() if "Traceback" in line or "Unhandled" in line]
            if lines:
                found[node.directory.name] = lines
        return found


def upstream(*addresses: str) -> str:
    """What stands for the one address in deploy/nginx/chatws.conf when there are several nodes."""
    return ";\n    server ".join(f"{address} max_fails=0" for address in addresses)


def readiness(host: str, port: int, timeout: float = DEADLINE) -> tuple[int, str]:
    """The status and the text of /readyz; (0, "") when nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/readyz")
        answer: Any = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
