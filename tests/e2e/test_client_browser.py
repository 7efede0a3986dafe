"""Test websocket-client.js in Chromium with a real server that is killed and restarted."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import open_page
from tests.e2e.conftest import Server
from tests.e2e.test_old_page import site
from tests.requirements import needs

__all__ = ["site"]

pytestmark = needs("chromium")

#: A page as on the shop's server. It records every event. With `away` its WebSockets go to a port without a listener,
#: as without a network.
PAGE = """<!doctype html><meta charset="utf-8"><title>inbox</title>
<script>
  window.away = false;
  window.sockets = [];
  window.WebSocket = new Proxy(WebSocket, {
    construct(real, [url]) {
      const socket = new real(window.away ? 'ws://127.0.0.1:9/' : url);
      window.sockets.push(socket);
      return socket;
    },
  });
  window.seen = [];
  function watch(client) {
    client.on('*', (data, { event, id }) => seen.push({ event, data, id }));
  }
</script>
"""
CLASSIC = PAGE + """<script src="/assets/js/websocket-client.js"></script><script>watch(wsClient)</script>"""
MODULE = (
    PAGE
    + """<script type="module">
  import '/assets/js/websocket-client.js';
  const { wsClient } = globalThis;
  watch(wsClient);
</script>"""
)
#: Console messages of a browser whose server is down, and about /favicon.ico.
NOISE = r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_UNSAFE_PORT|WebSocket (connection|is closed)|status of 404"

Enter = Callable[..., Page]


@pytest.fixture
def enter(browser: Browser) -> Iterator[Enter]:
    """Yield a function: `enter(server, 7, 5, 6)` opens a page of user 7, connected and subscribed to 5 and 6."""
    with ExitStack() as stack:

        def enter(server: Server, user_id: int, *conversations: int, html: str = CLASSIC) -> Page:
            page = stack.enter_context(open_page(browser, forgive=NOISE))
            # A page that Playwright fulfills itself has a public origin, which may not connect to the loopback.
            page.goto(f"{server.url}/healthz")
            page.set_content(html)
            page.evaluate("([user]) => wsClient.connect(user, { url: '/ws' })", [user_id])
            page.wait_for_function("wsClient.connected")
            for conversation in conversations:
                page.evaluate("id => { wsClient.subscribe(id) }", conversation)
                wait_for(page, "subscribed", f"item.data.conversation_id === {conversation}")
            return page

        yield enter


def wait_for(page: Page, event: str, condition: str = "true", count: int = 1) -> list[dict[str, Any]]:
    """Wait for `count` matching events and return all of them."""
    matching = f"seen.filter(item => item.event === '{event}' && ({condition}))"
    page.wait_for_function(f"{matching}.length >= {count}")
    result: list[dict[str, Any]] = page.evaluate(matching)
    return result


def settle(page: Page) -> None:
    """Wait until the page has received everything: the response to a `presence` request arrives last."""
    count = page.evaluate("seen.filter(item => item.event === 'presence').length")
    assert page.evaluate("wsClient.send({ type: 'presence' })")
    wait_for(page, "presence", count=count + 1)


def numbers(page: Page, conversation: int) -> list[int]:
    """Return the ids of the messages of a conversation in the order in which the handlers received them."""
    condition = f"item.event === 'new_message' && item.data.conversation_id === {conversation}"
    ids: list[int] = page.evaluate(f"seen.filter(item => {condition}).map(item => item.data.message.id)")
    return ids


def push(server: Server, conversation: int, *messages: int) -> None:
    """Publish messages to a conversation and wait for the acknowledgements."""
    with server.backend() as backend:
        for number in messages:
            message = {"id": number, "content": "olá", "sender_type": "customer"}
            backend.push("new_message", {"conversation_id": conversation, "message": message})


def lose_network(page: Page) -> None:
    """Break the connection. New ones fail until `restore_network`."""
    page.evaluate("() => { away = true; for (const socket of sockets) socket.close(); }")
    page.wait_for_function("!wsClient.connected")


def restore_network(page: Page) -> None:
    page.evaluate("() => { away = false; dispatchEvent(new Event('online')); }")
    page.wait_for_function("wsClient.connected")


def events(page: Page) -> list[str]:
    names: list[str] = page.evaluate("seen.map(item => item.event)")
    return names


@pytest.fixture
def kept(tmp_path: Path) -> tuple[str, ...]:
    """Return options for a history that survives the process."""
    return ("--broker", f"sqlite:///{tmp_path / 'events.sqlite'}", "--drain-timeout", "0")


@pytest.mark.parametrize(
    "html", [CLASSIC, MODULE, CLASSIC + MODULE.removeprefix(PAGE)], ids=["script", "module", "both"]
)
def test_served_library_works_as_script_and_module(server: Server, enter: Enter, html: str) -> None:
    page = enter(server, 7, 5, html=html)
    push(server, 5, 1)
    (message, *_) = wait_for(page, "new_message")
    assert message["data"]["message"] == {"id": 1, "content": "olá", "sender_type": "customer"}
    assert re.fullmatch(r"[\w-]+:\d+", message["id"])
    assert page.evaluate("sockets.length") == 1
    assert page.evaluate("wsClient.isConnected") is True


def test_two_pages_receive_messages_and_typing(server: Server, enter: Enter) -> None:
    ana, bruno = enter(server, 1, 5), enter(server, 2, 5, 6)
    push(server, 5, 1, 2)
    push(server, 6, 3)
    assert ana.evaluate("wsClient.sendTyping(5, true)")
    typing = wait_for(bruno, "typing")
    assert typing[0]["data"] == {"conversation_id": 5, "user_id": 1, "is_typing": True}
    for page in (ana, bruno):
        settle(page)
    assert (numbers(ana, 5), numbers(ana, 6)) == ([1, 2], [])
    assert (numbers(bruno, 5), numbers(bruno, 6)) == ([1, 2], [3])
    assert "typing" not in events(ana)


def test_unsubscribe_called_ends_the_subscription_on_the_server(server: Server, enter: Enter) -> None:
    page = enter(server, 1, 5, 6)
    page.evaluate("wsClient.unsubscribe(5)")
    wait_for(page, "unsubscribed")
    with server.backend() as backend:
        assert backend.push("new_message", {"conversation_id": 5, "message": {"id": 1}})["delivered"] == 0
    lose_network(page)
    restore_network(page)
    wait_for(page, "subscribed", "item.data.conversation_id === 6", 2)
    push(server, 5, 2)
    settle(page)
    assert numbers(page, 5) == []


def test_missed_events_after_a_network_failure_arrive_once_and_in_order(server: Server, enter: Enter) -> None:
    page = enter(server, 1, 5, 6)
    push(server, 5, 1)
    wait_for(page, "new_message")
    lose_network(page)
    push(server, 5, 2, 3)
    push(server, 6, 4)
    with server.backend() as backend:
        backend.push("new_conversation", {"conversation": {"id": 9}})
    restore_network(page)
    recovered = [item["data"] for item in wait_for(page, "recovered", count=3)]
    counts = {data.get("conversation_id"): data["count"] for data in recovered}
    assert counts == {None: 1, 5: 2, 6: 1}
    push(server, 5, 5)
    wait_for(page, "new_message", "item.data.message.id === 5")
    assert (numbers(page, 5), numbers(page, 6)) == ([1, 2, 3, 5], [4])
    assert len(wait_for(page, "new_conversation")) == 1
    assert len(wait_for(page, "disconnected")) == 1, "one outage, however many attempts"
    assert "resync" not in events(page)


@pytest.mark.long
def test_killed_server_with_history_on_disk_loses_no_event(
    chatws_server: Callable[..., Server], enter: Enter, kept: tuple[str, ...]
) -> None:
    server = chatws_server(*kept)
    pages = [enter(server, user, 5) for user in (1, 2)]
    push(server, 5, 1)
    for page in pages:
        wait_for(page, "new_message")
    pages[0].evaluate("() => { away = true; }")  # this one reconnects late, the other at once
    server.restart(signal.SIGKILL)
    push(server, 5, 2, 3)
    restore_network(pages[0])
    for page in pages:
        wait_for(page, "recovered", count=2)
    push(server, 5, 4)
    for page in pages:
        wait_for(page, "new_message", "item.data.message.id === 4")
        assert numbers(page, 5) == [1, 2, 3, 4]
        assert "resync" not in events(page)


def test_killed_server_without_history_causes_a_resync(chatws_server: Callable[..., Server], enter: Enter) -> None:
    server = chatws_server()
    page = enter(server, 1, 5)
    push(server, 5, 1)
    server.restart(signal.SIGKILL)
    resyncs = [item["data"] for item in wait_for(page, "resync", count=2)]
    assert resyncs == [{}, {"conversation_id": 5}]
    push(server, 5, 2)
    wait_for(page, "new_message", "item.data.message.id === 2")


def test_restarted_server_closes_with_4012_and_the_page_reconnects(
    chatws_server: Callable[..., Server], enter: Enter, kept: tuple[str, ...]
) -> None:
    server = chatws_server(*kept)
    page = enter(server, 1, 5)
    server.restart()
    wait_for(page, "recovered", count=2)
    (disconnected,) = wait_for(page, "disconnected")
    assert (disconnected["data"]["code"], disconnected["data"]["will_reconnect"]) == (4012, True)
    push(server, 5, 1)
    wait_for(page, "new_message")


@pytest.mark.long
def test_long_replay_interrupted_several_times_delivers_each_event_once(server: Server, enter: Enter) -> None:
    page = enter(server, 1, 5)
    lose_network(page)
    lines = [{"event": "new_message", "data": {"conversation_id": 5, "message": {"id": n}}} for n in range(1, 3001)]
    with server.backend() as backend:
        backend.send(*lines)
        backend.request({"op": "ping"})
    page.evaluate(
        """() => {
          const cuts = new Set([100, 700, 701, 2000, 2999]);
          wsClient.on('new_message', ({ message }) => { if (cuts.delete(message.id)) sockets.at(-1).close(); });
          wsClient.on('disconnected', () => setTimeout(() => dispatchEvent(new Event('online'))));
        }"""
    )
    restore_network(page)
    page.wait_for_function("seen.some(item => item.event === 'recovered' && item.data.conversation_id === 5)")
    assert page.evaluate("sockets.length") >= 6
    push(server, 5, 3001)
    wait_for(page, "new_message", "item.data.message.id === 3001")
    assert numbers(page, 5) == list(range(1, 3002))


# --- Tokens -----------------------------------------------------------------------------------------------------------

SECRET = "the-secret-that-signs-the-tokens-of-this-test"


def sign_token(seconds: float) -> str:
    return jwt.encode({"sub": "1", "exp": time.time() + seconds}, SECRET, algorithm="HS256")


@pytest.fixture
def guarded(chatws_server: Callable[..., Server], browser: Browser) -> Iterator[tuple[Page, Server]]:
    """Open a page with the library, and a server that requires tokens."""
    server = chatws_server("--auth", "token", "--auth-deadline", "2", CHATWS_SECRET=SECRET)
    with open_page(browser, forgive=NOISE) as page:
        page.goto(f"{server.url}/healthz")
        page.set_content(CLASSIC)
        yield page, server


def errors(page: Page, code: str) -> list[str]:
    """Return the messages of the errors with this code."""
    messages: list[str] = page.evaluate(
        "code => seen.filter(item => item.event === 'error' && item.data.code === code).map(item => item.data.message)",
        code,
    )
    return messages


def test_token_function_that_fails_is_called_until_it_returns_a_token(guarded: tuple[Page, Server]) -> None:
    page, _ = guarded
    page.evaluate(
        """good => {
          const results = [false, '', undefined, null, { token: good }, new Error('logged out'), good];
          const token = async () => {
            const result = results.shift();
            if (result instanceof Error) throw result;
            return result;
          };
          wsClient.connect(1, { token });
          window.hurry = setInterval(() => dispatchEvent(new Event('online')), 20);  // skips the backoff
        }""",
        sign_token(60),
    )
    page.wait_for_function("wsClient.connected")
    page.evaluate("clearInterval(hurry)")
    messages = errors(page, "token_failed")
    words = ("returned false", "returned an empty text", "returned undefined", "returned null", "object", "logged out")
    assert len(messages) == len(words)
    assert all(word in message for word, message in zip(words, messages, strict=True))
    assert errors(page, "bad_message") == []
    assert page.evaluate("sockets.length") == 1, "no connection without a token"


def test_constant_token_that_expires_is_reported_once(guarded: tuple[Page, Server]) -> None:
    page, _ = guarded
    page.evaluate(
        "token => wsClient.connect(1, { token })", sign_token(0)
    )  # valid for five more seconds, the tolerance for clocks
    page.wait_for_function("wsClient.connected")
    (failed,) = wait_for(page, "reconnect_failed")
    assert failed["data"]["code"] == 4901
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    assert [item["data"]["code"] for item in wait_for(page, "disconnected")] == [4000]
    (message,) = errors(page, "token_failed")
    assert "has expired" in message
    assert "pass connect() a function" in message
    assert page.evaluate("sockets.length") == 2


def test_invalid_constant_token_is_reported_at_once(guarded: tuple[Page, Server]) -> None:
    page, _ = guarded
    page.evaluate("for (const token of [false, '', undefined, null, {}, 5]) wsClient.connect(1, { token })")
    assert len(errors(page, "token_failed")) == 6
    assert page.evaluate("sockets.length") == 0


# --- Origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
def test_page_of_another_origin_receives_the_origin_to_allow(
    allowed: bool, chatws_server: Callable[..., Server], browser: Browser, site: str
) -> None:
    origin = site.replace("127.0.0.1", "localhost")
    server = chatws_server(*(("--allowed-origin", origin) if allowed else ()))
    with open_page(browser, forgive=NOISE) as page:
        page.goto(f"{origin}/old_page.html?user=1&url=ws://localhost:{site.rpartition(':')[2]}/none")
        page.evaluate("window.seen = []")
        page.add_script_tag(url=f"{server.url}/assets/js/websocket-client.js")
        page.evaluate("wsClient.on('*', (data, { event, id }) => seen.push({ event, data, id }))")
        page.evaluate("wsClient.connect(1)")  # the server of the script
        if allowed:
            page.wait_for_function("wsClient.connected")
            return
        (error, *more) = wait_for(page, "error", "item.data.code === 'origin_not_allowed'")
        assert not more
        assert error["data"]["origin"] == origin
        host = f"127.0.0.1:{server.port}"
        assert (
            error["data"]["message"] == f"{host} rejects pages of {origin}: add {origin} to its setting allowed_origins"
        )
        server.expect_log(f"origin '{origin}'")


def test_module_of_another_origin_can_be_imported(
    chatws_server: Callable[..., Server], browser: Browser, site: str
) -> None:
    origin = site.replace("127.0.0.1", "localhost")
    server = chatws_server("--allowed-origin", origin)
    with open_page(browser, forgive=NOISE) as page:
        page.goto(f"{origin}/old_page.html?user=1&url=ws://localhost:{site.rpartition(':')[2]}/none")
        page.evaluate("url => import(url)", f"{server.url}/assets/js/websocket-client.js")
        page.evaluate("url => wsClient.connect(1, { url })", server.ws_url)
        page.wait_for_function("wsClient.connected")


def test_banned_user_does_not_reconnect(server: Server, enter: Enter) -> None:
    page = enter(server, 1)
    with server.backend() as backend:
        assert backend.request({"op": "disconnect", "user_id": 1, "reason": "logged out", "ban": True})["ok"]
    (failed,) = wait_for(page, "reconnect_failed")
    assert failed["data"] == {"code": 4903, "reason": "logged out"}
    attempts = page.evaluate("sockets.length")
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    assert page.evaluate("sockets.length") == attempts
    assert page.evaluate("wsClient.connected") is False
