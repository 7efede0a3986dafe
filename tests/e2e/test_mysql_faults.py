"""A real server and a real MariaDB that is stopped, killed, frozen, locked and started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.mysql import PASSWORD, Mysql, mysql

__all__ = ["mysql"]

Start = Callable[..., Server]

SCHEMA = Path(__file__).parent.parent.parent / "chatws" / "database" / "schema.sql"
AUTH_TIMEOUT = 3.0
#: Seconds more that a busy machine may take.
SLACK = 5.0
#: A timeout that is never reached.
PATIENT = ("--auth-timeout", "20")


@pytest.fixture
def shop(mysql: Mysql) -> Iterator[Mysql]:
    """The reference schema with a hundred users and conversations."""
    mysql.run(SCHEMA.read_text())
    mysql.run("INSERT INTO users (id, name) SELECT seq, CONCAT('user ', seq) FROM seq_1_to_100")
    mysql.run("INSERT INTO conversations (id, contact_name) SELECT seq, 'contact' FROM seq_1_to_100")
    yield mysql
    mysql.resume()
    mysql.start()


def start(chatws_server: Start, shop: Mysql, *more: str) -> Server:
    arguments = (
        "--database",
        shop.url,
        "--auth-timeout",
        f"{AUTH_TIMEOUT:g}",
        "--auth-cache",
        "0",
        "--drain-timeout",
        "0",
    )
    return chatws_server(*arguments, *more)


def try_to_enter(server: Server, user_id: int) -> tuple[str, int, float]:
    """`authenticated` and 0, or the error's code and the close code; and how many seconds it took."""
    with server.browser() as page:
        began = time.monotonic()
        page.send({"type": "auth", "user_id": user_id})
        message = page.receive()
        seconds = time.monotonic() - began
        if message["event"] == "authenticated":
            return "authenticated", 0, seconds
        return message["data"]["code"], page.expect_close()[0], seconds


def is_answered_in_time(server: Server) -> None:
    """Check the login of a new client during an outage."""
    code, close_code, seconds = try_to_enter(server, 2)
    assert (code, close_code) == ("unavailable", 4503)
    assert seconds < AUTH_TIMEOUT + SLACK


def stop(shop: Mysql) -> None:
    shop.stop()


def kill(shop: Mysql) -> None:
    shop.kill()


def freeze(shop: Mysql) -> None:
    shop.silence()


def bring_back(shop: Mysql) -> None:
    shop.resume()
    shop.start()


@pytest.mark.parametrize("fail", [stop, kill, freeze])
def test_outage_keeps_connected_clients_and_answers_new_ones_in_time(
    fail: Callable[[Mysql], None], chatws_server: Start, shop: Mysql
) -> None:
    server = start(chatws_server, shop)
    pid = server.pid
    with server.agent(1, 1) as ana, server.backend() as backend:

        def event_arrives(number: int) -> None:
            assert backend.push("new_message", {"conversation_id": 1, "number": number})["delivered"] == 1
            ana.expect("new_message", number=number)

        for outage in range(2):
            event_arrives(10 * outage)
            fail(shop)
            event_arrives(10 * outage + 1)
            ana.send({"type": "subscribe", "conversation_id": 2})
            is_answered_in_time(server)
            assert ana.expect("error")["data"]["code"] == "unavailable"
            ana.send({"type": "ping"})
            ana.expect("pong")
            event_arrives(10 * outage + 2)
            bring_back(shop)
            code, _, seconds = try_to_enter(server, 3)
            assert code == "authenticated", f"after {seconds:.1f} s, and the database is back"
            ana.subscribe(3)
    assert server.pid == pid
    assert "the database is available again" in server.log
    assert PASSWORD not in server.log


def test_kill_of_all_connections_fails_no_request(chatws_server: Start, shop: Mysql) -> None:
    server = start(chatws_server, shop, *PATIENT)
    with server.agent(1, 1) as ana, server.backend() as backend:
        for number in range(10):
            assert shop.kill_connections() > 0
            assert try_to_enter(server, 2)[0] == "authenticated"
            ana.subscribe(10 + number)
            backend.push("new_message", {"conversation_id": 10 + number})
            ana.expect("new_message", conversation_id=10 + number)


def test_database_restart_under_new_clients_needs_no_restart_of_chatws(chatws_server: Start, shop: Mysql) -> None:
    server = start(chatws_server, shop, *PATIENT)
    with server.agent(1, 1) as ana, server.backend() as backend:
        for number in range(3):
            shop.restart()
            backend.push("new_message", {"conversation_id": 1, "number": number})
            ana.expect("new_message", number=number)
            assert {try_to_enter(server, user_id)[0] for user_id in range(2, 12)} == {"authenticated"}


def test_start_without_database_finds_it_later(chatws_server: Start, shop: Mysql) -> None:
    shop.stop()
    server = start(chatws_server, shop)
    is_answered_in_time(server)
    shop.start()
    assert try_to_enter(server, 1)[0] == "authenticated"


def test_locked_table_delays_only_until_the_timeout(chatws_server: Start, shop: Mysql) -> None:
    server = start(chatws_server, shop)
    with server.agent(1, 1) as ana, closing(shop.connect()) as other:
        other.query("LOCK TABLES users WRITE")
        for _ in range(2):
            is_answered_in_time(server)
        ana.subscribe(2)
        other.query("UNLOCK TABLES")
        assert try_to_enter(server, 2)[0] == "authenticated"
