"""Webhooks of real servers to a real receiver."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatws.cli.token import make_token
from chatws.ids import Id
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.redis import RedisServer
from tests.requirements import needs
from tests.webhook_receiver import Receiver, webhook_receiver

Start = Callable[..., Server]

#: Seconds for what takes seconds: retries, the end of leases, and the grace after a restart.
PATIENCE = 90.0

SELECTED = ("activity", "agent_online", "agent_offline", "heartbeat")
SECRET = "the secret of the receiver"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook_receiver(SECRET) as receiver:
        yield receiver


def options(receiver: Receiver, directory: Path, *more: str) -> tuple[str, ...]:
    secret = directory / "webhook-secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    return (
        *("--webhook-url", receiver.url, "--webhook-secret-file", str(secret), "--webhook-heartbeat", "1"),
        *("--presence-grace", "0.2", "--drain-timeout", "0", *more),
    )


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition is true."""
    until(condition, what, PATIENCE)


def events_of(receiver: Receiver, name: str) -> list[Any]:
    return [event for event in receiver.events() if event["event"] == name]


def test_agent_that_comes_pings_and_leaves_is_reported(
    chatws_server: Start, receiver: Receiver, tmp_path: Path
) -> None:
    selected = [word for event in SELECTED for word in ("--webhook-event", event)]
    server = chatws_server(*options(receiver, tmp_path, "--broker", "sqlite:///log.db", *selected))
    began = int(time.time() * 1000)
    agent = server.agent(5)
    eventually(lambda: events_of(receiver, "heartbeat"), "a heartbeat before any ping")
    before = events_of(receiver, "heartbeat")[0]["last_activity_ms"]
    assert began - 1000 <= before <= time.time() * 1000
    agent.send({"type": "ping", "last_activity": 1_700_000_000_123})
    eventually(
        lambda: any(one["last_activity_ms"] == 1_700_000_000_123 for one in events_of(receiver, "heartbeat")),
        "the ping's last_activity, unchanged",
    )
    agent.send({"type": "ping", "idle_ms": 600_000})
    eventually(
        lambda: 500_000 < time.time() * 1000 - events_of(receiver, "heartbeat")[-1]["last_activity_ms"] < 700_000,
        "the arrival minus idle_ms",
    )
    for _ in range(3):
        agent.send({"type": "activity", "activity_type": "visibility_change"})
    eventually(lambda: events_of(receiver, "activity"), "the activity")
    agent.close()
    eventually(lambda: events_of(receiver, "agent_offline"), "agent_offline")
    assert receiver.changes() == [("agent_online", 5), ("agent_offline", 5)]
    (online,), (offline,) = events_of(receiver, "agent_online"), events_of(receiver, "agent_offline")
    assert online["status"] == "online"
    assert began <= offline["last_seen_ms"] <= offline["time_ms"]
    numbers = [event["seq"] for event in receiver.events()]
    assert numbers == sorted(set(numbers))
    (activity, *_) = events_of(receiver, "activity")
    assert (activity["user_id"], activity["activity_type"]) == (5, "visibility_change")


@pytest.mark.long
def test_changes_survive_a_kill_while_the_receiver_is_down(chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    down = Receiver()
    down.url = f"http://127.0.0.1:{port}/hook"
    server = chatws_server(*options(down, tmp_path, "--broker", "sqlite:///log.db", "--presence-ttl", "3"))
    server.agent(5).close()
    server.agent(6)
    server.expect_log("a webhook was not acknowledged")
    with server.backend() as backend:
        eventually(lambda: backend.request({"op": "presence"})["online"] == [6], "agent 5 to be offline")
    server.restart(signal.SIGKILL)
    with webhook_receiver(SECRET, port) as receiver:
        eventually(
            lambda: ("agent_offline", 6) in receiver.changes(), "the end of agent 6, whose page does not come back"
        )
        assert sorted(receiver.changes()[:3]) == [("agent_offline", 5), ("agent_online", 5), ("agent_online", 6)]
        assert receiver.changes()[3:] == [("agent_offline", 6)]
        assert receiver.online == set()


@pytest.mark.long
def test_memory_broker_sends_the_whole_state_after_the_start_delay(
    chatws_server: Start, receiver: Receiver, tmp_path: Path
) -> None:
    server = chatws_server(*options(receiver, tmp_path, "--webhook-start-delay", "1"))
    server.agent(5)
    eventually(lambda: receiver.online == {5}, "agent 5")
    server.restart(signal.SIGKILL)
    before = len(receiver.events())
    server.agent(6)
    eventually(lambda: receiver.online == {6}, "the state after the restart")
    assert receiver.events()[before]["event"] == "presence_reset"


def test_receiver_that_hangs_delays_nothing_else(chatws_server: Start, receiver: Receiver, tmp_path: Path) -> None:
    released = threading.Event()

    def hang(request: Any) -> tuple[int, dict[str, str], bytes]:
        released.wait(60)
        return (200, {}, b"")

    receiver.answer = hang
    server = chatws_server(*options(receiver, tmp_path, "--broker", "sqlite:///log.db", "--webhook-timeout", "60"))
    agent = server.agent(5, 456)
    eventually(lambda: receiver.requests, "a request that hangs")
    with server.backend() as backend:
        for number in range(50):
            backend.push("new_message", {"conversation_id": 456, "n": number})
            assert agent.expect("new_message")["data"]["n"] == number
    assert receiver.acknowledged == []
    receiver.answer = lambda request: (200, {}, b"")
    released.set()
    eventually(lambda: receiver.online == {5}, "agent 5")


@pytest.mark.long
def test_rotated_secret_is_used_after_a_reload(chatws_server: Start, receiver: Receiver, tmp_path: Path) -> None:
    server = chatws_server(*options(receiver, tmp_path, "--broker", "sqlite:///log.db"))
    server.agent(5)
    eventually(lambda: receiver.online == {5}, "agent 5")
    receiver.secret = "another secret"
    server.expect_log("status 401")
    (tmp_path / "webhook-secret").write_text(f"{SECRET}\nanother secret\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    server.agent(6)
    eventually(lambda: receiver.online == {5, 6}, "agent 6, signed with both secrets")


@needs("redis-server")
def test_another_node_reports_the_agents_of_a_dead_one_once(
    chatws_server: Start, receiver: Receiver, tmp_path: Path
) -> None:
    redis = RedisServer(persistent=True)
    try:
        redis.start()
        more = ("--broker", redis.url, "--presence-ttl", "2", "--webhook-timeout", "2")
        one, other = (chatws_server(*options(receiver, tmp_path, *more)) for _ in range(2))
        one.agent(5), one.agent(6), other.agent(6)
        eventually(lambda: receiver.online == {5, 6}, "both agents")
        assert one.process is not None
        one.stop(signal.SIGKILL)
        eventually(lambda: receiver.online == {6}, "agent 5 of the dead node")
        assert sorted(receiver.changes()) == [("agent_offline", 5), ("agent_online", 5), ("agent_online", 6)]
    finally:
        redis.close()


@pytest.mark.long
def test_workers_report_each_agent_once(chatws_server: Start, receiver: Receiver, tmp_path: Path) -> None:
    server = chatws_server(*options(receiver, tmp_path, "--webhook-start-delay", "0.5", "--workers", "2"))
    agents = [server.agent(number) for number in range(8)]
    eventually(lambda: receiver.online == set(range(8)), "all agents")
    for agent in agents[:4]:
        agent.close()
    eventually(lambda: receiver.online == set(range(4, 8)), "four agents")
    assert sorted(change for change in receiver.changes() if change[0] == "agent_offline") == [
        ("agent_offline", number) for number in range(4)
    ]


@pytest.mark.long
def test_statuses_and_contacts_are_reported(chatws_server: Start, receiver: Receiver, tmp_path: Path) -> None:
    selected = ("agent_online", "agent_status", "contact_online", "contact_offline", "presence_reset")
    words = [word for event in selected for word in ("--webhook-event", event)]
    words += ["--contacts", "--contact-grace", "0.2", "--broker", "sqlite:///log.db"]
    token_secret = "0123456789abcdef0123456789abcdef"
    server = chatws_server(*options(receiver, tmp_path, *words), CHATWS_SECRET=token_secret)

    def token(user_id: int, role: str) -> str:
        expires_at = int(time.time()) + 600
        conversations: list[Id] = [456]
        return make_token(user_id, token_secret.encode(), expires_at, role=role, conversations=conversations)

    agent = server.browser()
    agent.send({"type": "auth", "token": token(5, "agent")})
    agent.expect("authenticated")
    agent.send({"type": "status", "status": "away"})
    eventually(lambda: events_of(receiver, "agent_status"), "the status")
    contact = server.browser()
    contact.send({"type": "auth", "token": token(7, "contact")})
    contact.expect("authenticated")
    contact.send({"type": "subscribe", "conversation_id": 456})
    eventually(lambda: events_of(receiver, "contact_online"), "the contact")
    with server.backend() as backend:
        assert backend.request({"op": "webhook_sync"})["ok"]
    eventually(lambda: len(events_of(receiver, "presence_reset")) > 1, "the whole state")
    contact.close()
    eventually(lambda: events_of(receiver, "contact_offline"), "the end of the contact")
    (status,) = events_of(receiver, "agent_status")
    assert (status["user_id"], status["status"]) == (5, "away")
    reset = events_of(receiver, "presence_reset")[-1]
    member = {"contact_id": 7, "conversation_id": 456}
    assert (reset["online"], reset["status"], reset["contacts"]) == ([5], {"5": "away"}, [member])
    for name in ("contact_online", "contact_offline"):
        (event,) = events_of(receiver, name)
        assert {key: event[key] for key in member} == member
