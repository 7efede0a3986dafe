"""Shared by the attacks: a server that several tests attack, and a bystander who must not be affected.

`from tests.e2e.siege import besieged, unharmed` gives a module both fixtures; `unharmed` watches over every test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import Server, run_server
from tests.e2e.raw import Raw

__all__ = ["PUSH_SECRET", "SECRET", "besieged", "bystander", "unharmed"]

SECRET = "the-secret-that-signs-the-tickets-of-this-test"
PUSH_SECRET = "the-secret-of-the-backends"
#: The address of the bystander, so that limits by address do not count it with the attackers.
ELSEWHERE = "127.0.0.9"
BYSTANDER = 900

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for a module: tokens, or else trust, compression, short deadlines, a push secret."""
    directory = tmp_path_factory.mktemp("besieged")
    push_secret = directory / "push-secret"
    push_secret.touch(0o600)
    push_secret.write_text(PUSH_SECRET)
    arguments = ["--auth", "token", "--auth", "trust", "--compression", "--push-secret-file", str(push_secret)]
    arguments += ["--handshake-timeout", "5", "--auth-deadline", "5", "--max-subscriptions", "20"]
    with run_server(directory, *arguments, CHATWS_SECRET=SECRET) as server:
        yield server
    for secret in (SECRET, PUSH_SECRET):
        assert secret not in server.log


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check around every test that attacks `besieged` that an earlier connection still gets events."""
    if "besieged" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("besieged")
    before = server.pid
    with bystander(server, PUSH_SECRET):
        yield
    assert server.pid == before
    assert server.process is not None
    assert server.process.poll() is None


@contextmanager
def bystander(server: Server, push_secret: str = "") -> Iterator[Raw]:
    """A connection that is opened before, and gets an event afterwards."""
    with Raw(server.port, source=ELSEWHERE) as connection:
        connection.upgrade().enter(BYSTANDER, BYSTANDER)
        yield connection
        number = next(_numbers)
        with server.backend() as backend:
            if push_secret:
                assert backend.request({"op": "auth", "secret": push_secret})["ok"]
            answer = backend.push("new_message", {"conversation_id": BYSTANDER, "number": number})
        assert answer["delivered"] >= 1
        connection.expect("new_message", number=number)
