"""A run with faults: three nodes, agents that come and go, nodes that die or stand still, a receiver that fails."""

from __future__ import annotations

import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import PostgresEngine, RedisEngine
from tests.e2e.conftest import Server
from tests.e2e.test_webhooks import SECRET, options
from tests.e2e.wire import Browser, until
from tests.requirements import needs
from tests.webhook_receiver import Receiver, Reply, webhook_receiver

pytestmark = pytest.mark.long

#: Seconds for the state to be right after the last fault: the pauses of retries, and takeovers on a busy machine.
SETTLING = 180.0
AGENTS = 12
ROUNDS = 40


class FailingReceiver:
    """Fails at random while `is_failing`: 500, no answer, an answer after the sender's time-out."""

    def __init__(self, chance: random.Random) -> None:
        self.is_failing = True
        self._chance = chance
        self._late = threading.Event()

    def __call__(self, request: Any) -> Reply:
        if self.is_failing:
            match self._chance.randrange(6):
                case 0:
                    return (500, {}, b"failed")
                case 1:
                    return None
                case 2:
                    self._late.wait(2.5)
        return (200, {}, b"")


def changes_of(receiver: Receiver) -> dict[Any, list[str]]:
    """Each agent's acknowledged changes in the order of the queue, a repetition with the same id once."""
    by_id: dict[str, Any] = {}
    for event in list(receiver.acknowledged):
        if event["event"] in ("agent_online", "agent_offline"):
            known = by_id.setdefault(event["id"], event)
            assert {**known, "seq": 0, "last_seen_ms": 0} == {**event, "seq": 0, "last_seen_ms": 0}
    changes: dict[Any, list[str]] = defaultdict(list)
    for event in sorted(by_id.values(), key=lambda event: int(event["id"].rpartition("-")[2])):
        changes[event["user_id"]].append(event["event"])
    return changes


@pytest.fixture(
    params=[
        pytest.param(RedisEngine, marks=needs("redis-server"), id="redis"),
        pytest.param(PostgresEngine, marks=needs("postgresql"), id="postgres"),
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An engine that outlives the servers."""
    engine = request.param()
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def test_reported_state_is_the_real_state_after_faults(
    engine: Any, chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    chance = random.Random(22)
    with webhook_receiver(SECRET) as receiver:
        failing = FailingReceiver(random.Random(7))
        receiver.answer = failing
        words = ("--broker", engine.url, "--presence-ttl", "2", "--webhook-timeout", "1", "--broker-timeout", "10")
        nodes = [chatws_server(*options(receiver, tmp_path, *words)) for _ in range(3)]
        online: dict[int, tuple[Server, Browser]] = {}
        for _ in range(ROUNDS):
            node = chance.choice(nodes)
            user_id = chance.randrange(AGENTS)
            match chance.randrange(12):
                case 0:
                    node.restart(signal.SIGKILL)
                    online = {one: (on, page) for one, (on, page) in online.items() if on is not node}
                case 1:
                    assert node.process is not None
                    node.process.send_signal(signal.SIGSTOP)
                    threading.Event().wait(chance.uniform(0.1, 3.0))
                    node.process.send_signal(signal.SIGCONT)
                case _ if user_id in online:
                    online.pop(user_id)[1].close()
                case _:
                    online[user_id] = (node, node.agent(user_id))
        failing.is_failing = False

        def real_state() -> set[Any]:
            with nodes[0].backend() as backend:
                return set(backend.request({"op": "presence"})["online"])

        until(lambda: real_state() == set(online), "the servers to know who is online", SETTLING)
        until(lambda: receiver.online == set(online), "the reported state", SETTLING)
        changes = changes_of(receiver)
        assert changes
        for user_id, kinds in changes.items():
            expected = ["agent_online", "agent_offline"] * len(kinds)
            assert kinds == expected[: len(kinds)], user_id
            assert (kinds[-1] == "agent_online") is (user_id in online)
        assert set(online) <= set(changes)
