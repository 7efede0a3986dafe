"""Test chatws-echo.js in Chromium with unmodified pusher-js and Laravel Echo, and Laravel's own authorization.

The server is the reference of tests/e2e/pusher_reference.py, which loses connections and events at will.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.e2e.browser import open_page
from tests.e2e.pusher_reference import ReferenceServer
from tests.e2e.test_old_page import site
from tests.e2e.test_php_laravel import PACKAGES, Laravel, laravel
from tests.e2e.test_php_laravel_echo import APP, CALLBACKS, env
from tests.e2e.wire import until
from tests.npm import require_npm_packages
from tests.requirements import needs
from tests.test_static_echo import SCRIPT

__all__ = ["site"]

pytestmark = [needs("chromium"), needs("php-cli"), *(needs(package) for package in PACKAGES)]

#: Console messages of Chromium about broken connections, refused authorizations and /favicon.ico.
NOISE = r"WebSocket connection|status of (403|404)|ERR_"


@pytest.fixture
def server() -> Iterator[ReferenceServer]:
    with ReferenceServer(APP) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: ReferenceServer, site: str, tmp_path: Path) -> Iterator[Page]:
    """Yield a page with `echo` of user 5. Laravel answers its authorization requests."""
    packages = require_npm_packages()
    with ExitStack() as stack:
        app = stack.enter_context(laravel(tmp_path, CALLBACKS, env()))
        page = stack.enter_context(open_page(browser, f"{site}/old_page.html", forgive=NOISE))
        page.route("**/broadcasting/auth", lambda route: authorize(app, route))
        page.set_content("<!doctype html><title>shop</title>")
        for path in (SCRIPT, packages / "pusher-js/dist/web/pusher.js", packages / "laravel-echo/dist/echo.iife.js"):
            page.add_script_tag(content=path.read_text(encoding="utf-8"))
        page.evaluate(
            """([key, port]) => {
                window.seen = [];
                window.echo = new (Echo.default ?? Echo)({
                    broadcaster: 'pusher', key, cluster: 'none', wsHost: '127.0.0.1', wsPort: port, forceTLS: false,
                    enabledTransports: ['ws'],
                });
                window.watch = (channel) => channel
                    .listen('.paid', ({ n }) => seen.push(n))
                    .listen('.chatws:resync', () => seen.push('resync'))
                    .listen('.chatws:recovered', ({ recovered }) => seen.push(recovered ? 'recovered' : 'lost'));
            }""",
            [APP.key, server.port],
        )
        yield page


def authorize(app: Laravel, route: Route) -> None:
    """Answer Echo's `POST /broadcasting/auth` as Laravel does."""
    response = app.step(auth=dict(parse_qsl(route.request.post_data or "")), headers={"User": 5})
    route.fulfill(status=response["status"], content_type="application/json", body=json.dumps(response["body"]))


def numbers(first: int, last: int) -> list[dict[str, int]]:
    return [{"n": number} for number in range(first, last + 1)]


def seen(page: Page, *expected: Any) -> None:
    """Wait until the page has seen exactly this."""
    page.wait_for_function("count => seen.length >= count", arg=len(expected))
    assert page.evaluate("seen") == list(expected)


def subscriptions(page: Page, server: ReferenceServer, count: int) -> list[dict[str, Any]]:
    def reached() -> bool:
        page.evaluate("0")  # lets Playwright answer the page's requests
        return len(server.subscriptions) >= count

    until(reached, f"{count} subscriptions")
    return server.subscriptions


def test_private_channel_of_echo_gets_missed_events_before_live_ones_once(page: Page, server: ReferenceServer) -> None:
    page.evaluate("watch(echo.private('orders.7'))")
    subscriptions(page, server, 1)
    server.publish("private-orders.7", "paid", *numbers(1, 2))
    seen(page, 1, 2)
    with server.offline():
        server.publish("private-orders.7", "paid", *numbers(3, 60))
    last = subscriptions(page, server, 2)[-1]
    assert last["last_event_id"] == "1:2"
    server.publish("private-orders.7", "paid", {"n": 61})
    seen(page, *range(1, 61), "recovered", 61)


def test_channel_without_an_event_recovers_from_its_subscription(page: Page, server: ReferenceServer) -> None:
    server.publish("news", "paid", {"n": 1})
    page.evaluate("watch(echo.channel('news'))")
    subscriptions(page, server, 1)
    with server.offline():
        server.publish("news", "paid", {"n": 2})
    seen(page, 2, "recovered")


def test_channel_whose_events_are_gone_resyncs_and_goes_on(page: Page, server: ReferenceServer) -> None:
    page.evaluate("watch(echo.channel('news'))")
    subscriptions(page, server, 1)
    server.publish("news", "paid", {"n": 1})
    seen(page, 1)
    with server.offline():
        server.lose_history()
    subscriptions(page, server, 2)
    server.publish("news", "paid", {"n": 2})
    seen(page, 1, "resync", "lost", 2)


def test_presence_channel_of_echo_has_the_members_of_laravel(page: Page, server: ReferenceServer) -> None:
    page.evaluate("echo.join('room.1').here((members) => seen.push(...members))")
    seen(page, {"name": "Zoë/5"})


def test_channel_that_laravel_refuses_reports_the_error_and_others_go_on(page: Page, server: ReferenceServer) -> None:
    page.evaluate("echo.private('orders.8').error(({ status }) => seen.push(status))")
    seen(page, 403)
    page.evaluate("watch(echo.private('orders.7'))")
    subscriptions(page, server, 1)
    server.publish("private-orders.7", "paid", {"n": 1})
    seen(page, 403, 1)
