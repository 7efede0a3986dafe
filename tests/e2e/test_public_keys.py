"""A real server with tokens that private keys have signed: keys at a URL and in a file, and their rotation."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.e2e.conftest import Server
from tests.test_auth_public_keys import ED25519, OTHER_RSA, RSA, jwk, public_pem

Start = Callable[..., Server]


def token(key: Any, algorithm: str, kid: str = "") -> str:
    headers = {"kid": kid} if kid else {}
    return jwt.encode({"sub": "5", "exp": time.time() + 60}, key, algorithm=algorithm, headers=headers)


def enter(server: Server, text: str) -> str:
    """Return `authenticated`, or the error's code."""
    with server.browser() as page:
        page.send({"type": "auth", "token": text})
        message = page.receive()
        return str(message["event"] if message["event"] == "authenticated" else message["data"]["code"])


class Provider:
    """An identity provider, which publishes `keys` at `url`."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.requests = 0
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests += 1
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_tokens_of_an_identity_provider_authenticate_with_one_request(chatws_server: Start, provider: Provider) -> None:
    server = chatws_server("--jwks-url", provider.url)
    # a provider that has no keys yet
    assert enter(server, token(RSA, "RS256", "a")) == "unavailable"
    provider.keys = [jwk(RSA, kid="a"), jwk(ED25519, kid="b")]
    server.restart()
    for key, algorithm, kid in ((RSA, "RS256", "a"), (ED25519, "EdDSA", "b")):
        assert enter(server, token(key, algorithm, kid)) == "authenticated"
    assert enter(server, token(OTHER_RSA, "RS256", "a")) == "auth_failed"
    assert enter(server, token("x" * 64, "HS256")) == "auth_failed"
    assert provider.requests == 2
    assert "2 keys are valid now" in server.log


def test_key_file_is_replaced_by_sighup(chatws_server: Start, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem(RSA))
    server = chatws_server("--token-key-file", str(path))
    assert enter(server, token(RSA, "RS256")) == "authenticated"
    assert enter(server, token(OTHER_RSA, "RS256")) == "auth_failed"
    path.write_bytes(public_pem(OTHER_RSA))
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("the public key of tokens has changed: 1 is valid now")
    assert enter(server, token(OTHER_RSA, "RS256")) == "authenticated"
    assert enter(server, token(RSA, "RS256")) == "auth_failed"
