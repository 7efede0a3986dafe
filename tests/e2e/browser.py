"""A real Chromium for tests, through Playwright's synchronous API.

How it lives together with pytest-twisted, whose reactor runs in a greenlet of the same thread: plain test functions
(no `ensureDeferred`) run outside of the reactor, and there Playwright may block as it likes. Two consequences:

- While a Playwright call waits, the reactor of this process stands still: what the page talks to has to be
  **another process** (or a thread).
- As long as the browser is open an asyncio loop counts as running in this thread: no `asyncio.run` next to it.
  So a browser belongs to one module, never to the whole run.

Use (the fixture is in tests/e2e/conftest.py)::

    @needs("chromium")
    def test_something(browser):
        with open_page(browser, "http://127.0.0.1:8080/") as page:
            ...
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.requirements import find_program

__all__ = ["ARTIFACTS", "FLAGS", "artifact", "open_browser", "open_page"]

#: Screenshots and logs of a run. git ignores the directory.
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"

#: Seconds after which the closing of a page or of the browser is left to the end of the process. Now and then Chromium
#: never answers to it, and Playwright would wait for ever.
CLOSING = 15.0

#: A browser that connects only to the page's server.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def artifact(name: str) -> str:
    """The path of a file in `test-artifacts/`."""
    ARTIFACTS.mkdir(exist_ok=True)
    return str(ARTIFACTS / name)


@contextmanager
def open_browser(*flags: str) -> Iterator[Browser]:
    """Chromium from the Debian package, ended with the block. `expect` waits longer than it does by itself."""
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_program("chromium"), args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            _close(browser)


def _close(what: Browser | BrowserContext) -> None:
    try:
        what._sync(asyncio.wait_for(what._impl_obj.close(reason=None), CLOSING))
    except TimeoutError:
        print(f"Chromium has not closed a {type(what).__name__} within {CLOSING:g} s")


@contextmanager
def open_page(
    browser: Browser,
    url: str | None = None,
    *,
    forgive: str | None = None,
    timeout: float = 20.0,
    **context: Any,
) -> Iterator[Page]:
    """A page with its own storage, as on another computer.

    An uncaught exception or a `console.error` on the page fails the block at its end.

    :param forgive: a regular expression; what it matches is no failure (a refused connection while the
        server is down, say).
    :param timeout: of every action and wait, in seconds.
    :param context: options of Playwright's `new_context`: `viewport`, `locale`, `color_scheme` …
    """
    context.setdefault("viewport", {"width": 1280, "height": 800})
    context.setdefault("locale", "en-US")
    room = browser.new_context(**context)
    complaints: list[str] = []
    try:
        room.set_default_timeout(timeout * 1000)
        page = room.new_page()
        page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
        page.on("console", lambda item: complaints.append(item.text) if item.type == "error" else None)
        if url is not None:
            page.goto(url)
        yield page
    except BaseException as error:
        error.add_note(f"the page complained: {complaints}")
        raise
    finally:
        _close(room)
    unforgiven = [complaint for complaint in complaints if forgive is None or not re.search(forgive, complaint)]
    assert not unforgiven, f"the page complained: {unforgiven}"
