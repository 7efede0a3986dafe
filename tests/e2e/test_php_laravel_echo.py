"""Test the Laravel broadcaster with an app of Pusher's protocol: what Laravel Echo gets, and the signed HTTP API."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatws.pusher.signatures import parse_query, verify_channel_auth, verify_request
from tests.e2e.process import free_port
from tests.e2e.test_php_laravel import PACKAGES, WITH_SECRET, Laravel, laravel
from tests.requirements import needs

pytestmark = [needs("php-cli"), *(needs(package) for package in PACKAGES)]


@dataclass(frozen=True)
class _App:
    key: str = "shop-key"
    secret: bytes = b"shop-secret"


APP = _App()
SOCKET = "12.34"
CALLBACKS = """
    Broadcast::channel('orders.{id}', fn ($user, $id) => $id === '7');
    Broadcast::channel('room.{id}', fn ($user, $id) => $id === '1' ? ['name' => "Zoë/{$user->id}"] : null);
    Broadcast::channel('conversation.{id}', fn ($user, $id) => $id === '456');
"""


@dataclass
class RecordingApi:
    """An HTTP server that records requests, checks their signatures, and gives one response.

    :ivar requests: the decoded bodies of POST requests with a valid signature.
    """

    url: str
    status: int = 200
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def recording_api() -> Iterator[RecordingApi]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            path, _, query = self.path.partition("?")
            parameters = parse_query(query)
            # a failure appears as a dropped connection, which PHP reports
            verify_request(APP, method="POST", path=path, parameters=parameters, body=body, now=time.time())
            assert path == "/apps/42/events"
            assert parameters["body_md5"] == hashlib.md5(body).hexdigest()
            api.requests.append(json.loads(body))
            self.send_response(api.status)
            self.end_headers()
            self.wfile.write(b"{}" if api.status == 200 else b"the app is disabled")

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api = RecordingApi(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def env(url: str = "http://127.0.0.1:9") -> str:
    """Return `.env` with the variables of the README for Laravel Echo."""
    return (
        WITH_SECRET + f"CHATWS_PUSHER_APP_ID=42\nCHATWS_PUSHER_KEY={APP.key}\n"
        f"CHATWS_PUSHER_SECRET={APP.secret.decode()}\nCHATWS_PUSHER_URL={url}\n"
    )


def sign_in(app: Laravel, channel: object, user: int | None = 5, socket: object = SOCKET) -> tuple[int, Any]:
    """Send Echo's `POST /broadcasting/auth`. Return the status and the body."""
    response = app.step(
        auth={"channel_name": channel, "socket_id": socket}, headers={} if user is None else {"User": user}
    )
    return response["status"], response["body"]


# --- POST /broadcasting/auth


def test_auth_of_echo_for_an_allowed_private_channel_returns_its_signature(tmp_path: Path) -> None:
    with laravel(tmp_path, CALLBACKS, env()) as app:
        for channel in ("private-orders.7", "private-conversation.456"):
            status, body = sign_in(app, channel)
            assert (status, list(body)) == (200, ["auth"])
            assert verify_channel_auth(APP, body["auth"], SOCKET, channel)


def test_auth_of_echo_for_a_presence_channel_returns_the_callbacks_data_as_user_info(tmp_path: Path) -> None:
    with laravel(tmp_path, CALLBACKS, env()) as app:
        status, body = sign_in(app, "presence-room.1")
        assert status == 200
        assert json.loads(body["channel_data"]) == {"user_id": "5", "user_info": {"name": "Zoë/5"}}
        assert verify_channel_auth(APP, body["auth"], SOCKET, "presence-room.1", body["channel_data"])


@pytest.mark.parametrize(
    ("channel", "user"),
    [
        ("private-orders.8", 5),
        ("presence-room.2", 5),
        ("private-unknown", 5),
        ("private-orders.7", None),
        ("private-orders.7", 77),
        ("orders.7", 5),  # a public channel has no signature
        ("private-encrypted-orders.7", 5),
        ("private-conversation.456.agents", 5),
        ('private-orders.7:{"user_id":"1"}', 5),
        (["private-orders.7"], 5),
        ("", 5),
        (None, 5),
    ],
)
def test_auth_of_echo_for_a_channel_that_is_not_allowed_returns_403(
    tmp_path: Path, channel: object, user: int | None
) -> None:
    with laravel(tmp_path, CALLBACKS, env()) as app:
        assert sign_in(app, channel, user) == (403, None)


@pytest.mark.parametrize("socket", ["", "12", "1.2:presence-room.1", "1.2\n", 12.5, ["1.2"]])
def test_auth_of_echo_with_an_invalid_socket_id_returns_403(tmp_path: Path, socket: object) -> None:
    """A colon would make the signature valid for another text."""
    with laravel(tmp_path, CALLBACKS, env()) as app:
        assert sign_in(app, "private-orders.7", socket=socket) == (403, None)


def test_auth_of_the_client_library_beside_echo_still_returns_a_token(tmp_path: Path) -> None:
    with laravel(tmp_path, CALLBACKS, env()) as app:
        assert app.conversations(["private-conversation.456", "private-conversation.457"]) == ["456"]


def test_auth_with_a_socket_id_and_no_pusher_app_returns_a_token(tmp_path: Path) -> None:
    with laravel(tmp_path, CALLBACKS) as app:
        status, body = sign_in(app, "private-conversation.456")
        assert (status, list(body)) == (200, ["token"])


def test_incomplete_pusher_app_is_reported_with_the_missing_settings(tmp_path: Path) -> None:
    with laravel(tmp_path, "", WITH_SECRET + "CHATWS_PUSHER_KEY=k\n") as app:
        status, body = sign_in(app, "private-orders.7")
        assert status == 500
        assert "lacks app_id, secret in pusher" in body


# --- Events


def test_event_with_a_pusher_app_is_published_to_every_channel_by_its_own_name(tmp_path: Path) -> None:
    with recording_api() as api, laravel(tmp_path, "", env(api.url + "/")) as app:
        channels = [["PrivateChannel", "conversation.456"], ["PresenceChannel", "room.1"], ["PublicChannel", "news"]]
        assert app.step(event="OrderPaid", order=77, channels=channels) is True
        assert app.step(event="OrderShipped", order=78, channels=channels[2:]) is True
    paid, shipped = api.requests
    assert paid["name"] == "App\\Events\\OrderPaid"
    assert paid["channels"] == ["private-conversation.456", "presence-room.1", "news"]
    assert json.loads(paid["data"]) == {"order": 77}
    assert (shipped["name"], json.loads(shipped["data"])) == ("order.shipped", {"number": "78"})
    assert "socket_id" not in paid


def test_event_to_others_names_the_connection_of_the_request(tmp_path: Path) -> None:
    with recording_api() as api, laravel(tmp_path, "", env(api.url)) as app:
        assert app.step(event="OrderPaid", order=77, channels=[["PrivateChannel", "orders.7"]], **{"from": SOCKET})
    (request,) = api.requests
    assert request["socket_id"] == SOCKET
    assert "socket" not in json.loads(request["data"])


def test_event_to_more_than_100_channels_is_sent_in_several_requests(tmp_path: Path) -> None:
    with recording_api() as api, laravel(tmp_path, "", env(api.url)) as app:
        channels = [["PublicChannel", f"news.{number}"] for number in range(150)]
        assert app.step(event="OrderPaid", order=77, channels=[*channels, channels[0]]) is True
    assert [len(request["channels"]) for request in api.requests] == [100, 50]


def test_event_that_the_api_rejects_throws_for_the_queue_to_retry(tmp_path: Path) -> None:
    with recording_api() as api, laravel(tmp_path, "", env(api.url)) as app:
        api.status = 403
        error = app.step(event="OrderPaid", order=77, channels=[["PublicChannel", "news"]])
        assert error == "chatws rejected the event with status 403: the app is disabled"


def test_event_without_a_server_throws_and_names_no_signature(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with laravel(tmp_path, "", env(url)) as app:
        error = app.step(event="OrderPaid", order=77, channels=[["PublicChannel", "news"]])
    assert error.startswith(f"chatws is unreachable at {url}: ")
    assert "Connection refused" in error
    assert "auth_" not in error
    assert not (tmp_path / "storage").exists(), "nothing is spooled: the queue retries"


def test_event_for_an_encrypted_channel_is_not_sent_in_plain_text(tmp_path: Path) -> None:
    with recording_api() as api, laravel(tmp_path, "", env(api.url)) as app:
        error = app.step(event="OrderPaid", order=77, channels=[["PrivateChannel", "encrypted-orders"]])
        assert "cannot encrypt" in error
    assert api.requests == []
