"""A stop while the server still starts: no error, no traceback, and nothing is opened afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, globalLogPublisher

from chatws.config.schema import Config
from chatws.errors import Unavailable
from chatws.runtime.service import ChatwsService


class Server(ChatwsService):
    """A server that binds no port.

    :ivar failures: the reasons for which the process would end.
    :ivar serves: the start is complete.
    """

    failures: list[tuple[str, int]]
    serves = False

    async def _listen(self) -> None:
        pass

    def _started(self) -> None:
        self.serves = True

    def _abort_start(self, reason: str, status: int) -> None:
        self.failures.append((reason, status))


@pytest.fixture
def reactor() -> Any:
    return MemoryReactorClock()


@pytest.fixture
def server(reactor: Any) -> Server:
    service = Server(Config(port=0, push_port=0), reactor)
    service.failures = []
    return service


@pytest.fixture
def errors() -> Iterator[list[Any]]:
    seen: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] >= LogLevel.error:
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


STEPS = ["broker.start", "broker.offset_range", "broker.online"]


def held(server: Server, step: str, monkeypatch: pytest.MonkeyPatch) -> Deferred[Any]:
    """Make that step of the start wait, and return what it waits for."""
    waiting: Deferred[Any] = Deferred()
    broker = server.chat.broker
    monkeypatch.setattr(broker, step.partition(".")[2], lambda *_: waiting)
    return waiting


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_because_of_the_stop_is_no_error(
    step: str, server: Server, errors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = held(server, step, monkeypatch)
    server.startService()
    stopped = server.stopService()
    waiting.errback(Unavailable("the event history is closed"))
    assert stopped.called
    assert server.failures == []
    assert errors == []


@pytest.mark.parametrize("step", ["broker.start", "broker.online"])
def test_a_step_that_succeeds_after_the_stop_does_not_complete_the_start(
    step: str, server: Server, errors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = held(server, step, monkeypatch)
    server.startService()
    stopped = server.stopService()
    waiting.callback([])
    assert stopped.called
    assert not server.serves
    assert server.failures == []
    assert errors == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_by_itself_ends_the_start(
    step: str, server: Server, errors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = held(server, step, monkeypatch)
    server.startService()
    waiting.errback(Unavailable("no database"))
    assert server.failures == [("unavailable: no database", 1)]
    assert [event["log_format"] for event in errors] == ["chatws cannot start"]
