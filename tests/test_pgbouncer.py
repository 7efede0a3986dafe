"""The PostgreSQL broker and the application's database through a real PgBouncer in transaction mode."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from chatws.cli.main import main
from chatws.database.factory import open_database
from tests.log_lines import logged_at
from tests.pgbouncer import PgBouncer
from tests.postgres_nodes import PATIENCE, Nodes, new_event, nodes, reactor, until
from tests.requirements import needs

__all__ = ["nodes"]

pytestmark = [needs("pgbouncer"), needs("postgresql")]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that PgBouncer's user can enter, unlike those below pytest's."""
    with tempfile.TemporaryDirectory(prefix="chatws-pgbouncer-") as path:
        yield Path(path)


@pytest.fixture
def pgbouncer(directory: Path, nodes: Nodes) -> Iterator[PgBouncer]:
    with PgBouncer(directory, nodes.server) as one:
        yield one


@pytest.mark.parametrize("listen", ["poll", "past-it"])
@pytest_twisted.ensureDeferred
async def test_nodes_behind_pgbouncer_share_the_history(listen: str, nodes: Nodes, pgbouncer: PgBouncer) -> None:
    url = pgbouncer.before(nodes.url, nodes.server)
    options = {"poll": 0.05} if listen == "poll" else {"listen_url": nodes.url}
    [broker, told], [other, heard] = [await nodes.node(url, **options) for _ in range(2)]
    for number in range(5):
        [event] = await (broker, other)[number % 2].publish([new_event(f"e{number}", key=f"k{number}")])
        assert event.offset == number + 1
    [again] = await other.publish([new_event("e0", key="k0")])
    assert again.duplicate
    await told.until("e0", "e1", "e2", "e3", "e4")
    await heard.until("e0", "e1", "e2", "e3", "e4")
    assert [event.name for event in await other.read(3, 10)] == ["e3", "e4"]
    result = await broker.lease("one", {5: 1}, 30)
    assert result.online == 1
    nodes.run("SELECT chatws.publish('sql', '{}', '\"everyone\"')")
    await until(lambda: "sql" in heard.names, "the event of a transaction")


@pytest_twisted.ensureDeferred
async def test_database_behind_pgbouncer_is_queried_and_the_lack_of_a_timeout_is_logged(
    nodes: Nodes, pgbouncer: PgBouncer, capsys: pytest.CaptureFixture[str]
) -> None:
    from twisted.logger import LogLevel

    url = pgbouncer.before(nodes.url, nodes.server)
    with logged_at(LogLevel.info) as lines:
        database = open_database(url, pool=2, timeout=PATIENCE, reactor=reactor)
        await database.start()
        assert await database.query("SELECT %(n)s AS n", {"n": 7}) == [{"n": 7}]
        await database.stop()
    assert len([line for line in lines if "a connection pooler that rejects statement_timeout" in line]) == 1
    # the command line connects in another way
    assert main(["db", "status", "--broker", url]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest_twisted.ensureDeferred
async def test_terminated_and_exhausted_connections_are_log_lines(nodes: Nodes, directory: Path) -> None:
    with PgBouncer(directory, nodes.server, clients=3) as pgbouncer, logged_at() as lines:
        database = open_database(pgbouncer.before(nodes.url, nodes.server), pool=5, timeout=PATIENCE, reactor=reactor)
        await database.start()
        assert await database.query("SELECT 1 AS n", {}) == [{"n": 1}]
        await until(lambda: any("no more connections allowed" in line for line in lines), "a line about the limit")
        await database.stop()
    broker, told = await nodes.node()
    await until(lambda: any("LISTEN" in query for _, query in nodes.backends()), "it to listen")
    with logged_at() as lines:
        nodes.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'chatws' "
            "AND datname = current_database()"
        )
        await until(lambda: any("has closed a connection" in line for line in lines), "a line about the connections")
        await until(lambda: any("PostgreSQL's notifications has failed" in line for line in lines), "one about LISTEN")
    await broker.publish([new_event("after")])
    await told.until("after")
