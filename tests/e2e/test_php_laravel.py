"""Test the Laravel broadcaster with Laravel's own components (Debian packages) and the callbacks of php/README.md."""

from __future__ import annotations

import json
import re
import select
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.browser import open_browser, open_page
from tests.e2e.conftest import Server
from tests.e2e.php import PHP_DIRECTORY, SCRIPTS
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import DEADLINE, until
from tests.requirements import LIBRARIES, find_program, needs

#: Laravel's components and their dependencies.
PACKAGES = [package for package in LIBRARIES if package != "php-fpm"]

pytestmark = [needs("php-cli"), *(needs(package) for package in PACKAGES)]

README = (PHP_DIRECTORY / "README.md").read_text()
SECRET = "a secret of at least 32 bytes, this"


def snippet(language: str, mark: str) -> str:
    """Return the block of php/README.md in that language that contains `mark`."""
    (text,) = [
        text for text in re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if mark in text
    ]
    return text


class Laravel:
    """Run the application of tests/php/laravel.php, with the provider of php/composer.json.

    :ivar directory: its files; `laravel.log` is its log.
    """

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self._process = process

    def step(self, **fields: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(fields).encode() + b"\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], DEADLINE)[0], "PHP did not respond"
        line = self._process.stdout.readline()
        assert line, f"PHP ended with status {self._process.wait(DEADLINE)}"
        return json.loads(line)

    def auth(self, channels: Any = None, **headers: Any) -> tuple[int, Any]:
        """Send `POST /broadcasting/auth`. Return the status, and the body or the token's claims."""
        response = self.step(auth={} if channels is None else {"channel_name": channels}, headers=headers)
        if response["status"] != 200:
            return response["status"], response["body"]
        assert list(response["body"]) == ["token"]
        return 200, jwt.decode(response["body"]["token"], SECRET, algorithms=["HS256"])

    def conversations(self, channels: Any, **headers: Any) -> Any:
        """Return the conversations in user 5's token for these channels, or the status if it is not 200."""
        status, claims = self.auth(channels, **(headers or {"User": 5}))
        return claims["conversations"] if status == 200 else status


WITH_SECRET = f'CHATWS_SECRET="{SECRET}"\n'


@contextmanager
def laravel(directory: Path, callbacks: str | None = None, env: str = WITH_SECRET) -> Iterator[Laravel]:
    """Start the application.

    :param callbacks: the text of routes/channels.php; None: that of php/README.md.
    :param env: the text of `.env`.
    """
    if callbacks is None:
        channels = snippet("php", "Broadcast::channel(")
    else:
        channels = f"use Illuminate\\Support\\Facades\\Broadcast;\n{callbacks}"
    (directory / "channels.php").write_text(f"<?php\n{channels}")
    (directory / ".env").write_text(env)
    program = find_program("php-cli")
    assert program is not None
    process = subprocess.Popen(
        [program, str(SCRIPTS / "laravel.php"), str(directory)],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Laravel(directory, process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


# --- POST /broadcasting/auth


def test_token_for_channels_names_the_conversations_that_the_callbacks_allow(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    """User 5 has the conversations 456 and 457, user 6 has 458. 999 and `c-1` do not exist."""
    server = chatws_server("--auth", "token", CHATWS_SECRET=SECRET)
    with laravel(tmp_path) as app:
        wanted = ["private-conversation.456", "conversation.457", "conversation.458", "conversation.999"]
        response = app.step(auth={"channel_name": [*wanted, "conversation.c-1", "nothing"]}, headers={"User": 5})
        with server.browser() as browser:
            assert browser.auth(5, token=response["body"]["token"])["user_id"] == 5
            browser.subscribe(456)
            browser.subscribe(457)
            for other in (458, 999, "c-1"):
                browser.send({"type": "subscribe", "conversation_id": other})
                assert browser.expect("error")["data"]["code"] == "forbidden"
        assert app.conversations([*wanted, "presence-conversation.456"]) == ["456", "457"]
        assert app.conversations(wanted, User=6) == ["458"]


def test_channel_below_a_conversation_does_not_grant_the_conversation(tmp_path: Path) -> None:
    """Laravel 8.83 calls the callback of `conversation.{id}` for it too."""
    with laravel(tmp_path) as app:
        assert app.conversations(["conversation.456.agents", "conversation.457"]) == ["457"]
        assert app.auth("conversation.456.agents", User=5) == (403, None)


def test_token_for_one_channel_of_echo_names_its_conversation(tmp_path: Path) -> None:
    with laravel(tmp_path) as app:
        status, claims = app.auth("private-conversation.456", User=5)
        assert (status, claims["sub"], claims["conversations"]) == (200, "5", ["456"])
        assert claims["exp"] - claims["iat"] == 300


@pytest.mark.parametrize(
    "channels",
    [
        "private-conversation.458",
        ["conversation.458", "conversation.999"],
        "orders.7",
        "everyone",
        "conversations.456",
        [5, None, ["conversation.456"]],
        "conversation." + "4" * 129,
    ],
)
def test_auth_with_no_allowed_channel_returns_403(tmp_path: Path, channels: Any) -> None:
    with laravel(tmp_path) as app:
        assert app.auth(channels, User=5) == (403, None)


@pytest.mark.parametrize("channels", [None, "conversation.456", ["conversation.456"]])
def test_auth_without_a_user_returns_403_and_calls_no_callback(tmp_path: Path, channels: Any) -> None:
    callbacks = "Broadcast::channel('conversation.{id}', fn ($user) => throw new LogicException('asked'));"
    with laravel(tmp_path, callbacks) as app:
        assert app.auth(channels) == (403, None)
        assert app.auth(channels, User=77) == (403, None), "there is no such user"


def test_auth_without_channels_returns_a_token_without_conversations(tmp_path: Path) -> None:
    with laravel(tmp_path) as app:
        for channels in (None, "", []):
            assert app.conversations(channels) == []


def test_auth_without_conversation_callbacks_omits_the_claim(tmp_path: Path) -> None:
    callbacks = "Broadcast::channel('App.Models.User.{id}', fn ($user, $id) => $user->id === (int) $id);"
    with laravel(tmp_path, callbacks) as app:
        status, claims = app.auth(User=5)
        assert status == 200
        assert "conversations" not in claims
        assert app.conversations(["private-App.Models.User.5", "conversation.456"]) == []
        assert app.auth("private-App.Models.User.6", User=5) == (403, None)


@pytest.mark.parametrize(
    ("result", "allowed"),
    [
        ("true", True),
        ("['id' => $user->id, 'name' => 'Zoë']", True),  # the data of a presence channel
        ("1", True),
        ("false", False),
        ("null", False),
        ("[]", False),
        ("0", False),
        ("abort(403)", False),
        ("abort(404)", False),
        ("\\App\\Models\\Conversation::findOrFail(999)", False),
        ("throw new Illuminate\\Auth\\Access\\AuthorizationException()", False),
    ],
)
def test_callback_result_decides_only_on_its_channel(tmp_path: Path, result: str, allowed: bool) -> None:
    callbacks = f"""
        function abort(int $status): never {{
            throw new Symfony\\Component\\HttpKernel\\Exception\\HttpException($status);
        }}
        Broadcast::channel('conversation.{{id}}', fn ($user, $id) => $id === '1' ? ({result}) : true);
    """
    with laravel(tmp_path, callbacks) as app:
        assert app.conversations(["presence-conversation.1", "conversations.2", "conversation.3"]) == (
            ["1", "3"] if allowed else ["3"]
        )


def test_callback_that_throws_another_exception_fails_the_request(tmp_path: Path) -> None:
    callbacks = """
        use Symfony\\Component\\HttpKernel\\Exception\\HttpException;
        Broadcast::channel('conversation.{id}', fn ($user, $id) => throw new RuntimeException('no database'));
        Broadcast::channel('user.{id}', fn () => throw new HttpException(503));
    """
    with laravel(tmp_path, callbacks) as app:
        assert app.auth(["conversation.456"], User=5) == (500, "no database")
        assert app.auth(["user.5"], User=5) == (503, None)


def test_channel_guards_select_the_user_and_ids_of_two_guards_stay_apart(tmp_path: Path) -> None:
    callbacks = """
        Broadcast::channel('conversation.{id}', fn (App\\Models\\User $user) => true);
        Broadcast::channel('conversations.{id}', fn (App\\Models\\Customer $user) => true, ['guards' => ['customer']]);
        Broadcast::channel('user.{id}', fn ($user) => true, ['guards' => ['customer', 'web']]);
    """
    with laravel(tmp_path, callbacks) as app:
        assert app.conversations(["conversation.1", "conversations.2"], User=5) == ["1"]
        assert app.conversations(["conversation.1", "conversations.2"], Customer=6) == ["2"]
        assert app.auth(["conversation.1", "conversations.2"], Customer=6)[1]["sub"] == "6"
        both = {"User": 5, "Customer": 5}
        assert app.conversations(["conversation.1", "conversations.2"], **both) == ["1"], "customer 5 is not user 5"
        assert app.conversations(["conversations.2", "conversation.1"], **both) == ["2"]
        assert app.conversations(["user.5", "conversation.1"], User=5) == ["1"]


def test_channel_class_with_explicit_binding_works_as_with_other_drivers(tmp_path: Path) -> None:
    callbacks = """
        final class ConversationChannel {
            public function join(App\\Models\\User $user, App\\Models\\Conversation $talk): bool {
                return $talk->user_id === $user->id;
            }
        }
        $app['router']->model('talk', App\\Models\\Conversation::class);
        Broadcast::channel('conversation.{talk}', ConversationChannel::class);
    """
    with laravel(tmp_path, callbacks) as app:
        assert app.conversations([f"conversation.{number}" for number in (456, 458, 999)]) == ["456"]


def test_user_identifier_that_is_an_object_becomes_text_in_the_token(tmp_path: Path) -> None:
    callbacks = """
        final class Uuid {
            public function __toString(): string { return '0190163d-8694-739b-aea5-966c26f8ad91'; }
        }
        final class UuidUser extends App\\Models\\User {
            public function getAuthIdentifierForBroadcasting(): Uuid { return new Uuid(); }
        }
        $app['auth']->viaRequest('header', fn () => new UuidUser());
        Broadcast::channel('conversation.{id}', fn (UuidUser $user) => true);
    """
    with laravel(tmp_path, callbacks) as app:
        status, claims = app.auth(["conversation.1", "conversation.2"])
        assert (status, claims["sub"]) == (200, "0190163d-8694-739b-aea5-966c26f8ad91")
        assert claims["conversations"] == ["1", "2"]


def test_auth_without_a_secret_returns_403_and_is_logged(tmp_path: Path) -> None:
    with laravel(tmp_path, env="") as app:
        assert app.auth("conversation.456", User=5) == (403, None)
        assert "no token: no secret is configured" in (tmp_path / "laravel.log").read_text()


@needs("chromium")
def test_page_of_the_readme_receives_its_allowed_conversations(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Run the page's code in Chromium. The application answers its token requests."""
    server = chatws_server("--auth", "token", CHATWS_SECRET=SECRET)
    url = f"ws://127.0.0.1:{server.port}/ws"
    code = snippet("js", "fetchToken").replace("{ token: fetchToken }", f"{{ token: fetchToken, url: '{url}' }}")
    library = "/assets/js/websocket-client.js"
    with laravel(tmp_path) as app, open_browser() as chromium, open_page(chromium, forgive="favicon|404") as page:
        requests: list[Any] = []

        def respond(route: Any) -> None:
            requests.append(json.loads(route.request.post_data))
            response = app.step(auth=requests[-1], headers={"User": 5})
            route.fulfill(status=response["status"], content_type="application/json", body=json.dumps(response["body"]))

        page.route("**/broadcasting/auth", respond)
        page.goto(f"http://127.0.0.1:{server.port}{library}")  # any page of that origin
        page.add_script_tag(url=library)
        page.add_script_tag(content=code)
        with server.backend() as backend:

            def subscribers(conversation: int) -> int:
                page.evaluate("0")  # lets Playwright answer the page's requests
                event = {"conversation_id": conversation, "message": {"id": 1}}
                count: int = backend.push("new_message", event)["delivered"]
                return count

            until(lambda: subscribers(456) == 1, "the page to subscribe")
            until(lambda: subscribers(457) == 1, "the page to subscribe to the other conversation")
            page.evaluate("wsClient.on('error', ({ code }) => { document.title = code; })")
            page.evaluate("openConversation(458)")
            page.wait_for_function("document.title === 'forbidden'")
            assert subscribers(458) == 0
            assert subscribers(456) == 1, "the new token still has the others"
        names = ["conversation.456", "conversation.457"]
        # the conversation may be newer than the token, so the library asks once more before it reports `forbidden`
    more = [*names, "conversation.458"]
    assert [request["channel_name"] for request in requests] == [names, more, more]


def test_env_of_the_readme_selects_the_connection(tmp_path: Path) -> None:
    secret = snippet("ini", "BROADCAST_CONNECTION=").replace("CHATWS_SECRET=…", WITH_SECRET)
    with laravel(tmp_path, env=secret) as app:
        assert app.conversations("private-conversation.456") == ["456"]


# --- Events


def test_broadcast_event_reaches_the_audiences_of_its_channels(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = chatws_server("--presence-grace", "0")
    with (
        laravel(tmp_path, env=f"CHATWS_PUSH_ADDRESS='127.0.0.1:{server.push_port}'\n") as app,
        server.agent(5) as five,
        server.agent(6) as six,
        server.agent(7, 456) as seven,
        server.agent(8, "c-1") as eight,
    ):
        channels = [
            ["PrivateChannel", "conversations.456"],
            ["PublicChannel", "everyone"],
            ["PrivateChannel", "App.Models.User.5"],
            ["PublicChannel", "users.6"],
        ]
        app.step(event="OrderPaid", order=77, channels=channels)
        app.step(event="OrderShipped", order=77, channels=[["PresenceChannel", "conversation.c-1"]])
        app.step(event="OrderShipped", order=78, channels=[["PublicChannel", "orders"]])

        def seen(browser: Any) -> list[tuple[str, object]]:
            return [(event["event"], event["data"]) for event in browser.settle() if "rder" in event["event"]]

        paid = ("App.Events.OrderPaid", {"order": 77})
        assert seen(five) == [paid, paid], "once as one of everyone, once by id"
        assert seen(six) == [paid, paid]
        assert seen(seven) == [paid, paid]
        assert seen(eight) == [paid, ("order.shipped", {"number": "77"})]
    (line,) = (tmp_path / "laravel.log").read_text().splitlines()
    assert "chatws: order.shipped was rejected: bad_message" in line


def test_broadcast_event_without_a_server_is_spooled(tmp_path: Path) -> None:
    with laravel(tmp_path, env=f"CHATWS_PUSH_ADDRESS=127.0.0.1:{free_port()}\n") as app:
        app.step(event="OrderPaid", order=77, channels=[["PrivateChannel", "user.5"]])
    assert "not delivered: Connection refused" in (tmp_path / "laravel.log").read_text()
    (spooled,) = (tmp_path / "storage/chatws").glob("*.json")
    assert json.loads(spooled.read_text())["to"] == {"user_ids": ["5"]}
