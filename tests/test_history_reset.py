"""`chatws history reset` begins a new epoch on each engine, and a restored backup with it is noticed by pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Retention
from chatws.brokers.reset import reset_history
from chatws.errors import ConfigError
from tests.e2e.process import clean_environment
from tests.postgres_nodes import PATIENCE, Nodes, RecordingHandler, new_event, nodes, until
from tests.redis import RedisServer, redis
from tests.requirements import needs

__all__ = ["nodes", "redis"]

reactor: Any = _reactor


async def reset(url: str) -> str:
    return await reset_history(url, now=time.time(), timeout=PATIENCE, reactor=reactor)


async def started(url: str) -> tuple[Any, RecordingHandler]:
    broker = open_broker(url, Retention(), reactor=reactor, timeout=PATIENCE)
    told = RecordingHandler()
    await broker.start(told)
    return broker, told


@needs("postgresql")
@pytest_twisted.ensureDeferred
async def test_running_nodes_on_postgresql_begin_the_new_epoch(nodes: Nodes) -> None:
    [broker, told], [_, heard] = [await nodes.node() for _ in range(2)]
    await broker.publish([new_event("before", key="k")])
    await heard.until("before")
    epoch = await reset(nodes.url)
    await until(lambda: told.epochs == heard.epochs == [epoch], "both nodes to begin the epoch")
    [event] = await broker.publish([new_event("after")])
    assert (broker.epoch, event.offset) == (epoch, 1)


@pytest_twisted.ensureDeferred
async def test_running_nodes_on_redis_begin_the_new_epoch(redis: RedisServer, request: pytest.FixtureRequest) -> None:
    url = redis.url_for(request.node.name)
    with pytest.raises(ConfigError, match="there is no history at"):
        await reset(url)
    [broker, told], [other, heard] = [await started(url) for _ in range(2)]
    try:
        await broker.publish([new_event("before", key="k")])
        await heard.until("before")
        epoch = await reset(url)
        await until(lambda: told.epochs == heard.epochs == [epoch], "both nodes to begin the epoch")
        [event] = await other.publish([new_event("after")])
        assert (broker.epoch, event.offset) == (epoch, 1)
        assert (await broker.publish([new_event("before", key="k")]))[0].duplicate
    finally:
        await broker.stop()
        await other.stop()


@pytest_twisted.ensureDeferred
async def test_restored_sqlite_file_after_a_reset_has_another_epoch(tmp_path: Path) -> None:
    path, backup = tmp_path / "log.db", tmp_path / "backup.db"
    url = f"sqlite:///{path}"
    with pytest.raises(ConfigError, match="there is no history in"):
        await reset(url)
    broker, _ = await started(url)
    await broker.publish([new_event(f"e{number}") for number in range(5)])
    epoch = broker.epoch
    with pytest.raises(ConfigError, match="is in use by another process"):
        await reset(url)
    await broker.stop()
    shutil.copy(path, backup)
    broker, _ = await started(url)
    await broker.publish([new_event("seen by pages")])
    await broker.stop()
    shutil.copy(backup, path)
    new_epoch = await reset(url)
    broker, _ = await started(url)
    assert broker.epoch == new_epoch != epoch
    assert await broker.read(0, 10) == []
    await broker.stop()


@pytest_twisted.ensureDeferred
async def test_history_in_memory_has_nothing_to_reset() -> None:
    with pytest.raises(ConfigError, match="restart the server"):
        await reset("memory")


def test_command_resets_the_history_of_the_configuration(tmp_path: Path) -> None:
    from chatws.brokers.sqlite.store import SqliteStore

    path = tmp_path / "log.db"
    store = SqliteStore(str(path), Retention(), sync_commits=True, boot=None)
    store.open(time.time())
    store.close()
    (tmp_path / "chatws.toml").write_text(f'broker = "sqlite:///{path}"\n')
    words = [sys.executable, "-m", "chatws.cli", "history", "reset", "--config", str(tmp_path / "chatws.toml")]
    done = subprocess.run(words, env=clean_environment(), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    store = SqliteStore(str(path), Retention(), sync_commits=True, boot=None)
    store.open(time.time())
    store.close()
    assert done.stdout == f"the history begins again with epoch {store.epoch}: every page reloads\n"
