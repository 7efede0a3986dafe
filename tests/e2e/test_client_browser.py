"""websocket-client.js in a real Chromium, against a real server that is pushed to, killed and started again."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e.browser import open_page
from tests.e2e.conftest import Server
from tests.requirements import needs

pytestmark = needs("chromium")

#: A page of somebody's own, as it would stand on the shop's server. It notes every event, and `away` steers its
#: WebSockets to where nobody listens, as a lost network does.
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
#: What a browser says on its console of a server that is away, and of /favicon.ico.
NOISE = r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_UNSAFE_PORT|WebSocket (connection|is closed)|status of 404"

Enter = Callable[..., Page]


@pytest.fixture
def enter(browser: Browser) -> Iterator[Enter]:
    """`enter(server, 7, 5, 6)` opens a page of user 7 that is connected and subscribed to 5 and 6."""
    with ExitStack() as stack:

        def enter(server: Server, user_id: int, *conversations: int, html: str = CLASSIC) -> Page:
            page = stack.enter_context(open_page(browser, forgive=NOISE))
            # A page that Playwright answers itself counts as one of the Internet, and may not reach the loopback.
            page.goto(f"{server.url}/healthz")
            page.set_content(html)
            page.evaluate("([user]) => wsClient.connect(user, { url: '/ws' })", [user_id])
            page.wait_for_function("wsClient.connected")
            for conversation in conversations:
                page.evaluate("id => { wsClient.subscribe(id) }", conversation)
                wait_for(page, "subscribed", f"one.data.conversation_id === {conversation}")
            return page

        yield enter


def wait_for(page: Page, event: str, condition: str = "true", count: int = 1) -> list[dict[str, Any]]:
    """Wait until `count` such events have come, and return them all."""
    found = f"seen.filter(one => one.event === '{event}' && ({condition}))"
    page.wait_for_function(f"{found}.length >= {count}")
    result: list[dict[str, Any]] = page.evaluate(found)
    return result


def settle(page: Page) -> None:
    """Until everything that the server has sent to this page has arrived: its answer to a question comes behind."""
    asked = page.evaluate("seen.filter(one => one.event === 'presence').length")
    assert page.evaluate("wsClient.send({ type: 'presence' })")
    wait_for(page, "presence", count=asked + 1)


def numbers(page: Page, conversation: int) -> list[int]:
    """The messages of a conversation that the page's handlers have had, in their order."""
    of = f"one.event === 'new_message' && one.data.conversation_id === {conversation}"
    found: list[int] = page.evaluate(f"seen.filter(one => {of}).map(one => one.data.message.id)")
    return found


def push(server: Server, conversation: int, *messages: int) -> None:
    """Messages into a conversation, each acknowledged."""
    with server.backend() as backend:
        for number in messages:
            message = {"id": number, "content": "olá", "sender_type": "customer"}
            backend.push("new_message", {"conversation_id": conversation, "message": message})


def lose_network(page: Page) -> None:
    """The connection breaks, and the next ones fail, until `find_network`."""
    page.evaluate("() => { away = true; for (const socket of sockets) socket.close(); }")
    page.wait_for_function("!wsClient.connected")


def find_network(page: Page) -> None:
    page.evaluate("() => { away = false; dispatchEvent(new Event('online')); }")
    page.wait_for_function("wsClient.connected")


def events(page: Page) -> list[str]:
    found: list[str] = page.evaluate("seen.map(one => one.event)")
    return found


@pytest.fixture
def kept(tmp_path: Path) -> tuple[str, ...]:
    """Options for a log that outlives the process."""
    return ("--broker", f"sqlite:///{tmp_path / 'events.sqlite'}", "--drain-seconds", "0")


@pytest.mark.parametrize(
    "html", [CLASSIC, MODULE, CLASSIC + MODULE.removeprefix(PAGE)], ids=["script", "module", "both"]
)
def test_the_served_file_works_as_a_script_and_as_a_module(server: Server, enter: Enter, html: str) -> None:
    page = enter(server, 7, 5, html=html)
    push(server, 5, 1)
    (message, *_) = wait_for(page, "new_message")
    assert message["data"]["message"] == {"id": 1, "content": "olá", "sender_type": "customer"}
    assert re.fullmatch(r"[\w-]+:\d+", message["id"])
    assert page.evaluate("sockets.length") == 1
    assert page.evaluate("wsClient.isConnected") is True


def test_two_pages_see_messages_and_each_others_typing(server: Server, enter: Enter) -> None:
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


def test_unsubscribe_reaches_the_server(server: Server, enter: Enter) -> None:
    page = enter(server, 1, 5, 6)
    page.evaluate("wsClient.unsubscribe(5)")
    wait_for(page, "unsubscribed")
    with server.backend() as backend:
        assert backend.push("new_message", {"conversation_id": 5, "message": {"id": 1}})["delivered"] == 0
    lose_network(page)
    find_network(page)
    wait_for(page, "subscribed", "one.data.conversation_id === 6", 2)
    push(server, 5, 2)
    settle(page)
    assert numbers(page, 5) == []


def test_what_was_missed_comes_once_and_in_order_when_the_network_is_back(server: Server, enter: Enter) -> None:
    page = enter(server, 1, 5, 6)
    push(server, 5, 1)
    wait_for(page, "new_message")
    lose_network(page)
    push(server, 5, 2, 3)
    push(server, 6, 4)
    with server.backend() as backend:
        backend.push("new_conversation", {"conversation": {"id": 9}})
    find_network(page)
    told = {one["data"].get("conversation_id"): one["data"]["count"] for one in wait_for(page, "recovered", count=3)}
    assert told == {None: 1, 5: 2, 6: 1}
    push(server, 5, 5)
    wait_for(page, "new_message", "one.data.message.id === 5")
    assert (numbers(page, 5), numbers(page, 6)) == ([1, 2, 3, 5], [4])
    assert len(wait_for(page, "new_conversation")) == 1
    assert len(wait_for(page, "disconnected")) == 1, "one outage, however many attempts"
    assert "resync" not in events(page)


def test_a_killed_server_with_a_log_on_disk_is_not_noticed_in_what_arrives(
    chatws_server: Callable[..., Server], enter: Enter, kept: tuple[str, ...]
) -> None:
    server = chatws_server(*kept)
    pages = [enter(server, user, 5) for user in (1, 2)]
    push(server, 5, 1)
    for page in pages:
        wait_for(page, "new_message")
    pages[0].evaluate("() => { away = true; }")  # one comes back late, the other as soon as it can
    server.restart(signal.SIGKILL)
    push(server, 5, 2, 3)
    find_network(pages[0])
    for page in pages:
        wait_for(page, "recovered", count=2)
    push(server, 5, 4)
    for page in pages:
        wait_for(page, "new_message", "one.data.message.id === 4")
        assert numbers(page, 5) == [1, 2, 3, 4]
        assert "resync" not in events(page)


def test_a_killed_server_without_a_log_is_told_as_a_resync(chatws_server: Callable[..., Server], enter: Enter) -> None:
    server = chatws_server()
    page = enter(server, 1, 5)
    push(server, 5, 1)
    server.restart(signal.SIGKILL)
    told = [one["data"] for one in wait_for(page, "resync", count=2)]
    assert told == [{}, {"conversation_id": 5}]
    push(server, 5, 2)
    wait_for(page, "new_message", "one.data.message.id === 2")


def test_a_server_that_is_restarted_in_order_says_so_and_the_page_comes_back_by_itself(
    chatws_server: Callable[..., Server], enter: Enter, kept: tuple[str, ...]
) -> None:
    server = chatws_server(*kept)
    page = enter(server, 1, 5)
    server.restart()
    wait_for(page, "recovered", count=2)
    (gone,) = wait_for(page, "disconnected")
    assert (gone["data"]["code"], gone["data"]["will_reconnect"]) == (4012, True)
    push(server, 5, 1)
    wait_for(page, "new_message")


def test_a_long_replay_cut_in_the_middle_several_times_gives_each_event_once(server: Server, enter: Enter) -> None:
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
    find_network(page)
    page.wait_for_function("seen.some(one => one.event === 'recovered' && one.data.conversation_id === 5)")
    assert page.evaluate("sockets.length") >= 6
    push(server, 5, 3001)
    wait_for(page, "new_message", "one.data.message.id === 3001")
    assert numbers(page, 5) == list(range(1, 3002))


def test_a_banned_user_is_told_and_does_not_come_back(server: Server, enter: Enter) -> None:
    page = enter(server, 1)
    with server.backend() as backend:
        assert backend.request({"op": "disconnect", "user_id": 1, "reason": "logged out", "ban": True})["ok"]
    (failed,) = wait_for(page, "reconnect_failed")
    assert failed["data"] == {"code": 4903, "reason": "logged out"}
    dialled = page.evaluate("sockets.length")
    page.evaluate("() => { dispatchEvent(new Event('online')); }")
    assert page.evaluate("sockets.length") == dialled
    assert page.evaluate("wsClient.connected") is False
