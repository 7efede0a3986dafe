"""A name server that does not answer delays nothing but what waits for it: no push, no other login, not the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.wire import until

#: The interpreter imports this module by itself. Threads that ask for `stuck.example` wait for ever, each of them seen
#: by a line in the file.
STUCK_NAMES = """
import os, socket, threading
asked = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if host in ("stuck.example", b"stuck.example"):
        with open(os.environ["STUCK_LOOKUPS"], "a") as file:
            file.write("asked\\n")
        threading.Event().wait()
    return asked(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""


class Names:
    """:ivar environment: of a server that has such a name server."""

    def __init__(self, directory: Path) -> None:
        (directory / "sitecustomize.py").write_text(STUCK_NAMES)
        self._lookups = directory / "lookups"
        path = os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
        self.environment = {"PYTHONPATH": path, "STUCK_LOOKUPS": str(self._lookups)}

    def is_asked(self) -> bool:
        return self._lookups.exists()


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(tmp_path)


Start = Callable[..., Server]
DURABLE = ("--broker", "sqlite:///log.db", "--sqlite-synchronous", "full", "--drain-timeout", "0")


def test_logins_that_wait_for_a_name_delay_no_durable_push_and_no_stop(chatws_server: Start, names: Names) -> None:
    server = chatws_server(
        *DURABLE, "--auth-url", "http://stuck.example/whoami", "--auth-timeout", "600", **names.environment
    )
    for number in range(15):
        browser = server.browser(headers={"Cookie": f"session={number}"})
        browser.send({"type": "auth", "user_id": number})
    until(names.is_asked, "the first look-up")
    with server.backend() as backend:
        for n in range(3):
            assert backend.push("new_message", {"conversation_id": 456, "n": n})["ok"] is True
    assert server.stop(signal.SIGTERM) == 0


def test_stop_does_not_wait_for_the_name_of_the_database(chatws_server: Start, names: Names) -> None:
    server = chatws_server(
        *DURABLE, "--auth", "trust", "--database", "postgresql://shop@stuck.example/shop", **names.environment
    )
    until(names.is_asked, "the look-up")
    with server.agent(1) as browser, server.backend() as backend:
        backend.push("new_conversation", {"conversation": {"id": 456}})
        browser.expect("new_conversation")
    assert server.stop(signal.SIGTERM) == 0


@pytest.mark.long
def test_workers_stop_during_pending_name_lookups(chatws_server: Start, names: Names) -> None:
    server = chatws_server(
        *("--workers", "2", "--drain-timeout", "0", "--auth-url", "http://stuck.example/", "--auth-timeout", "600"),
        **names.environment,
    )
    for number in range(15):
        server.browser(headers={"Cookie": f"session={number}"}).send({"type": "auth", "user_id": number})
    until(names.is_asked, "the first look-up")
    assert server.stop(signal.SIGTERM) == 0
