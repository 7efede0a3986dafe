"""Who may enter a real server: by token, by the application's session cookie, by the database, or on their word."""

from __future__ import annotations

import http.server
import json
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.wire import Browser, until

Start = Callable[..., Server]

SECRET = "the-secret-of-today-and-of-tomorrow"
OLD_SECRET = "the-secret-of-yesterday-and-before-"
SCHEMA = Path(__file__).parent.parent.parent / "chatws" / "database" / "schema.sql"


def make_token(user_id: int | str = 5, secret: str = SECRET, seconds: float = 60, **more: Any) -> str:
    return jwt.encode({"sub": str(user_id), "exp": time.time() + seconds, **more}, secret, algorithm="HS256")


def write_secret(path: Path, secret: str, mode: int = 0o600) -> str:
    path.touch(mode)
    path.write_text(secret + "\n")
    path.chmod(mode)
    return str(path)


def refusal(browser: Browser, message: dict[str, Any]) -> tuple[str, int]:
    """What an `auth` that fails is told: the error's code and the close code."""
    browser.send({"type": "auth", **message})
    code = browser.expect("error")["data"]["code"]
    return code, browser.expect_close()[0]


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The application's database: Ana (1) active, Bruno (2) not; conversations 1 and 2; Ana has the first."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA.read_text())
        database.executescript(
            "INSERT INTO users (id, name, status) VALUES (1, 'Ana', 'active'), (2, 'Bruno', 'inactive');"
            "INSERT INTO conversations (id, contact_name) VALUES (1, 'C1'), (2, 'C2');"
            "INSERT INTO conversation_agents VALUES (1, 1);"
        )
    return f"sqlite:///{path}"


OWN_CONVERSATIONS = (
    "SELECT 1 FROM conversation_agents WHERE conversation_id = %(conversation_id)s AND user_id = %(user_id)s"
)


# --- tickets --------------------------------------------------------------------------------------------------------


def test_with_a_secret_only_tokens_authenticate(chatws_server: Start, tmp_path: Path) -> None:
    server = chatws_server("--secret-file", write_secret(tmp_path / "secret", SECRET))
    with server.browser() as ana:
        ana.send({"type": "auth", "token": make_token("5")})
        assert ana.expect("authenticated")["data"]["user_id"] == 5
    with server.browser() as page:
        assert refusal(page, {"user_id": 5}) == ("auth_failed", 4901)
    assert "without verification" not in server.log


def test_the_secret_may_stand_in_the_environment(chatws_server: Start) -> None:
    with chatws_server(CHATWS_SECRET=SECRET).browser() as ana:
        assert ana.auth(5, token=make_token())["user_id"] == 5


def test_both_secrets_count_while_one_replaces_the_other(chatws_server: Start, tmp_path: Path) -> None:
    new, old = write_secret(tmp_path / "new", SECRET), write_secret(tmp_path / "old", OLD_SECRET)
    server = chatws_server("--secret-file", new, "--secret-file", old)
    for secret in (SECRET, OLD_SECRET):
        with server.browser() as page:
            page.auth(5, token=make_token(secret=secret))
    server.arguments = ("--secret-file", new)
    server.restart()
    with server.browser() as page:
        assert refusal(page, {"token": make_token(secret=OLD_SECRET)}) == ("auth_failed", 4901)


@pytest.mark.long
def test_an_expired_token_closes_the_connection_unless_renewed(chatws_server: Start) -> None:
    server = chatws_server(CHATWS_SECRET=SECRET)
    # the leeway for clocks that differ is 5 s
    with server.browser() as short, server.browser() as renewed:
        renewed.auth(6, token=make_token(6, seconds=1))
        renewed.subscribe(1)
        assert renewed.auth(6, token=make_token(6))["user_id"] == 6
        # its token expires behind the other's first one
        short.auth(5, token=make_token(seconds=2))
        code, reason = short.expect_close()
        assert (code, "expired" in reason) == (4000, True)
        with server.backend() as backend:
            backend.push("new_message", {"conversation_id": 1})
        renewed.expect("new_message")


def test_a_token_limits_conversations_until_a_renewal_changes_them(chatws_server: Start) -> None:
    server = chatws_server(CHATWS_SECRET=SECRET)
    with server.browser() as ana:
        ana.auth(5, token=make_token(conversations=[1, "2"]))
        ana.subscribe(1)
        ana.subscribe(2)
        ana.send({"type": "subscribe", "conversation_id": 3})
        error = ana.expect("error")["data"]
        assert (error["code"], error["request"]["conversation_id"]) == ("forbidden", 3)
        ana.auth(5, token=make_token(conversations=[3]))
        assert [ana.expect("unsubscribed")["data"]["conversation_id"] for _ in range(2)] == [1, 2]
        ana.subscribe(3)
        ana.send({"type": "typing", "conversation_id": 1})
        assert ana.expect("error")["data"]["code"] == "forbidden"


def test_a_token_of_an_inactive_user_is_rejected(chatws_server: Start, shop: str) -> None:
    server = chatws_server("--database", shop, "--conversation-query", OWN_CONVERSATIONS, CHATWS_SECRET=SECRET)
    with server.browser() as ana:
        ana.auth(1, token=make_token(1))
        ana.subscribe(1)
        ana.send({"type": "subscribe", "conversation_id": 2})
        assert ana.expect("error")["data"]["code"] == "forbidden"
    for user_id in (2, 3, "nobody"):
        with server.browser() as page:
            assert refusal(page, {"token": make_token(user_id)}) == ("auth_failed", 4901)


def test_trust_after_token_admits_and_counts_old_pages(chatws_server: Start) -> None:
    port = free_port()
    server = chatws_server("--auth", "token", "--auth", "trust", "--metrics-port", str(port), CHATWS_SECRET=SECRET)
    for _ in range(3):
        with server.browser() as new, server.browser() as old:
            new.auth(5, token=make_token())
            old.auth(7)
    with server.browser() as bad:
        refusal(bad, {"user_id": 7, "token": make_token(secret=OLD_SECRET)})
    assert server.log.count("accepted without verification by --auth trust: 7") == 1
    assert "user 5 enters" not in server.log
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        counts = [line for line in page.read().decode().splitlines() if line.startswith("chatws_authentications")]
    assert sorted(counts) == [
        'chatws_authentications_total{method="token",proved="yes",result="accepted"} 3.0',
        'chatws_authentications_total{method="token",proved="yes",result="refused"} 1.0',
        'chatws_authentications_total{method="trust",proved="no",result="accepted"} 3.0',
    ]


# --- the application's own session ----------------------------------------------------------------------------------


class Application(http.server.ThreadingHTTPServer):
    """A backend with sessions in cookies, and one address that says whose they are.

    :ivar sessions: what it says for each session id: a status and a body.
    :ivar asked: the headers of each question.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Whoami)
        self.sessions: dict[str, tuple[int, dict[str, Any]]] = {
            "ana": (200, {"user_id": 1}),
            "bruno": (200, {"user_id": "2", "conversations": [1]}),
            "broken": (500, {}),
            "elsewhere": (302, {}),
        }
        self.asked: list[dict[str, str]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/whoami"

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
            self.server_close()


class _Whoami(http.server.BaseHTTPRequestHandler):
    server: Application

    def do_GET(self) -> None:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        session = (self.headers.get("Cookie") or "").rpartition("PHPSESSID=")[2]
        status, answer = self.server.sessions.get(session, (401, {}))
        body = json.dumps(answer).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def application() -> Iterator[Application]:
    first = Application()
    yield first
    first.stop()


def cookie(session: str) -> dict[str, str]:
    return {"Cookie": f"theme=dark; PHPSESSID={session}"}


def test_an_unmodified_page_authenticates_by_its_cookie(chatws_server: Start, application: Application) -> None:
    server = chatws_server("--auth-url", application.url)
    with server.browser(headers={**cookie("ana"), "X-Forwarded-For": "203.0.113.7"}) as ana:
        assert ana.auth(1)["user_id"] == 1
        ana.subscribe(456)
    (asked,) = application.asked
    assert asked["cookie"] == "theme=dark; PHPSESSID=ana"
    assert asked["x-forwarded-for"].endswith("203.0.113.7")
    assert "upgrade" not in asked
    with server.browser(headers=cookie("bruno")) as bruno:
        bruno.auth("2")
        bruno.subscribe(1)
        bruno.send({"type": "subscribe", "conversation_id": 2})
        assert bruno.expect("error")["data"]["code"] == "forbidden"
    assert "PHPSESSID" not in server.log
    assert "starting factory" not in server.log.lower()


@pytest.mark.long
def test_open_connection_is_asked_about_again_and_ends_with_its_session(
    chatws_server: Start, application: Application
) -> None:
    server = chatws_server("--auth-url", application.url, "--auth-ttl", "0.5")
    with server.browser(headers=cookie("ana")) as ana, server.browser(headers=cookie("bruno")) as bruno:
        ana.auth(1)
        bruno.auth(2)
        until(lambda: len(application.asked) >= 6, "the application was not asked again")
        application.sessions["bruno"] = (401, {})
        assert bruno.expect_close()[0] == 4000
        ana.send({"type": "ping"})
        assert ana.expect("pong")
    assert {asked["cookie"].rpartition("=")[2] for asked in application.asked} == {"ana", "bruno"}


def test_a_page_that_names_another_than_its_session_s_user_is_refused(
    chatws_server: Start, application: Application
) -> None:
    server = chatws_server("--auth-url", application.url)
    with server.browser(headers=cookie("ana")) as page:
        assert refusal(page, {"user_id": 2}) == ("auth_failed", 4901)
    with server.browser(headers=cookie("logged-out")) as page:
        assert refusal(page, {"user_id": 1}) == ("auth_failed", 4901)
    with server.browser() as page:
        assert refusal(page, {"user_id": 1}) == ("auth_failed", 4901)


def test_an_application_that_is_down_or_odd_is_neither_yes_nor_no(
    chatws_server: Start, application: Application
) -> None:
    server = chatws_server("--auth-url", application.url, "--auth-timeout", "20")
    with server.agent(1, 1, headers=cookie("ana")) as ana:
        for session in ("broken", "elsewhere"):
            with server.browser(headers=cookie(session)) as page:
                assert refusal(page, {"user_id": 1}) == ("unavailable", 4503)
        application.stop()
        with server.browser(headers=cookie("ana")) as page:
            assert refusal(page, {"user_id": 1}) == ("unavailable", 4503)
        with server.backend() as backend:
            backend.push("new_message", {"conversation_id": 1})
        ana.expect("new_message")


def test_a_session_of_an_inactive_user_is_rejected(chatws_server: Start, application: Application, shop: str) -> None:
    server = chatws_server("--auth-url", application.url, "--database", shop)
    with server.browser(headers=cookie("ana")) as ana:
        ana.auth(1)
    with server.browser(headers=cookie("bruno")) as bruno:
        assert refusal(bruno, {"user_id": 2}) == ("auth_failed", 4901)


# --- the database ---------------------------------------------------------------------------------------------------


def test_with_a_database_alone_the_user_must_be_active_there(chatws_server: Start, shop: str) -> None:
    server = chatws_server("--database", shop)
    with server.browser() as ana:
        ana.auth("1")
        ana.subscribe(2)
        ana.send({"type": "subscribe", "conversation_id": 99})
        assert ana.expect("error")["data"]["code"] == "forbidden"
    for user_id in (2, 3, "1 OR 1=1", "1'; DROP TABLE users; --"):
        with server.browser() as page:
            assert refusal(page, {"user_id": user_id}) == ("auth_failed", 4901)
    assert "--auth database only checks that the user exists" in server.log
    assert "accepted without verification by --auth database: 1" in server.log


def test_a_failing_user_query_rejects_logins_and_is_logged(chatws_server: Start, shop: str) -> None:
    server = chatws_server("--database", shop, "--user-query", "SELECT 1 FROM userz WHERE id = %(user_id)s")
    with server.browser() as page:
        assert refusal(page, {"user_id": 1}) == ("unavailable", 4503)
    server.expect_log("no such table: userz")


def test_a_disconnect_of_a_user_clears_its_cached_permissions(chatws_server: Start, shop: str) -> None:
    server = chatws_server("--database", shop, "--auth-cache", "600", "--conversation-query", OWN_CONVERSATIONS)
    path = shop.removeprefix("sqlite:///")

    def change(sql: str) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(sql)

    with server.agent(1, 1) as ana, server.backend() as backend:
        change("DELETE FROM conversation_agents")
        ana.subscribe(1)  # from the cache
        assert backend.request({"op": "unsubscribe", "user_id": 1, "conversation_id": 1})["ok"]
        ana.expect("unsubscribed", conversation_id=1)
        ana.send({"type": "subscribe", "conversation_id": 1})
        assert ana.expect("error")["data"]["code"] == "forbidden"
        change("UPDATE users SET status = 'inactive'")
        with server.browser() as other_tab:
            other_tab.auth(1)  # from the cache
            assert backend.request({"op": "disconnect", "user_id": 1, "ban": True})["ok"]
            assert other_tab.expect_close()[0] == 4903
        assert ana.expect_close()[0] == 4903
        with server.browser() as page:
            assert refusal(page, {"user_id": 1}) == ("auth_failed", 4901)


# --- what is refused at start ---------------------------------------------------------------------------------------


def refused(chatws_server: Start, *arguments: str, **environment: str) -> str:
    """The one line that a server ends with which will not start."""
    server = chatws_server(*arguments, start=False, **environment)
    done = subprocess.run(
        server.command(), cwd=server.directory, env=server.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.long
def test_a_world_readable_secret_is_rejected(chatws_server: Start, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "secret", SECRET, 0o644)
    for option in ("--secret-file", "--push-secret-file", "--database-file"):
        line = refused(chatws_server, option, path)
        assert "every user of this machine can read" in line
        assert "chmod" in line


def test_trust_on_a_public_interface_must_be_explicit(chatws_server: Start) -> None:
    assert "is reachable from other hosts, but no authentication is configured" in refused(
        chatws_server, "--interface", "0.0.0.0"
    )
    with chatws_server("--interface", "0.0.0.0", "--auth", "trust").browser() as page:
        page.auth(1)
    with chatws_server("--interface", "0.0.0.0", CHATWS_SECRET=SECRET).browser() as page:
        page.auth(5, token=make_token())


def test_a_public_push_port_needs_a_secret(chatws_server: Start, tmp_path: Path) -> None:
    line = refused(chatws_server, "--push-listen", "tcp:0")
    assert "is reachable from other hosts: set --push-secret-file" in line
    secret = write_secret(tmp_path / "push-secret", SECRET)
    server = chatws_server("--push-secret-file", secret, start=False)
    server.arguments += ("--push-listen", f"tcp:{server.push_port}")
    server.start()
    with server.backend() as backend:
        assert backend.request({"op": "auth", "secret": SECRET})["ok"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--auth", "token"), "--auth token needs the secret"),
        (("--secret", SECRET), "CHATWS_SECRET"),
    ],
)
def test_an_authentication_method_without_its_setting_is_rejected(
    arguments: tuple[str, ...], line: str, chatws_server: Start
) -> None:
    result = refused(chatws_server, *arguments)
    assert line in result
    assert SECRET not in result
