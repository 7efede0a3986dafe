"""Presence of contacts and statuses of agents over workers, and over a restart of them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server
from tests.e2e.wire import Browser

pytestmark = pytest.mark.long

SECRET = "presence-over-workers-and-restarts"
READY = "2 workers listen for browsers"


def enter(server: Server, id: int, role: str, **claims: Any) -> tuple[Browser, dict[str, Any]]:
    """Open a page, and return it with the data of `authenticated`."""
    token = jwt.encode({"sub": str(id), "role": role, "exp": time.time() + 3600, **claims}, SECRET, "HS256")
    browser = server.browser()
    browser.send({"type": "auth", "token": token})
    return browser, browser.expect("authenticated")["data"]


def agents_of_both_workers(server: Server) -> list[Browser]:
    """Return an agent on each worker, subscribed to conversation 456."""
    agents: dict[str, Browser] = {}
    for id in range(100, 200):
        browser, reply = enter(server, id, "agent")
        worker = reply["connection_id"].partition("-")[0]
        if worker in agents:
            browser.close()
            continue
        agents[worker] = browser
        browser.subscribe(456)
        if len(agents) == 2:
            return [*agents.values()]
    raise AssertionError("a hundred pages went to one worker")


def test_presence_is_one_over_workers_and_statuses_survive_a_restart(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    arguments = ("--workers", "2", "--contacts", "--availability", "--contact-grace", "0.1")
    times = ("--presence-grace", "0.1", "--drain-timeout", "0.5")
    history = f"sqlite:///{tmp_path}/history.db"
    server = chatws_server(*arguments, *times, "--broker", history, CHATWS_SECRET=SECRET)
    server.expect_log(READY, 60)
    agents = agents_of_both_workers(server)
    contact, reply = enter(server, 7, "contact", conversations=[456])
    assert reply["available"] is True
    contact.subscribe(456)
    for agent in agents:
        agent.expect("contact_status", conversation_id=456, contact_id=7, status="online")
    assert agents[0].subscribe(456)["contacts_online"] == [7]
    contact.close()
    for agent in agents:
        agent.expect("contact_status", conversation_id=456, contact_id=7, status="offline")

    busy, _ = enter(server, 5, "agent")
    busy.send({"type": "status", "status": "busy"})
    busy.expect("status_set", status="busy")
    for agent in agents:
        agent.expect("agent_status", agent_id=5, status="busy")
        agent.send({"type": "presence"})
        assert agent.expect("presence")["data"]["status"] == {"5": "busy"}

    assert server.stop() == 0, server.log
    server.start()
    server.expect_log(READY, 60)
    _, reply = enter(server, 5, "agent")
    assert reply["status"] == "busy"
