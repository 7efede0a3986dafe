from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock

from chatws.brokers import open_broker
from chatws.brokers.contract import Bounds
from chatws.brokers.memory import MemoryBroker
from chatws.brokers.sqlite import SqliteBroker
from chatws.errors import OperatorError


@pytest.mark.parametrize("url", ["memory", "memory:", "memory://"])
def test_memory_needs_no_address(url: str) -> None:
    assert isinstance(open_broker(url, Bounds(), reactor=Clock()), MemoryBroker)


def test_sqlite_takes_a_path_and_opens_nothing_yet(tmp_path: Path) -> None:
    broker = open_broker(f"sqlite:///{tmp_path}/log.db", Bounds(), reactor=Clock())
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
    broker = open_broker("sqlite:///log.db", Bounds(), reactor=Clock())
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
        "mysql://chat:hunter2\n@db/chat",
    ],
)
def test_a_bad_url_is_told_in_one_line_that_holds_no_password(url: str) -> None:
    with pytest.raises(OperatorError) as caught:
        open_broker(url, Bounds(), reactor=Clock())
    line = str(caught.value)
    assert line.startswith("broker: ")
    assert "\n" not in line
    assert "hunter2" not in line


def test_memory_cannot_be_durable() -> None:
    with pytest.raises(OperatorError, match="sqlite"):
        open_broker("memory", Bounds(), durable=True, reactor=Clock())
