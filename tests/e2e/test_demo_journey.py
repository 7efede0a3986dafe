"""Test the demo in Chromium with one or two windows.

Screenshots are stored in `test-artifacts/`.
"""

from __future__ import annotations

import base64
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browser import artifact, open_browser, open_page
from tests.e2e.conftest import Server
from tests.requirements import needs

pytestmark = needs("chromium")

ANA, BRUNO, CARLA, DIEGO = 1, 2, 3, 4
MARINA, JAMES, BAKERY, EMILY, RAFAEL, SOFIA, LUCAS, OLIVIA = range(1, 9)

#: Half of a common screen.
HALF = {"width": 720, "height": 760}
#: Console messages of a browser whose server is down.
AWAY = r"ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|WebSocket connection"

Enter = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Return options for a demo whose database and history survive the process."""
    return (
        "--demo",
        "--demo-database",
        str(tmp_path / "demo.sqlite"),
        "--broker",
        f"sqlite:///{tmp_path / 'events.sqlite'}",
        "--presence-grace",
        "0.3",
        "--drain-timeout",
        "0",
    )


@pytest.fixture
def demo(chatws_server: Callable[..., Server]) -> Server:
    return chatws_server("--demo", "--presence-grace", "0.3", "--drain-timeout", "0")


@pytest.fixture
def enter(browser: Browser) -> Iterator[Enter]:
    """Yield a function: `enter(server, ANA)` opens a window and logs in."""
    with ExitStack() as stack:

        def enter(server: Server, agent: int, *, path: str = "", **options: Any) -> Page:
            page = stack.enter_context(open_page(browser, f"{server.url}/?agent={agent}{path}", **options))
            expect(connection(page)).to_have_attribute("data-state", "live")
            expect(rows(page).first).to_be_visible()
            return page

        yield enter


def call_api(server: Server, path: str, body: dict[str, Any] | None = None) -> Any:
    """Call the demo's API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/api/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def connection(page: Page) -> Any:
    return page.get_by_test_id("connection")


def rows(page: Page) -> Any:
    return page.get_by_test_id("conversation")


def row(page: Page, conversation: int) -> Any:
    return page.locator(f'[data-conversation="{conversation}"]')


def unread(page: Page, conversation: int) -> Any:
    return row(page, conversation).get_by_test_id("unread")


def texts(page: Page) -> Any:
    return page.get_by_test_id("text")


def typing(page: Page) -> Any:
    return page.get_by_test_id("typing")


def watch_typing(page: Page) -> None:
    """Record all typing indicators for `was_typing`: they are visible for one to three seconds."""
    page.evaluate(
        """() => {
          const line = document.querySelector('[data-testid="typing"]');
          window.typed = new Set();
          new MutationObserver(() => line.hidden || window.typed.add(line.innerText.trim()))
            .observe(line, { attributes: true, childList: true, subtree: true });
        }"""
    )


def was_typing(page: Page, text: str) -> None:
    """Wait until the text has been shown, now or before."""
    page.wait_for_function("text => window.typed.has(text)", arg=text)


def toast(page: Page, text: str) -> Any:
    return page.get_by_test_id("toast").filter(has_text=text)


def presence(page: Page, agent: int) -> Any:
    return page.locator(f'[data-testid="presence"][data-agent="{agent}"]')


def choose(page: Page, conversation: int, name: str) -> None:
    row(page, conversation).get_by_role("button").click()
    expect(page.get_by_test_id("thread-name")).to_have_text(name)
    expect(page.get_by_test_id("text").first).to_be_visible()


def side_by_side(browser: Browser, name: str, left: Page, right: Page) -> None:
    """Make one screenshot of two windows side by side."""
    pictures = [base64.b64encode(page.screenshot()).decode() for page in (left, right)]
    windows = "".join(f'<img src="data:image/png;base64,{picture}">' for picture in pictures)
    style = (
        "body{margin:0;display:flex;gap:20px;padding:24px;background:linear-gradient(135deg,#cfe3dc,#e9e4d6)}"
        "img{width:720px;border-radius:12px;box-shadow:0 2px 4px rgb(0 0 0/.15),0 18px 50px rgb(9 50 45/.28)}"
    )
    size = {"width": 2 * 720 + 20 + 48, "height": HALF["height"] + 48}
    with open_page(browser, viewport=size) as page:
        page.set_content(f"<style>{style}</style>{windows}")
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        page.screenshot(path=artifact(name))


def test_two_windows_show_each_others_messages_typing_and_presence(
    demo: Server, browser: Browser, enter: Enter
) -> None:
    ana = enter(demo, ANA, viewport=HALF)
    expect(presence(ana, BRUNO)).to_have_attribute("data-status", "offline")

    with open_page(browser, demo.url, viewport=HALF) as bruno:
        expect(bruno.get_by_test_id("agent")).to_have_count(4)
        bruno.screenshot(path=artifact("demo-login.png"))
        bruno.locator(f'[data-testid="agent"][data-agent="{BRUNO}"]').click()
        expect(connection(bruno)).to_have_text("Live")
        for page in (ana, bruno):
            for agent, status in ((ANA, "online"), (BRUNO, "online"), (CARLA, "offline")):
                expect(presence(page, agent)).to_have_attribute("data-status", status)
            expect(page.get_by_test_id("thread-name")).to_have_text("Marina Costa")

        for page in (ana, bruno):
            watch_typing(page)
        bruno.get_by_test_id("draft").press_sequentially("Dá sim, Marina! ")
        was_typing(ana, "Bruno is typing…")
        expect(typing(bruno)).to_be_hidden()
        bruno.get_by_test_id("draft").press("Shift+Enter")
        bruno.get_by_test_id("draft").press_sequentially("Deixamos com a portaria.")
        ana.screenshot(path=artifact("demo-typing.png"))
        bruno.get_by_test_id("draft").press("Enter")

        for page in (ana, bruno):
            expect(texts(page).last).to_have_text("Dá sim, Marina! \nDeixamos com a portaria.")
            expect(texts(page).filter(has_text="portaria.")).to_have_count(1)
            expect(row(page, MARINA).get_by_test_id("preview")).to_contain_text("Dá sim, Marina!")
        expect(typing(ana)).to_be_hidden()
        expect(bruno.get_by_test_id("message").last).to_have_attribute("data-state", "stored")
        expect(bruno.get_by_test_id("seen")).to_have_text("Seen by Ana")
        expect(bruno.get_by_test_id("draft")).to_have_value("")

        ana.get_by_test_id("draft").press_sequentially("Obrigada, Bruno")
        call_api(demo, "customer", {"conversation_id": EMILY})
        was_typing(bruno, "Ana is typing…")
        expect(unread(bruno, EMILY)).to_have_text("1")
        side_by_side(browser, "demo.png", ana, bruno)

    expect(presence(ana, BRUNO)).to_have_attribute("data-status", "offline")
    expect(presence(ana, ANA)).to_have_attribute("data-status", "online")


def test_two_windows_of_one_agent_count_as_one_agent(demo: Server, browser: Browser, enter: Enter) -> None:
    ana = enter(demo, ANA)
    statuses = "window.seen = []; wsClient.on('agent_status', (data) => window.seen.push(data.status))"
    ana.evaluate(statuses)
    with open_page(browser, f"{demo.url}/?agent={BRUNO}") as first:
        expect(presence(ana, BRUNO)).to_have_attribute("data-status", "online")
        with open_page(browser, f"{demo.url}/?agent={BRUNO}") as second:
            expect(connection(second)).to_have_text("Live")
            choose(first, JAMES, "James Whitfield")
            choose(second, SOFIA, "Sofia Almeida")
            first.get_by_test_id("draft").fill("From the other window")
            first.get_by_test_id("send").click()
            choose(second, JAMES, "James Whitfield")
            expect(texts(second).last).to_have_text("From the other window")
        first.get_by_test_id("draft").fill("Still here")
        first.get_by_test_id("send").click()
        expect(row(ana, JAMES).get_by_test_id("preview")).to_have_text("Bruno: Still here")
    expect(presence(ana, BRUNO)).to_have_attribute("data-status", "offline")
    assert ana.evaluate("window.seen") == ["online", "offline"]


def test_unread_counts_update_live_for_each_agent(demo: Server, enter: Enter) -> None:
    ana, bruno = enter(demo, ANA), enter(demo, BRUNO)
    expect(unread(ana, EMILY)).to_have_text("1")
    expect(unread(bruno, EMILY)).to_be_hidden()
    call_api(demo, "customer", {"conversation_id": EMILY, "content": "Hello?"})
    expect(unread(ana, EMILY)).to_have_text("2")
    expect(unread(bruno, EMILY)).to_have_text("1")
    for page in (ana, bruno):
        expect(rows(page).first).to_have_attribute("data-conversation", str(EMILY))
        expect(row(page, EMILY).get_by_test_id("preview")).to_have_text("Hello?")
    assert ana.title().startswith("(4) ")

    choose(ana, EMILY, "Emily Carter")
    expect(unread(ana, EMILY)).to_be_hidden()
    call_api(demo, "customer", {"conversation_id": EMILY, "content": "Still there?"})
    expect(texts(ana).last).to_have_text("Still there?")
    expect(unread(ana, EMILY)).to_be_hidden()
    expect(unread(bruno, EMILY)).to_have_text("2")
    ana.reload()
    expect(unread(ana, EMILY)).to_be_hidden()


def test_assign_close_and_reopen_reach_all_windows(demo: Server, enter: Enter) -> None:
    ana, bruno = enter(demo, ANA), enter(demo, BRUNO)
    choose(ana, BAKERY, "Padaria Pão Quente")
    ana.get_by_test_id("assign").select_option(str(BRUNO))
    expect(row(bruno, BAKERY).get_by_test_id("assignee")).to_have_text("Bruno")
    expect(ana.get_by_test_id("note").last).to_contain_text("Ana assigned this to Bruno Lima")
    toast(bruno, "Padaria Pão Quente was assigned to you").get_by_role("button", name="Show").click()
    expect(bruno.get_by_test_id("thread-name")).to_have_text("Padaria Pão Quente")
    bruno.get_by_test_id("filter-mine").click()
    expect(rows(bruno)).to_have_count(2)
    ana.screenshot(path=artifact("demo-assigned.png"))

    ana.get_by_test_id("close").click()
    expect(bruno.get_by_test_id("closed-bar")).to_be_visible()
    expect(bruno.get_by_test_id("composer")).to_be_hidden()
    expect(rows(bruno)).to_have_count(1)
    expect(row(ana, BAKERY)).to_have_count(0)
    ana.get_by_test_id("filter-closed").click()
    expect(row(ana, BAKERY)).to_be_visible()
    bruno.screenshot(path=artifact("demo-closed.png"))

    bruno.get_by_test_id("reopen").click()
    expect(ana.get_by_test_id("composer")).to_be_visible()
    expect(ana.get_by_test_id("note").last).to_contain_text("Bruno reopened the conversation")
    expect(row(ana, BAKERY)).to_have_count(0)
    ana.get_by_test_id("filter-open").click()
    expect(row(ana, BAKERY)).to_be_visible()


def test_customer_buttons_make_customers_write(demo: Server, enter: Enter) -> None:
    ana, bruno = enter(demo, ANA), enter(demo, BRUNO)
    for page in (ana, bruno):
        watch_typing(page)
    ana.get_by_test_id("customer-answers").click()
    for page in (ana, bruno):
        was_typing(page, "Marina is typing…")
    for page in (ana, bruno):
        expect(texts(page).last).to_contain_text("Dona Célia")
        expect(typing(page)).to_be_hidden()
    for _ in range(3):
        ana.get_by_test_id("customer-writes").click()
        expect(ana.get_by_test_id("customer-writes")).to_be_enabled()
    expect(toast(bruno, "Beatriz Rocha started a conversation")).to_be_visible()
    # it does not cover a button
    assert bruno.get_by_test_id("send").evaluate(
        """(button) => {
          const { x, y, width, height } = button.getBoundingClientRect();
          return button.contains(document.elementFromPoint(x + width / 2, y + height / 2));
        }"""
    )
    for page in (ana, bruno):
        expect(rows(page).first).to_contain_text("Beatriz Rocha")
        expect(rows(page).first.get_by_test_id("unread")).to_have_text("1")


def test_event_pushed_by_another_backend_is_shown(demo: Server, enter: Enter) -> None:
    ana = enter(demo, ANA)
    choose(ana, MARINA, "Marina Costa")
    expect(texts(ana)).to_have_count(5)
    # An open conversation is read, and the response has the demo's own last message: check the preview elsewhere.
    bruno = enter(demo, BRUNO)
    choose(bruno, JAMES, "James Whitfield")
    with demo.backend() as backend:
        line = {"event": "new_message", "data": {"conversation_id": 1, "message": {"id": 9, "content": "hi"}}}
        assert backend.request({**line, "to": "everyone"})["delivered"] == 2
        backend.push("new_conversation", {"conversation": {"id": "lead-5", "contact_name": "Nadia", "status": "open"}})
        backend.push("agent_status", {"agent_id": CARLA, "status": "away"})
        for odd in (
            {},
            {"conversation_id": 1},
            {"conversation_id": 1, "message": None},
            {"conversation_id": 1, "message": 5},
        ):
            backend.push("new_message", odd, to="everyone")
        for name in ("conversation_updated", "new_conversation", "message_read", "typing", "agent_status"):
            backend.push(name, {}, to="everyone")
    expect(texts(ana).last).to_have_text("hi")
    expect(row(bruno, MARINA).get_by_test_id("preview")).to_have_text("hi")
    expect(row(ana, "lead-5")).to_contain_text("Nadia")  # type: ignore[arg-type]
    expect(presence(ana, CARLA)).to_have_attribute("data-status", "away")


def test_markup_in_a_message_is_shown_as_text(demo: Server, enter: Enter) -> None:
    ana, bruno = enter(demo, ANA), enter(demo, BRUNO)
    markup = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script> & "quotes" \u202e\U0001f600'
    ana.get_by_test_id("draft").fill(markup)
    ana.get_by_test_id("draft").press("Enter")
    for page in (ana, bruno):
        expect(texts(page).last).to_have_text(markup)
        expect(row(page, MARINA).get_by_test_id("preview")).to_contain_text("<img src=x")
        assert page.evaluate("window.hurt") is None
        assert page.locator("#messages img").count() == 0


@pytest.mark.parametrize("broker", ["sqlite", "memory"])
def test_killed_server_when_restarted_is_recovered_from(
    broker: str, files: tuple[str, ...], chatws_server: Callable[..., Server], browser: Browser, enter: Enter
) -> None:
    options = (
        files
        if broker == "sqlite"
        else tuple(option for option in files if "broker" not in option and "events" not in option)
    )
    server, elsewhere = chatws_server(*options), chatws_server(*options, start=False)
    ana = enter(server, ANA, forgive=AWAY)
    expect(texts(ana)).to_have_count(5)
    ana.evaluate("window.neverReloaded = true")

    server.stop(signal.SIGKILL)
    expect(connection(ana)).to_have_text("Reconnecting…")
    ana.screenshot(path=artifact(f"demo-killed-{broker}.png"))

    # Another server publishes with the same database, out of the page's reach. Then the first server is back.
    elsewhere.start()
    with elsewhere.agent(DIEGO, MARINA, EMILY) as witness:
        for conversation, content in ((MARINA, "one"), (EMILY, "two"), (MARINA, "three")):
            call_api(elsewhere, "customer", {"conversation_id": conversation, "content": content})
            witness.expect("new_message", conversation_id=conversation)
    elsewhere.stop()
    server.start()
    ana.evaluate("dispatchEvent(new Event('online'))")  # otherwise the client reconnects after some seconds

    status = "Back: 3 missed messages recovered" if broker == "sqlite" else "Back: inbox reloaded"
    expect(connection(ana)).to_have_text(status, timeout=40_000)
    ana.screenshot(path=artifact(f"demo-back-{broker}.png"))
    expect(texts(ana)).to_have_count(7)
    call_api(server, "customer", {"conversation_id": MARINA, "content": "four"})
    expect(texts(ana)).to_have_count(8)
    assert texts(ana).all_text_contents()[5:] == ["one", "three", "four"]
    expect(unread(ana, EMILY)).to_have_text("2")
    expect(unread(ana, MARINA)).to_be_hidden()
    assert ana.evaluate("window.neverReloaded")
    expect(connection(ana)).to_have_text("Live")


def test_message_written_without_a_server_is_sent_once_after_its_restart(
    files: tuple[str, ...], chatws_server: Callable[..., Server], enter: Enter
) -> None:
    server = chatws_server(*files)
    ana = enter(server, ANA, forgive=AWAY)
    bruno = enter(server, BRUNO, forgive=AWAY)
    server.stop(signal.SIGKILL)
    for text in ("first", "second"):
        ana.get_by_test_id("draft").fill(text)
        ana.get_by_test_id("draft").press("Enter")
    for index in (-1, -2):
        expect(ana.get_by_test_id("message").nth(index)).to_have_attribute("data-state", "waiting")
    ana.screenshot(path=artifact("demo-waiting.png"))
    server.start()
    for page in (ana, bruno):
        expect(texts(page)).to_have_count(7, timeout=40_000)
        assert texts(page).all_text_contents()[5:] == ["first", "second"]
    expect(ana.get_by_test_id("message").last).to_have_attribute("data-state", "stored")
    stored = call_api(server, "conversations/1/messages")["messages"][5:]
    assert [message["content"] for message in stored] == ["first", "second"]


def test_page_of_a_demo_with_a_new_database_reloads(demo: Server, enter: Enter) -> None:
    ana = enter(demo, ANA, forgive=AWAY)
    choose(ana, SOFIA, "Sofia Almeida")
    ana.get_by_test_id("draft").fill("forgotten")
    ana.get_by_test_id("draft").press("Enter")
    expect(row(ana, SOFIA).get_by_test_id("preview")).to_have_text("You: forgotten")
    demo.restart(signal.SIGKILL)
    expect(row(ana, SOFIA).get_by_test_id("preview")).to_contain_text("impostos", timeout=40_000)


def test_phone_shows_either_list_or_conversation(demo: Server, enter: Enter) -> None:
    phone = enter(demo, ANA, viewport={"width": 390, "height": 844}, locale="pt-BR", has_touch=True)
    expect(connection(phone)).to_have_text("Ao vivo")
    expect(phone.get_by_test_id("thread")).to_be_hidden()
    expect(unread(phone, MARINA)).to_have_text("1")
    phone.screenshot(path=artifact("demo-phone-list.png"))
    row(phone, MARINA).get_by_role("button").tap()
    expect(phone.get_by_test_id("thread")).to_be_visible()
    expect(phone.get_by_test_id("conversation-list")).to_be_hidden()
    expect(texts(phone)).to_have_count(5)
    phone.screenshot(path=artifact("demo-phone-thread.png"))
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.get_by_test_id("back").tap()
    expect(unread(phone, MARINA)).to_be_hidden()


def test_language_changed_stays_after_a_reload(demo: Server, enter: Enter) -> None:
    page = enter(demo, ANA, locale="pt-BR")
    expect(page.get_by_test_id("filter-mine")).to_contain_text("Minhas")
    assert page.evaluate("document.documentElement.lang") == "pt-BR"
    page.locator('[data-testid="language"]:visible').click()
    expect(page.get_by_test_id("filter-mine")).to_contain_text("Mine")
    expect(page.get_by_test_id("draft")).to_have_attribute("placeholder", "Write to Marina…")
    page.reload()
    expect(page.get_by_test_id("filter-mine")).to_contain_text("Mine")


def test_an_agent_who_logs_out_can_log_in_as_another(demo: Server, enter: Enter) -> None:
    page, bruno = enter(demo, ANA), enter(demo, BRUNO)
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "online")
    page.reload()  # the tab stores the agent
    expect(connection(page)).to_have_text("Live")
    page.get_by_test_id("me").click()
    page.get_by_test_id("switch-agent").click()
    expect(page.get_by_test_id("login")).to_be_visible()
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "offline")
    page.locator(f'[data-testid="agent"][data-agent="{CARLA}"]').click()
    expect(presence(bruno, CARLA)).to_have_attribute("data-status", "online")


def test_status_of_an_agent_is_shown_and_stays_after_a_reload(demo: Server, enter: Enter) -> None:
    page, bruno = enter(demo, ANA), enter(demo, BRUNO)
    page.get_by_test_id("me").click()
    page.get_by_test_id("status-busy").click()
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "busy")
    expect(presence(page, ANA)).to_have_attribute("data-status", "busy")
    page.reload()
    expect(connection(page)).to_have_text("Live")
    expect(presence(page, ANA)).to_have_attribute("data-status", "busy")
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "busy")
    bruno.reload()
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "busy")
    page.get_by_test_id("me").click()
    page.get_by_test_id("status-online").click()
    expect(presence(bruno, ANA)).to_have_attribute("data-status", "online")


def test_second_window_opens_as_another_agent(demo: Server, browser: Browser) -> None:
    with open_page(browser, demo.url) as page:
        with page.context.expect_page() as opened:
            page.get_by_test_id("side-by-side").click()
        for window, agent in ((page, ANA), (opened.value, BRUNO)):
            expect(connection(window)).to_have_text("Live")
            expect(presence(window, agent)).to_have_attribute("data-status", "online")
            assert window.evaluate("sessionStorage.agent") == str(agent)


def test_page_is_usable_with_keyboard_and_screen_reader(demo: Server, enter: Enter) -> None:
    nameless = """[...document.querySelectorAll("button, input, textarea, select, summary")]
        .filter((element) => element.checkVisibility())
        .filter(({ ariaLabel, innerText }) => !ariaLabel && !innerText.trim())
        .filter(({ labels }) => !labels?.[0]?.textContent.trim())
        .map((element) => element.outerHTML)"""
    for width in (390, 640, 800, 1280):
        page = enter(demo, ANA, viewport={"width": width, "height": 800})
        row(page, MARINA).get_by_role("button").click()
        expect(texts(page).first).to_be_visible()
        assert page.evaluate(nameless) == [], width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    choose(page, MARINA, "Marina Costa")
    row(page, MARINA).get_by_role("button").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("thread-name")).to_have_text("James Whitfield")
    expect(page.get_by_test_id("draft")).to_be_focused()
    expect(row(page, JAMES).get_by_role("button")).to_have_attribute("aria-current", "true")
    # the initial messages are not read aloud: they must be there before the next message
    expect(texts(page).last).to_contain_text("one colour")
    call_api(demo, "customer", {"conversation_id": JAMES, "content": "Read this aloud"})
    expect(page.get_by_test_id("announce")).to_have_text("James Whitfield: Read this aloud")


def test_page_is_dark_if_the_system_prefers_it(demo: Server, enter: Enter) -> None:
    page = enter(demo, ANA, color_scheme="dark")
    expect(texts(page).first).to_be_visible()
    page.screenshot(path=artifact("demo-dark.png"))
    background = page.evaluate("getComputedStyle(document.querySelector('.list')).backgroundColor")
    assert max(int(channel) for channel in background[4:-1].split(",")) < 60


def test_server_without_demo_serves_no_demo(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server()
    for path in ("/demo/app.js", "/api/agents", "/api/customer"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{server.url}{path}", timeout=20)
        assert raised.value.code == 404
