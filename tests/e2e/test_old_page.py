"""Test an unchanged page for the Ratchet server (tests/pages/old_page.js) in Chromium.

Its WebSocket connects directly to the server's port, as with Ratchet, or to `/ws` of nginx. The backend is the PHP
helper with its legacy name.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import open_page
from tests.e2e.conftest import Server
from tests.e2e.nginx import Nginx
from tests.e2e.php import Php, PhpWebServer
from tests.requirements import needs

pytestmark = needs("chromium")

PAGES = Path(__file__).resolve().parents[1] / "pages"
#: Console message of Chromium for a WebSocket that fails or breaks.
LOST = r"WebSocket connection to .* failed"


class _SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Run the shop's web server on another port of the same host."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_SilentHandler, directory=str(PAGES)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def nginx_before(server: Server, directory: Path) -> Iterator[Nginx]:
    (directory / "nginx").mkdir()
    with Nginx(directory / "nginx", f"127.0.0.1:{server.port}", PAGES) as nginx:
        yield nginx


@pytest.fixture(params=["direct", pytest.param("nginx", marks=needs("nginx"))])
def address(
    request: pytest.FixtureRequest, chatws_server: Callable[..., Server], tmp_path: Path, site: str
) -> Iterator[tuple[Server, str]]:
    """Start a server. Yield it and the URL of its page, without the user and the conversation."""
    server = chatws_server("--auth", "trust", "--presence-grace", "0")
    if request.param == "direct":
        yield server, f"{site}/old_page.html?url=ws://127.0.0.1:{server.port}&"
    else:
        with nginx_before(server, tmp_path) as nginx:
            yield server, f"{nginx.url}/old_page.html?"


def php_backend(server: Server) -> Php:
    return Php(helper=True, address=f"127.0.0.1:{server.push_port}", pause_ms=0)


def wire(page: Page, name: str) -> Any:
    """Return a value that the page records for tests."""
    return page.evaluate(f"wire.{name}")


def events(page: Page) -> list[str]:
    return [message.get("event") or message["type"] for message in wire(page, "received")]


def wait_for_events(page: Page, *names: str) -> None:
    """Wait until each of these events has arrived."""
    page.wait_for_function(
        "names => names.every(name => wire.received.some(message => (message.event || message.type) === name))",
        arg=names,
    )


def is_ready(page: Page) -> None:
    wait_for_events(page, "authenticated", "subscribed")


@needs("php-cli")
def test_old_page_shows_all_events_of_the_legacy_helper(address: tuple[Server, str], browser: Browser) -> None:
    server, url = address
    with open_page(browser, f"{url}user=1&conversation=456") as page, php_backend(server) as php:
        is_ready(page)
        assert [message["type"] for message in wire(page, "sent")][:2] == ["auth", "subscribe"]
        assert php.notifyNewMessage(456, {"id": 9, "content": "Olá ✓ <b>", "sender_type": "contact", "sender_id": 7})
        expect(page.locator("#messages-9")).to_have_text("Olá ✓ <b>")
        assert php.notifyTyping(456, 7, True)
        expect(page.locator("#typing")).to_have_text("7 is typing…")
        assert php.notifyTyping(456, 7, False)
        expect(page.locator("#typing")).to_have_text("")
        assert php.notifyMessageRead(456, 9, 7)
        expect(page.locator("#messages-9")).to_have_attribute("data-read-by", "7")
        assert php.notifyNewConversation({"id": 457, "contact_name": "Zoë", "status": "open"})
        expect(page.locator("#conversations-457")).to_have_text("Zoë")
        assert php.notifyConversationUpdated(457, {"id": 457, "status": "closed"})
        expect(page.locator("#conversations-457")).to_have_text("closed")
        assert php.notifyAgentStatus(5, "away")
        expect(page.locator("#agents-5")).to_have_text("away")
        assert php.onlineAgents() == [1]
        assert "error" not in events(page)


def test_two_old_pages_see_presence_and_typing_of_each_other(address: tuple[Server, str], browser: Browser) -> None:
    _, url = address
    with open_page(browser, f"{url}user=1&conversation=456") as ana:
        is_ready(ana)
        with open_page(browser) as bia:
            bia.clock.install()
            bia.goto(f"{url}user=2&conversation=456")
            is_ready(bia)
            expect(ana.locator("#agents-2")).to_have_text("online")
            bia.locator("#answer").fill("Bom")
            expect(ana.locator("#typing")).to_have_text("2 is typing…")
            expect(bia.locator("#typing")).to_have_text("")
            bia.clock.run_for(2_000)
            expect(ana.locator("#typing")).to_have_text("")
        expect(ana.locator("#agents-2")).to_have_text("offline")


def test_old_page_that_sends_pings_and_activity_stays_connected(address: tuple[Server, str], browser: Browser) -> None:
    _, url = address
    with open_page(browser) as page:
        page.clock.install()
        page.goto(f"{url}user=1&conversation=456")
        is_ready(page)
        for number in range(1, 11):
            page.clock.run_for(30_000)
            page.mouse.move(10 * number, 20)
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            page.wait_for_function(
                "count => wire.received.filter(message => message.type === 'pong').length === count", arg=number
            )
        sent = [message.get("activity_type", message["type"]) for message in wire(page, "sent")]
        assert sent.count("ping") == 10
        assert sent.count("visibility_change") == 10
        assert sent.count("mouse_move") >= 9
        assert set(events(page)) <= {"authenticated", "subscribed", "pong", "agent_status"}
        assert wire(page, "closes") == []


def test_old_page_that_never_unsubscribes_can_switch_conversations(
    address: tuple[Server, str], browser: Browser
) -> None:
    server, url = address
    with open_page(browser, f"{url}user=1&conversation=456") as page, server.backend() as backend:
        is_ready(page)
        page.evaluate("openConversation(457); openConversation(458); openConversation(457)")
        page.wait_for_function("wire.received.filter(message => message.event === 'subscribed').length === 4")
        for conversation in (456, 457, 458):
            message = {"id": conversation, "content": f"in {conversation}", "sender_type": "contact"}
            backend.push("new_message", {"conversation_id": conversation, "message": message})
        expect(page.locator("#messages-457")).to_have_text("in 457")
        expect(page.locator("#conversations-456")).to_have_class("unread")
        expect(page.locator("#conversations-458")).to_have_class("unread")
        assert page.locator("#messages li").count() == 1
        assert "unsubscribe" not in [message["type"] for message in wire(page, "sent")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_old_page_reconnects_after_a_restart(address: tuple[Server, str], browser: Browser, number: int) -> None:
    server, url = address
    with open_page(browser, forgive=LOST) as page:
        page.clock.install()
        page.goto(f"{url}user=1&conversation=456")
        is_ready(page)
        page.evaluate("wire.received.length = 0")
        server.restart(number)
        page.wait_for_function("wire.closes.length")
        page.clock.run_for(3_000)  # the page tries again every 3 seconds
        is_ready(page)
        assert wire(page, "closes")[0] == (4012 if number == signal.SIGTERM else 1006)
        assert wire(page, "sockets") <= 6
        with server.backend() as backend:
            message = {"id": 1, "content": "again", "sender_type": "contact"}
            assert backend.push("new_message", {"conversation_id": 456, "message": message})["delivered"] == 1
        expect(page.locator("#messages-1")).to_have_text("again")


def test_old_page_without_a_server_tries_five_times(address: tuple[Server, str], browser: Browser) -> None:
    server, url = address
    with open_page(browser, forgive=LOST) as page:
        page.clock.install()
        page.goto(f"{url}user=1&conversation=456")
        is_ready(page)
        server.stop()
        for number in range(1, 6):
            expect(page.locator("#status")).to_have_text(f"reconnect {number}")
            page.clock.run_for(3_000)
        expect(page.locator("#status")).to_have_text("lost")
        page.clock.run_for(60_000)
        assert wire(page, "sockets") == 6


def test_old_page_of_a_banned_user_is_closed_with_4903(address: tuple[Server, str], browser: Browser) -> None:
    server, url = address
    with open_page(browser, f"{url}user=1&conversation=456") as page, server.backend() as backend:
        is_ready(page)
        assert backend.request({"op": "disconnect", "user_id": 1, "ban": True})["connections"] == 1
        page.wait_for_function("wire.closes.length === 1")
        assert wire(page, "closes") == [4903]
        expect(page.locator("#status")).to_have_text("reconnect 1")


# --- Authentication by the application's session


@needs("php-cli")
@pytest.mark.parametrize("way", ["direct", pytest.param("nginx", marks=needs("nginx"))])
def test_old_page_is_authenticated_by_the_application_session(
    way: str, chatws_server: Callable[..., Server], tmp_path: Path, site: str, browser: Browser
) -> None:
    with ExitStack() as running:
        sessions = ("-d", f"session.save_path={tmp_path}")  # in files, the default
        shop = running.enter_context(PhpWebServer("application.php", tmp_path, *sessions)).url
        server = chatws_server("--auth", "callback", "--auth-url", f"{shop}/whoami")
        if way == "nginx":
            url = f"{running.enter_context(nginx_before(server, tmp_path)).url}/old_page.html?"
        else:
            url = f"{site}/old_page.html?url=ws://127.0.0.1:{server.port}&"
        backend = running.enter_context(server.backend())
        with open_page(browser, f"{shop}/login?user=5") as page:
            page.goto(f"{url}user=5&conversation=456")
            is_ready(page)
            assert wire(page, "received")[0]["data"]["user_id"] == 5
            backend.push("new_message", {"conversation_id": 456, "message": {"id": 1, "content": "oi"}})
            expect(page.locator("#messages-1")).to_have_text("oi")
            page.goto(f"{url}user=6&conversation=456")
            page.wait_for_function("wire.closes.length === 1")
            assert wire(page, "closes") == [4901], "the session is another user's"
        with open_page(browser, f"{url}user=5&conversation=456") as page:
            page.wait_for_function("wire.closes.length === 1")
            assert wire(page, "closes") == [4901], "no user is logged in"
            assert "subscribed" not in events(page)
