from __future__ import annotations

import sys
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Retention
from chatws.brokers.memory import MemoryBroker
from chatws.brokers.redis.broker import RedisBroker
from chatws.brokers.redis.url import RedisUrl
from chatws.brokers.sqlite.broker import SqliteBroker
from chatws.errors import ConfigError


@pytest.mark.parametrize("url", ["memory", "memory:", "memory://"])
def test_memory_needs_no_address(url: str) -> None:
    assert isinstance(open_broker(url, Retention(), reactor=Clock()), MemoryBroker)


def test_sqlite_takes_a_path_and_opens_nothing_yet(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}/log.db", Retention(), reactor=Clock())
    assert isinstance(broker, SqliteBroker)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_one_of_the_directory_in_which_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        def deliver(self, events: object) -> None: ...
        def reset(self, epoch: str) -> None: ...

    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    broker = open_broker("sqlite:///log.db", Retention(), reactor=Clock())
    monkeypatch.chdir(tmp_path)
    broker.start(Nobody())
    broker.stop()
    assert (tmp_path / "there" / "log.db").is_file()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite://host/log.db",
        "sqlite:log.db",
        "sqlite:///:memory:",
        "sqlite:///log.db?mode=ro",
        "sqlite:///log\0.db",
        "memory://somewhere",
        "Memory",
        "/var/lib/chatws/log.db",
        "mysql://chat:hunter2@db/chat",
        "redis",
        "redis:",
        "redis://",
        "redis://hunter2@host",
        "redis://chat:hunter2@host:port",
        "redis://chat:hunter2@host:0",
        "redis://:hunter2@one,two",
        "redis://:hunter2@host/chat",
        "redis://:hunter2@host?hunger=hunter2",
        "redis://:hunter2@host?replicas=hunter2",
        "redis://:hunter2@host?prefix=a{b}hunter2",
        "redis+unix://host/path?sentinel_password=hunter2",
        "redis+unix://",
        "redis+sentinel://:hunter2@one,two:26379",
        "redis+sentinel://:hunter2@one,two:26379/name/x",
        "mysql://chat:hunter2\n@db/chat",
    ],
)
def test_an_invalid_url_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_broker(url, Retention(), reactor=Clock())
    line = str(caught.value)
    assert line.startswith("broker: ")
    assert "\n" not in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisUrl(hosts=(("localhost", 6379),))),
        ("redis://[::1]:7000/3", RedisUrl(hosts=(("::1", 7000),), db=3)),
        ("rediss://h?ca=/etc/ca.pem&db=2", RedisUrl(hosts=(("h", 6379),), tls=True, ca="/etc/ca.pem", db=2)),
        ("redis://:p%40ss@h", RedisUrl(hosts=(("h", 6379),), password="p@ss")),
        ("redis://me:p:w@h?prefix=shop", RedisUrl(hosts=(("h", 6379),), user="me", password="p:w", prefix="shop")),
        ("redis+unix:///run/redis.sock?db=1", RedisUrl(path="/run/redis.sock", db=1)),
        (
            "redis+sentinel://:pw@a,b:7/main/4?replicas=1&sentinel_user=u&sentinel_password=s",
            RedisUrl(
                hosts=(("a", 26379), ("b", 7)),
                service="main",
                db=4,
                password="pw",
                replicas=1,
                sentinel_user="u",
                sentinel_password="s",
            ),
        ),
    ],
)
def test_redis_is_found_by_its_url(url: str, expected: RedisUrl) -> None:
    assert RedisUrl.parse(url) == expected
    assert isinstance(open_broker(url, Retention(), reactor=Clock()), RedisBroker)


@pytest.mark.parametrize("url", ["redis://me:hunter2@h", "redis+sentinel://:hunter2@h/m?sentinel_password=hunter2"])
def test_the_name_of_a_redis_in_messages_holds_no_password(url: str) -> None:
    assert "hunter2" not in RedisUrl.parse(url).name


def test_redis_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hiredis", None)
    for name in ("broker", "connection", "sentinel", "session"):
        monkeypatch.delitem(sys.modules, f"chatws.brokers.redis.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"pip install chatws\[redis\]"):
        open_broker("redis://localhost", Retention(), reactor=Clock())


def test_redis_is_durable_by_its_own_settings() -> None:
    with pytest.raises(ConfigError, match="appendfsync"):
        open_broker("redis://localhost", Retention(), sync_commits=True, reactor=Clock())


def test_memory_cannot_be_durable() -> None:
    with pytest.raises(ConfigError, match="sqlite"):
        open_broker("memory", Retention(), sync_commits=True, reactor=Clock())
