"""`chatws webhook`, with a real receiver and a real server."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.test_command import Background, background, chatws, towards, values
from tests.e2e.test_webhooks import eventually
from tests.webhook_receiver import webhook_receiver

__all__ = ["background"]


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text("a webhook secret\n")
    path.chmod(0o600)
    return str(path)


def test_event_is_signed_and_the_answer_is_shown(secret_file: str) -> None:
    with webhook_receiver("a webhook secret") as receiver:
        done = chatws("webhook", "test", "--url", receiver.url, "--secret-file", secret_file)
        assert (done.returncode, done.stdout) == (0, "acknowledged: status 200\n")
        receiver.answer = lambda request: (307, {"Location": "https://elsewhere/"}, b"moved")
        done = chatws("webhook", "test", "--url", receiver.url, "--secret-file", secret_file)
        assert done.returncode == 1
        assert done.stdout == "not acknowledged: status 307, Location: https://elsewhere/, moved\n"
    (event,) = receiver.requests[0]["events"]
    assert (event["event"], event["seq"]) == ("test", 0)


@pytest.mark.long
def test_settings_come_from_the_environment_too(secret_file: str) -> None:
    with webhook_receiver("another secret") as receiver:
        done = chatws(
            "webhook", "test", "--json", CHATWS_WEBHOOK_URL=receiver.url, CHATWS_WEBHOOK_SECRET_FILE=secret_file
        )
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, 401)


@pytest.mark.long
def test_receiver_that_is_away_or_not_named_is_an_error() -> None:
    away = chatws("webhook", "test", "--url", f"http://127.0.0.1:{free_port()}/")
    assert (away.returncode, "connection refused" in away.stdout) == (1, True)
    unnamed = chatws("webhook", "test")
    assert unnamed.returncode != 0
    assert "--url URL" in unnamed.stderr


@pytest.mark.long
def test_listen_prints_what_the_command_test_sends(secret_file: str, background: Callable[..., Background]) -> None:
    listening = background("webhook", "listen", "--port", "0", "--secret-file", secret_file)
    listening.expect_note("listening on ")
    url = listening.err[0].rpartition(" ")[2]
    assert chatws("webhook", "test", "--url", url, "--secret-file", secret_file).returncode == 0
    assert listening.expect_lines(2)[0] == "1 event, signature valid, answered 200"
    assert listening.end(signal.SIGINT) == 130


@pytest.mark.long
def test_sync_sends_the_whole_state_again(chatws_server: Callable[..., Server], secret_file: str) -> None:
    with webhook_receiver("a webhook secret") as receiver:
        options = ("--webhook-url", receiver.url, "--webhook-secret-file", secret_file, "--webhook-start-delay", "0")
        server = chatws_server(*options)
        server.agent(5)
        eventually(lambda: receiver.online == {5}, "agent 5")
        count = receiver.names().count("presence_reset")
        assert towards(server, "webhook", "sync").returncode == 0
        eventually(lambda: receiver.names().count("presence_reset") > count, "the whole state")
    assert receiver.online == {5}


@pytest.mark.long
def test_sync_without_webhooks_fails(server: Server) -> None:
    done = towards(server, "webhook", "sync", "--timeout", "0.5")
    assert done.returncode == 1
    assert "webhooks are not configured" in done.stderr
    assert values(towards(server, "agents", "--json"))


@pytest.mark.long
def test_check_reaches_the_receiver_when_asked(secret_file: str) -> None:
    with webhook_receiver("a webhook secret") as receiver:
        settings = {"CHATWS_WEBHOOK_URL": receiver.url, "CHATWS_WEBHOOK_SECRET_FILE": secret_file}
        assert chatws("check", **settings).returncode == 0
        assert receiver.requests == []
        done = chatws("check", "--webhook", **settings)
        assert (done.returncode, receiver.requests[0]["events"]) == (0, []), done.stderr
        receiver.answer = lambda request: (500, {}, b"broken")
        done = chatws("check", "--webhook", **settings)
    assert done.returncode == 1
    assert "does not acknowledge an empty request: status 500, broken" in done.stdout
