"""Signatures of webhooks: Python's `verify` and PHP's, which agree, and the receiver of `chatws webhook listen`."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from chatws.cli.output import Output
from chatws.cli.webhook import make_receiver
from chatws.clients.webhook import HEADER, sign, verify
from tests.requirements import needs

BODY = '{"events":[],"text":"olá"}'.encode()
NOW = 1_800_000_000
SIGNED = sign(BODY, [b"new", "old"], NOW)
PHP = Path(__file__).parents[1] / "php" / "autoload.php"

#: Body, header, secret, time, and whether the request is valid.
CASES: list[tuple[bytes, str | None, str | list[str], int, bool]] = [
    (BODY, SIGNED, "new", NOW, True),
    (BODY, SIGNED, "old", NOW, True),
    (BODY, SIGNED, ["other", "old"], NOW, True),
    (BODY, SIGNED.replace(",", ", "), "new", NOW, True),
    (BODY, SIGNED, "new", NOW + 120, True),
    (BODY, SIGNED, "new", NOW - 120, True),
    (BODY, SIGNED, "new", NOW + 300, True),
    (BODY, SIGNED, "new", NOW + 301, False),
    (BODY, SIGNED, "new", NOW - 301, False),
    (BODY, SIGNED, "other", NOW, False),
    (BODY, SIGNED, "", NOW, False),
    (BODY, SIGNED, [], NOW, False),
    (BODY + b" ", SIGNED, "new", NOW, False),
    (json.dumps(json.loads(BODY)).encode(), SIGNED, "new", NOW, False),
    (BODY, sign(BODY, [""], NOW), "", NOW, False),
    (BODY, sign(BODY, [], NOW), "new", NOW, False),
    (BODY, SIGNED.replace(f"t={NOW}", f"t={NOW + 1}"), "new", NOW, False),
    (BODY, None, "new", NOW, False),
    (BODY, "", "new", NOW, False),
    (BODY, "t=,v1=", "new", NOW, False),
    (BODY, "t=x,v1=00", "new", NOW, False),
    (BODY, "t=9999999999999999999999,v1=00", "new", NOW, False),
    (BODY, f"t={NOW},v1=é", "new", NOW, False),
    (BODY, f"v1={SIGNED.partition('v1=')[2]}", "new", NOW, False),
]


def test_header_has_the_documented_form() -> None:
    digest = "9f5d5bd0d20c1c52ddb9bd4a6b5a2c3e"
    assert sign(b"", [b"key"], 7.9).startswith("t=7,v1=")
    assert len(sign(b"", [b"key"], 7.9)) == len("t=7,v1=") + 2 * len(digest)
    assert SIGNED.count(",v1=") == 2


@pytest.mark.parametrize(("body", "header", "secret", "now", "valid"), CASES)
def test_request_is_valid_with_a_known_secret_and_a_recent_time(
    body: bytes, header: str | None, secret: str | list[str], now: int, valid: bool
) -> None:
    assert verify(body, header, secret, now=now) is valid


def test_present_time_is_the_default() -> None:
    assert verify(BODY, sign(BODY, ["new"], time.time()), "new")
    assert not verify(BODY, SIGNED.replace(str(NOW), "1000000000"), "new")


@needs("php-cli")
def test_php_decides_as_python() -> None:
    script = f"""
        require {str(PHP)!r};
        foreach (json_decode(stream_get_contents(STDIN), true) as [$body, $header, $secret, $now]) {{
            echo Chatws\\Webhook::verify($body, $header, $secret, 300, $now) ? 1 : 0;
        }}
        echo Chatws\\Webhook::verify('{{}}', 't=' . time() . ',v1=' . hash_hmac('sha256', time() . '.{{}}', 's'), 's');
    """
    cases = json.dumps([(body.decode(), header, secret, now) for body, header, secret, now, _ in CASES])
    done = subprocess.run(["php", "-r", script], input=cases.encode(), capture_output=True, timeout=60, check=True)
    assert done.stdout.decode() == "".join(str(int(valid)) for *_, valid in CASES) + "1", done.stderr


@pytest.mark.parametrize(
    ("body", "secret", "status", "line"),
    [
        (b'{"events":[{"event":"test"}]}', "s", 200, '1 event, signature valid, answered 200\n  {"event": "test"}\n'),
        (b'{"events":[]}', "x", 401, "wrong signature, answered 401\n"),
        (b"[]", "s", 400, "not a webhook, answered 400\n"),
    ],
)
def test_receiver_for_development_prints_events(body: bytes, secret: str, status: int, line: str) -> None:
    printed = io.StringIO()
    with make_receiver(0, ["s"], 200, Output(stdout=printed, stderr=io.StringIO())) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address: Any = server.server_address
        connection = http.client.HTTPConnection("127.0.0.1", address[1], timeout=60)
        connection.request("POST", "/", body, {HEADER: sign(body, [secret], time.time())})
        response = connection.getresponse()
        response.read()
        connection.close()
        thread.join()
    assert response.status == status
    assert printed.getvalue() == line
