"""Test old pages and the client library at their usual load: no limit affects them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.certificates import self_signed
from tests.e2e.browser import open_page
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.raw import Raw, frame, rss
from tests.e2e.test_client_browser import CLASSIC, NOISE, lose_network, push, restore_network, wait_for
from tests.e2e.test_old_page import site
from tests.e2e.test_operations import value
from tests.requirements import needs
from tests.variants import others_long

__all__ = ["site"]

Start = Callable[..., Server]


def make_database(directory: Path) -> str:
    """Create a shop's database with nine users and a thousand conversations. Return its URL."""
    with closing(sqlite3.connect(directory / "shop.db")) as database, database:
        database.execute("CREATE TABLE conversations (id INTEGER PRIMARY KEY)")
        database.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, status TEXT)")
        database.executemany("INSERT INTO conversations VALUES (?)", [(number,) for number in range(1, 1001)])
        database.executemany("INSERT INTO users VALUES (?, ?, 'active')", [(n, f"agent {n}") for n in range(1, 10)])
    return f"sqlite:///{directory / 'shop.db'}"


@pytest.fixture
def shop(chatws_server: Start, tmp_path: Path) -> Server:
    """Start a server that queries a database for each subscription and caches no result."""
    return chatws_server(
        *("--database", make_database(tmp_path), "--auth-cache", "0", "--auth-timeout", "20"),
        *("--metrics-port", str(free_port())),
    )


def queries(server: Server) -> float:
    """Return the number of queries that the server has executed."""
    port = int(server.arguments[server.arguments.index("--metrics-port") + 1])
    return value(port, "chatws_database_query_duration_seconds_count", kind="query")


def open_list(browser: Browser, site: str, server: Server, rows: int) -> Any:
    return open_page(browser, f"{site}/old_list.html?user=1&rows={rows}&url=ws://127.0.0.1:{server.port}")


def subscribed(page: Page, count: int) -> Counter[int]:
    """Wait for that many `subscribed` and count them by conversation. No error and no close may occur."""
    responses = "wire.received.filter(item => item.event === 'subscribed')"
    page.wait_for_function(f"{responses}.length >= {count} || wire.closes.length")
    assert page.evaluate("wire.received.filter(item => item.event === 'error')") == []
    assert page.evaluate("wire.closes") == []
    return Counter(page.evaluate(f"{responses}.map(item => item.data.conversation_id)"))


# --- Subscriptions ----------------------------------------------------------------------------------------------------


@needs("chromium")
def test_70_rows_subscribed_again_after_each_message_are_not_limited(shop: Server, site: str, browser: Browser) -> None:
    with open_list(browser, site, shop, 70) as page:
        subscribed(page, 70)
        before = queries(shop)
        for number in range(1, 16):  # with one bucket of 100, the page was closed by the twelfth
            push(shop, number, number)
        assert subscribed(page, 16 * 70) == Counter(dict.fromkeys(range(1, 71), 16))
        assert page.evaluate("wire.received.filter(item => item.event === 'new_message').length") == 15
        assert queries(shop) == before, "no query for an existing subscription"


@needs("chromium")
def test_300_rows_subscribed_four_times_in_two_seconds_are_not_limited(
    shop: Server, site: str, browser: Browser
) -> None:
    with open_list(browser, site, shop, 300) as page:
        page.evaluate("[500, 1000, 1500].forEach(delay => setTimeout(refresh, delay))")
        assert subscribed(page, 4 * 300) == Counter(dict.fromkeys(range(1, 301), 4))
        assert queries(shop) == 301, "one query for the user and one for each row"
        push(shop, 300, 1)
        page.wait_for_function("document.getElementById('conversations-300')")


def test_300_rows_subscribed_before_auth_completes_are_not_limited(shop: Server) -> None:
    rows: list[dict[str, Any] | str] = [{"type": "subscribe", "conversation_id": row} for row in range(1, 301)]
    with Raw(shop.port) as page:
        page.upgrade().say({"type": "auth", "user_id": 1}, *rows * 4)  # all in one write
        page.expect("authenticated")
        seen = Counter(page.expect("subscribed")["conversation_id"] for _ in range(1200))
        assert seen == Counter(dict.fromkeys(range(1, 301), 4))
        assert page.pong()


@needs("chromium")
def test_library_with_300_conversations_recovers_all_of_them(shop: Server, browser: Browser) -> None:
    with open_page(browser, forgive=NOISE) as page:
        page.goto(f"{shop.url}/healthz")
        page.set_content(CLASSIC)
        page.evaluate("wsClient.connect(1, { url: '/ws' })")
        page.evaluate("for (let id = 1; id <= 300; id++) wsClient.subscribe(id)")
        wait_for(page, "subscribed", count=300)
        lose_network(page)
        for conversation in range(1, 301):
            push(shop, conversation, 1000 + conversation)
        restore_network(page)
        recovered = wait_for(page, "recovered", count=301)
        assert Counter(item["data"].get("conversation_id") for item in recovered) == Counter([None, *range(1, 301)])
        assert sum(item["data"]["count"] for item in recovered) == 300
        assert len(wait_for(page, "new_message")) == 300
        assert (
            page.evaluate("seen.filter(item => item.event === 'error' && item.data.code !== 'connection_failed')") == []
        )
        assert len(wait_for(page, "disconnected")) == 1


def test_replays_of_300_conversations_do_not_count_as_a_slow_consumer(chatws_server: Start) -> None:
    server = chatws_server()
    padding = "x" * 1000
    with Raw(server.port, receive_buffer=4096) as page, server.backend() as backend:
        page.upgrade().say({"type": "auth", "user_id": 1})
        start = page.expect("authenticated")["last_event_id"]
        data = [{"conversation_id": row % 300, "number": row, "padding": padding} for row in range(300 * 40)]
        backend.send(*({"event": "new_message", "data": item} for item in data))
        assert backend.request({"op": "ping"})["ok"]
        page.say(*({"type": "subscribe", "conversation_id": row, "last_event_id": start} for row in range(300)))
        numbers: dict[int, list[int]] = {}
        received = 0
        while received < len(data):
            message = page.next_text()
            conversation = message["data"]["conversation_id"]
            if message["event"] == "subscribed":
                assert message["data"]["recovered"] is True
                numbers[conversation] = []
            else:
                assert message["event"] == "new_message", message
                numbers[conversation].append(message["data"]["number"])
                received += 1
        assert numbers == {conversation: list(range(conversation, len(data), 300)) for conversation in range(300)}
        assert page.pong()


# --- Delayed messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", others_long(["ping", "subscribe", "unsubscribe", "activity"]))
def test_flood_of_cheap_messages_is_delayed_in_order(kind: str, chatws_server: Start) -> None:
    server = chatws_server("--subscription-rate", "1000", "--subscription-burst", "50")
    message = {"type": kind, "conversation_id": 5, "activity_type": "mouse_move"}
    with Raw(server.port) as page:
        page.upgrade().enter(1)
        page.say(*[message] * 1000, {"type": "presence"}, {"type": "ping"})
        seen = Counter[str]()
        while (name := _name(page.next_text())) != "presence":
            seen[name] += 1
        response = {"ping": "pong", "subscribe": "subscribed", "unsubscribe": "unsubscribed"}.get(kind)
        assert seen == (Counter({response: 1000}) if response else Counter())
        assert page.pong()


@pytest.mark.long
def test_flood_over_tls_is_delayed_in_order(chatws_server: Start, tmp_path: Path) -> None:
    """TLS delivers decrypted data of more than one read even when reading is paused."""
    port, certificate = free_port(), self_signed("127.0.0.1")
    (tmp_path / "pem").write_bytes(certificate.both)
    listen = f"ssl:{port}:privateKey={tmp_path}/pem:certKey={tmp_path}/pem:interface=127.0.0.1"
    server = chatws_server("--listen", listen, "--subscription-rate", "2000", "--subscription-burst", "50")
    assert server.process is not None
    with Raw(port) as page:
        page.socket = certificate.trusted().wrap_socket(page.socket, server_hostname="127.0.0.1")
        page.upgrade().enter(1)
        page.say(*[{"type": "ping"}] * 3000, {"type": "presence"})
        seen = Counter[str]()
        while (name := _name(page.next_text())) != "presence":
            seen[name] += 1
        assert seen == Counter({"pong": 3000})


def _name(message: dict[str, Any]) -> str:
    name: str = message.get("event") or message["type"]
    return name


def test_delayed_flood_uses_no_memory_and_does_not_delay_others(chatws_server: Start) -> None:
    server = chatws_server("--subscription-rate", "10", "--subscription-burst", "10", "--ping-interval", "0")
    before = rss(server.pid)
    flood = frame(json.dumps({"type": "activity", "activity_type": "x" * 10_000})) * 100
    with ExitStack() as stack:
        for number in range(20):
            page = stack.enter_context(Raw(server.port))
            page.upgrade().enter(number)
            page.socket.setblocking(False)
            with suppress(BlockingIOError):
                while True:  # until the buffers of the kernel are full
                    page.socket.send(flood)
        assert rss(server.pid) - before < 20_000_000
        with server.agent(99, 5) as other, server.backend() as backend:
            assert backend.push("new_message", {"conversation_id": 5, "message": {"id": 1}})["delivered"] == 1
            other.expect("new_message")


def test_delayed_connection_can_be_closed_from_both_sides(chatws_server: Start) -> None:
    server = chatws_server("--subscription-rate", "0.01", "--subscription-burst", "1", "--presence-grace", "0")
    with Raw(server.port) as banned, Raw(server.port) as leaving, server.backend() as backend:
        for number, page in enumerate((banned, leaving), 1):
            page.upgrade().enter(number)
            page.say({"type": "ping"}, {"type": "ping"})
            page.expect("pong")
        assert backend.request({"op": "disconnect", "user_id": 1, "ban": True})["connections"] == 1
        assert banned.closed_with()[0] == 4903
        assert backend.request({"op": "disconnect", "user_id": 2})["connections"] == 1
        assert leaving.closed_with()[0] == 4000
    assert server.stop() == 0


@pytest.mark.long
def test_connection_delayed_longer_than_the_ping_timeout_stays_open(chatws_server: Start) -> None:
    server = chatws_server(
        *("--subscription-rate", "0.5", "--subscription-burst", "1"),
        *("--ping-interval", "0.5", "--ping-timeout", "0.25"),
    )
    with Raw(server.port) as page:
        page.upgrade().enter(1)
        page.say(*[{"type": "ping"}] * 3)
        began = time.monotonic()
        for _ in range(3):
            page.expect("pong")  # answers WebSocket pings meanwhile
        assert time.monotonic() - began > 2.0, "the messages were delayed"
        assert page.pong()


# --- Other loads ------------------------------------------------------------------------------------------------------


def test_typing_flood_of_a_held_key_does_not_close_the_connection(chatws_server: Start) -> None:
    """A keyboard repeats a key 30 times a second, 10 more than `message_rate`. Here it is 10 times faster.

    The page waits for the replies to each batch. If the machine stalls, at most one batch arrives at once. Otherwise
    a stall of a few milliseconds would be a burst that a real page sends only after a stall 10 times as long.
    """
    rate, burst, batch = 200, 20, 10
    server = chatws_server("--message-rate", str(rate), "--message-burst", str(burst))
    typing = frame(json.dumps({"type": "typing", "conversation_id": 5}))
    codes = Counter[str]()
    with Raw(server.port) as page:
        page.upgrade().enter(1, 5)
        due, last = 0.0, time.monotonic()
        # More rejections than the second bucket holds: the connection stays open only because it refills.
        while codes["rate_limited"] <= 2 * burst:
            time.sleep(0.005)  # the pace of the keyboard
            now = time.monotonic()
            due, last = min(due + (now - last) * rate * 1.5, batch), now
            page.send(typing * int(due))
            due -= int(due)
            page.say({"type": "ping"})
            while (message := page.next_text()).get("type") != "pong":
                codes[message["data"]["code"]] += 1
    assert codes.keys() == {"rate_limited"}


@needs("chromium")
def test_activity_flood_and_pings_of_five_tabs_are_not_limited(shop: Server, site: str, browser: Browser) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(open_list(browser, site, shop, 20)) for _ in range(5)]
        for page in pages:
            subscribed(page, 20)
            # as a display of 144 Hz would in ten seconds
            page.evaluate("for (let n = 0; n < 1440; n++) document.dispatchEvent(new Event('mousemove'))")
            page.evaluate("for (let n = 0; n < 10; n++) send({ type: 'ping' })")
        for page in pages:
            page.wait_for_function("wire.received.filter(item => item.type === 'pong').length === 10")
            subscribed(page, 20)


@needs("chromium")
def test_presence_request_after_each_of_ninety_changes_is_not_limited(
    chatws_server: Start, site: str, browser: Browser
) -> None:
    server = chatws_server("--presence-grace", "0")
    with open_list(browser, site, server, 1) as page:
        subscribed(page, 1)
        page.evaluate(
            """() => socket.addEventListener('message', ({ data }) => {
              if (JSON.parse(data).event === 'agent_status') send({ type: 'presence' });
            })"""
        )
        with ExitStack() as stack:
            for number in range(2, 92):
                stack.enter_context(Raw(server.port)).upgrade().say({"type": "auth", "user_id": number})
            page.wait_for_function("wire.received.filter(item => item.event === 'presence').length >= 90")
        assert page.evaluate("wire.received.filter(item => item.event === 'error')") == []
        assert page.evaluate("wire.closes") == []
