"""A real server and a real PostgreSQL that is stopped, killed, cut off, frozen, locked and brought back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import Raw, frame
from tests.e2e.wire import until
from tests.postgres import Postgres, postgres

__all__ = ["postgres"]

Start = Callable[..., Server]

pytestmark = pytest.mark.long

SCHEMA = Path(__file__).parent.parent.parent / "chatws" / "database" / "schema.sql"
AUTH_TIMEOUT = 3.0
#: Seconds more that a busy machine may take to say so.
SLACK = 5.0
#: For who waits for no time-out: it is never reached.
PATIENT = ("--auth-timeout", "20")


@pytest.fixture
def shop(postgres: Postgres) -> Iterator[Postgres]:
    """The reference schema with a hundred users and conversations."""
    postgres.run(SCHEMA.read_text())
    postgres.run("INSERT INTO users (id, name) SELECT n, 'user ' || n FROM generate_series(1, 100) n")
    postgres.run("INSERT INTO conversations (id, contact_name) SELECT n, 'contact' FROM generate_series(1, 100) n")
    yield postgres
    postgres.resume()
    postgres.start()


def start(chatws_server: Start, shop: Postgres, *more: str) -> Server:
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


def is_told_in_time(server: Server) -> None:
    """Check the login of a new client during an outage."""
    code, close_code, seconds = try_to_enter(server, 2)
    assert (code, close_code) == ("unavailable", 4503)
    assert seconds < AUTH_TIMEOUT + SLACK


def stop(shop: Postgres) -> None:
    shop.stop()


def kill(shop: Postgres) -> None:
    shop.kill()


def freeze(shop: Postgres) -> None:
    shop.silence()


def bring_back(shop: Postgres) -> None:
    shop.resume()
    shop.start()


@pytest.mark.parametrize("fail", [stop, kill, freeze])
def test_a_failed_database_affects_only_new_connections(
    fail: Callable[[Postgres], None], chatws_server: Start, shop: Postgres
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
            is_told_in_time(server)
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
    assert "not-asked-for" not in server.log, "the password"


def test_connections_that_are_all_terminated_are_replaced_unnoticed(chatws_server: Start, shop: Postgres) -> None:
    server = start(chatws_server, shop, *PATIENT)
    with server.agent(1, 1) as ana, server.backend() as backend:
        for number in range(10):
            assert shop.terminate_backends() > 0
            assert try_to_enter(server, 2)[0] == "authenticated"
            ana.subscribe(10 + number)
            backend.push("new_message", {"conversation_id": 10 + number})
            ana.expect("new_message", conversation_id=10 + number)


def test_a_restart_of_the_database_under_a_stream_of_newcomers_needs_none_of_chatws(
    chatws_server: Start, shop: Postgres
) -> None:
    server = start(chatws_server, shop, *PATIENT)
    with server.agent(1, 1) as ana, server.backend() as backend:
        for number in range(3):
            shop.restart()
            backend.push("new_message", {"conversation_id": 1, "number": number})
            ana.expect("new_message", number=number)
            assert {try_to_enter(server, user_id)[0] for user_id in range(2, 12)} == {"authenticated"}


def test_chatws_starts_without_its_database_and_uses_it_later(chatws_server: Start, shop: Postgres) -> None:
    shop.stop()
    server = start(chatws_server, shop)
    is_told_in_time(server)
    shop.start()
    assert try_to_enter(server, 1)[0] == "authenticated"


def test_a_locked_table_does_not_delay_auth_beyond_its_timeout(chatws_server: Start, shop: Postgres) -> None:
    server = start(chatws_server, shop)
    with server.agent(1, 1) as ana, closing(psycopg2.connect(shop.url)) as other:
        other.cursor().execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        for _ in range(2):
            is_told_in_time(server)
        ana.subscribe(2)
        other.rollback()
        assert try_to_enter(server, 2)[0] == "authenticated"


# --- no more queries than need be -----------------------------------------------------------------------------------


def asked(shop: Postgres) -> int:
    """How often the query with the sequence was run."""
    ((count,),) = shop.run("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM asked")
    result: int = count
    return result


@contextmanager
def locked(shop: Postgres, table: str) -> Iterator[None]:
    """For the block nobody gets an answer from this table."""
    with closing(psycopg2.connect(shop.url)) as other:
        other.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


def is_read(page: Raw) -> None:
    """Until the server has read what the page has said: a ping behind that is answered at once."""
    page.send(frame("read?", opcode=9))
    while page.next_frame() != (0x8A, b"read?"):
        pass


def test_fifty_simultaneous_logins_of_one_user_are_one_query(chatws_server: Start, shop: Postgres) -> None:
    shop.run("CREATE SEQUENCE asked")
    query = "SELECT nextval('asked') FROM users WHERE id = %(user_id)s AND status = 'active'"
    server = start(chatws_server, shop, "--user-query", query, *PATIENT)
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(server.port)).upgrade() for _ in range(50)]
        with locked(shop, "users"):
            for page in pages:
                page.say({"type": "auth", "user_id": 1})
                is_read(page)
        for page in pages:
            assert page.expect("authenticated")["user_id"] == 1
    assert asked(shop) == 1


def test_fifty_users_subscribing_to_one_conversation_are_one_query(chatws_server: Start, shop: Postgres) -> None:
    shop.run("CREATE SEQUENCE asked")
    query = "SELECT nextval('asked') FROM conversations WHERE id = %(conversation_id)s"
    server = start(chatws_server, shop, "--conversation-query", query, *PATIENT)
    with ExitStack() as stack:
        pages = [stack.enter_context(Raw(server.port)).upgrade().enter(1 + number) for number in range(50)]
        with locked(shop, "conversations"):
            for page in pages:
                page.say({"type": "subscribe", "conversation_id": 7})
                is_read(page)
        for page in pages:
            page.expect("subscribed", conversation_id=7)
    assert asked(shop) == 1


def test_result_is_cached_and_queried_again_after_it_expires(chatws_server: Start, shop: Postgres) -> None:
    shop.run("CREATE SEQUENCE asked")
    query = "SELECT nextval('asked') FROM users WHERE id = %(user_id)s AND status = 'active'"
    server = start(chatws_server, shop, "--user-query", query, "--auth-cache", "2", *PATIENT)
    assert {try_to_enter(server, 1)[0] for _ in range(10)} == {"authenticated"}
    assert asked(shop) < 10
    before = asked(shop)

    def asked_again() -> bool:
        assert try_to_enter(server, 1)[0] == "authenticated"
        return asked(shop) > before

    until(asked_again, "the kept answer to be asked for again")


def test_pings_are_written_together_one_row_a_user_and_not_one_query_a_ping(
    chatws_server: Start, shop: Postgres
) -> None:
    shop.run("CREATE TABLE beats (user_id integer, at double precision)")
    shop.run("CREATE TABLE deeds (user_id integer, kind text)")
    server = start(
        chatws_server,
        shop,
        *PATIENT,
        *("--heartbeat-query", "INSERT INTO beats VALUES (%(user_id)s, %(last_activity)s)"),
        *("--activity-query", "INSERT INTO deeds VALUES (%(user_id)s, %(activity_type)s)"),
    )
    with ExitStack() as stack:
        pages = {user: stack.enter_context(Raw(server.port)).upgrade().enter(user) for user in (1, 2, 3)}

        def be_active() -> None:
            for user, page in pages.items():
                for number in range(20):
                    page.say({"type": "ping", "last_activity": 1_764_000_000_000 + 1000 * user + number})
                    page.expect("pong")
                page.say({"type": "activity", "activity_type": "click"}, {"type": "activity", "activity_type": "key"})

        def rows(table: str) -> list[tuple[Any, ...]]:
            return shop.run(f"SELECT * FROM {table} ORDER BY user_id")

        be_active()
        until(lambda: rows("deeds"), "the batch to be written")
        expected = [(user, 1_764_000_000.019 + user) for user in (1, 2, 3)]
        assert [(user, round(at, 3)) for user, at in rows("beats")] == expected
        assert rows("deeds") == [(user, "key") for user in (1, 2, 3)]
        # what is left at the end is written too
        be_active()
        for page in pages.values():
            page.pong()
        server.stop()
        assert len(rows("beats")) == len(rows("deeds")) == 6
