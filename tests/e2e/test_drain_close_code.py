"""The close code of a drain: 4012, or 1000 for old pages that poll for good after any other."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.browser import open_page
from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment
from tests.e2e.test_client_browser import Enter, enter, wait_for
from tests.e2e.test_old_page import is_ready, site
from tests.requirements import needs
from tests.variants import others_long

__all__ = ["enter", "site"]

Start = Callable[..., Server]


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("--workers", "2"), marks=pytest.mark.long)], ids=["alone", "workers"]
)
@pytest.mark.parametrize(("drain_timeout", "code"), [("0", 1000), ("1", 1000), ("1", 4012)])
def test_a_drain_sends_the_code_to_pages_without_the_library(
    chatws_server: Start, workers: tuple[str, ...], drain_timeout: str, code: int
) -> None:
    server = chatws_server("--drain-close-code", str(code), "--drain-timeout", drain_timeout, *workers)
    paths = {"/ws": code, "/ws?clients=1": code, "/": code, "/ws?client=js": 4012, "/ws?a=b&client": 4012}
    browsers = [(server.browser(path), expected) for path, expected in paths.items() for _ in range(3)]
    for number, (browser, _) in enumerate(browsers):
        if number % 3:  # the others have not authenticated
            browser.auth(number)
    assert server.stop() == 0
    assert [browser.expect_close()[0] for browser, _ in browsers] == [expected for _, expected in browsers]


def test_the_code_can_be_changed_while_the_server_runs(chatws_server: Start, tmp_path: Path) -> None:
    settings = tmp_path / "chatws.toml"
    settings.write_text("drain_timeout = 0\n")
    server = chatws_server("--config", str(settings))
    agent = server.agent(1)
    settings.write_text("drain_timeout = 0\ndrain_close_code = 1000\n")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    server.expect_log("configuration: drain_close_code: 4012 → 1000")
    assert server.stop() == 0
    assert agent.expect_close()[0] == 1000


@pytest.mark.parametrize("code", others_long(["1001", "4000", "4901", "0"]))
def test_another_code_is_refused_in_one_line(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*twistd_command(), "-n", "chatws", "--drain-close-code", code],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert "--drain-close-code must be" in line


@needs("chromium")
def test_a_page_that_polls_after_any_other_code_reconnects_after_1000(
    chatws_server: Start, site: str, browser: Browser, enter: Enter
) -> None:
    server = chatws_server("--drain-close-code", "1000", "--drain-timeout", "0")
    url = f"{site}/old_list.html?user=1&rows=3&url=ws://127.0.0.1:{server.port}"
    with open_page(browser) as page:
        page.clock.install()
        page.goto(url)
        page.wait_for_function("wire.received.filter(message => message.event === 'subscribed').length === 3")
        page.evaluate("RECONNECT_DELAY = 3_600_000")  # not before the server is back, however long that takes here
        library = enter(server, 2, 5)
        server.restart()
        expect(page.locator("#status")).to_have_text("closed")
        page.clock.run_for(3_600_000)
        page.wait_for_function("wire.received.filter(message => message.event === 'subscribed').length === 6")
        assert page.evaluate("wire.closes") == [1000]
        assert page.evaluate("wire.polls") is False
        (gone,) = wait_for(library, "disconnected")
        assert gone["data"]["code"] == 4012
        library.wait_for_function("wsClient.connected")


@needs("chromium")
def test_a_polling_page_after_4012_polls_permanently(chatws_server: Start, site: str, browser: Browser) -> None:
    server = chatws_server("--drain-timeout", "0")
    with open_page(browser, f"{site}/old_list.html?user=1&rows=3&url=ws://127.0.0.1:{server.port}") as page:
        page.wait_for_function("wire.received.filter(message => message.event === 'subscribed').length === 3")
        server.restart()
        expect(page.locator("#status")).to_have_text("polling")
        assert page.evaluate("wire.closes") == [4012]


@needs("chromium")
def test_other_old_pages_never_reconnect_after_1000(chatws_server: Start, site: str, browser: Browser) -> None:
    server = chatws_server("--drain-close-code", "1000", "--drain-timeout", "0")
    url = f"{site}/old_page.html?user=1&conversation=456&url=ws://127.0.0.1:{server.port}"
    with open_page(browser) as page:
        page.clock.install()
        page.goto(url)
        is_ready(page)
        server.restart()
        expect(page.locator("#status")).to_have_text("closed")
        page.clock.run_for(600_000)
        assert page.evaluate("wire.sockets") == 1
