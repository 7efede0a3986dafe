"""The HTTP API for backends with real clients: curl, PHP and schemathesis (docs/protocol.md §7)."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.certificates import Authority
from tests.e2e.conftest import Server
from tests.e2e.php import run_php
from tests.e2e.process import free_port
from tests.e2e.wire import DEADLINE, until
from tests.requirements import find_program, needs

Start = Callable[..., Server]
OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"
SECRET = "a-push-secret-of-some-length"
PUBLISH = {"event": "new_message", "data": {"conversation_id": 456, "message": {"id": 9}}}
JSON = "Content-Type: application/json"
BEARER = f"Authorization: Bearer {SECRET}"


class ApiServer(NamedTuple):
    """A server with the HTTP API on `port`, and a push secret."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/push"


@pytest.fixture
def start_api(chatws_server: Start, tmp_path: Path) -> Callable[..., ApiServer]:
    def start(*arguments: str) -> ApiServer:
        secret = tmp_path / "push-secret"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        port = free_port()
        ports = [] if "--api-listen" in arguments else ["--api-port", str(port)]
        server = chatws_server("--auth", "trust", "--push-secret-file", str(secret), *ports, *arguments)
        return ApiServer(server, port)

    return start


@pytest.fixture
def api(start_api: Callable[..., ApiServer]) -> ApiServer:
    return start_api()


class Curl(NamedTuple):
    """What curl has received: the statuses, 100 included, the last head, and the last body."""

    statuses: list[int]
    head: str
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def curl(*arguments: str, body: bytes = b"") -> Curl:
    """Run curl with `body` as its standard input. It must get a response."""
    program = find_program("curl")
    assert program is not None
    done = subprocess.run(
        [program, "-sS", "-i", "--noproxy", "*", "--max-time", str(DEADLINE), *arguments],
        input=body, capture_output=True, check=False, timeout=2 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *heads, text = done.stdout.decode().replace("\r\n", "\n").split("\n\n", done.stdout.count(b"HTTP/1.1 "))
    return Curl([int(head.split()[1]) for head in heads], heads[-1], text)


def post(url: str, body: object, *arguments: str) -> Curl:
    """POST `body` as JSON with the secret."""
    return curl("-H", BEARER, "-H", JSON, "--data-binary", "@-", *arguments, url, body=json.dumps(body).encode())


@needs("curl")
def test_curl_publishes_and_the_browser_gets_the_event(api: ApiServer) -> None:
    browser = api.server.agent(1, 456)
    answer = post(api.url, PUBLISH)
    assert answer.statuses == [200]
    assert answer.json["delivered"] == 1
    assert browser.expect("new_message")["data"] == PUBLISH["data"]
    assert answer.json["event_id"]


@needs("curl")
def test_curl_without_the_json_header_gets_an_error_that_names_it(api: ApiServer) -> None:
    answer = curl("-H", BEARER, "-d", json.dumps(PUBLISH), api.url)
    assert answer.statuses == [415]
    assert "Content-Type must be application/json" in answer.json["message"]


@needs("curl")
@pytest.mark.parametrize(
    ("version", "framing"),
    [("--http1.0", "Content-Length"), ("--http1.1", "Content-Length"), ("--http1.1", "chunked")],
)
def test_curl_with_a_large_body_and_a_wrong_secret_sees_the_status(api: ApiServer, version: str, framing: str) -> None:
    more = ["-H", "Transfer-Encoding: chunked"] if framing == "chunked" else []
    large = b" " * 10_000_000
    for expect in (["-H", "Expect: 100-continue"], ["-H", "Expect:"]):
        arguments = [version, "-H", JSON, *more, *expect, "--data-binary", "@-", api.url]
        assert curl("-H", "Authorization: Bearer wrong", *arguments, body=large).statuses == [401]
        assert curl("-H", BEARER, *arguments, body=large).statuses[-1] == 413


@needs("curl")
def test_curl_with_a_gzip_bomb_sees_413(api: ApiServer) -> None:
    bomb = gzip.compress(b" " * 300_000_000)
    assert len(bomb) < 1024 * 1024
    arguments = ["-H", BEARER, "-H", JSON, "-H", "Content-Encoding: gzip", "--data-binary", "@-", api.url]
    assert curl(*arguments, body=bomb).statuses[-1] == 413
    assert curl(*arguments, body=gzip.compress(json.dumps([PUBLISH] * 3).encode())).json[2]["ok"]


def test_chunked_body_without_an_end_is_answered_and_closed(api: ApiServer) -> None:
    with socket.create_connection(("127.0.0.1", api.port), DEADLINE) as client:
        head = f"POST /push HTTP/1.1\r\nHost: x\r\n{BEARER}\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(17):
            client.sendall(chunk)
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")
        client.settimeout(DEADLINE)
        while client.recv(65536):
            pass


@needs("php-cli")
@pytest.mark.parametrize("size", [0, 10_000_000])
def test_php_stream_with_a_wrong_secret_sees_the_status(api: ApiServer, tmp_path: Path, size: int) -> None:
    script = tmp_path / "post.php"
    script.write_text(r"""<?php
[, $url, $secret, $size] = $argv;
$body = $size ? str_repeat(' ', (int) $size) : '{"op":"ping"}';
foreach (['1.0', '1.1'] as $version) {
    $context = stream_context_create(['http' => [
        'method' => 'POST', 'protocol_version' => $version, 'ignore_errors' => true, 'content' => $body,
        'header' => ["Authorization: Bearer $secret", 'Content-Type: application/json', 'Connection: close'],
    ]]);
    $answer = file_get_contents($url, false, $context);
    echo explode(' ', $http_response_header[0])[1], ' ', json_decode($answer)->code ?? 'ok', "\n";
}
""")
    assert run_php(str(script), api.url, "wrong", str(size)) == "401 bad_secret\n" * 2
    assert run_php(str(script), api.url, SECRET, str(size)) == ("413 line_too_long\n" if size else "200 ok\n") * 2


@needs("curl")
def test_request_of_a_web_page_is_rejected(api: ApiServer) -> None:
    assert post(api.url, PUBLISH, "-H", "Origin: http://localhost").statuses == [403]
    assert curl("-X", "OPTIONS", "-H", "Origin: http://localhost", api.url).statuses == [403]


def test_browsers_port_has_no_http_api(api: ApiServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.server.port, timeout=DEADLINE)
    connection.request("POST", "/push", b"{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status in (404, 405)
    connection.close()


def test_connection_is_kept_and_serves_many_requests(api: ApiServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=DEADLINE)
    connection.connect()
    sock = connection.sock
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/x-ndjson"}
    for number in range(100):
        lines = "".join(f'{{"op":"ping","id":{number * 10 + each}}}\n' for each in range(10))
        connection.request("POST", "/push", lines, headers)
        response = connection.getresponse()
        ids = [json.loads(line)["id"] for line in response.read().splitlines()]
        assert ids == list(range(number * 10, number * 10 + 10))
    assert connection.sock is sock
    connection.close()


@needs("curl")
def test_tls_and_unix_sockets_serve_the_api(start_api: Callable[..., ApiServer], tmp_path: Path) -> None:
    authority = Authority()
    signed = authority.issue()
    for name, content in (("key", signed.key), ("chain", signed.fullchain), ("root", authority.root)):
        (tmp_path / f"{name}.pem").write_bytes(content)
    port, path = free_port(), tmp_path / "api.sock"
    tls = f"ssl:{port}:privateKey={tmp_path}/key.pem:certKey={tmp_path}/chain.pem:interface=127.0.0.1"
    start_api("--api-listen", tls, "--api-listen", f"unix:{path}:mode=660")
    root = ["--cacert", f"{tmp_path}/root.pem"]
    url = f"https://localhost:{port}/push"
    assert post(url, PUBLISH, *root).statuses[-1] == 200
    large = ["-H", JSON, "-H", "Expect:", "--data-binary", "@-", *root, url]
    assert curl(*large, body=b" " * 10_000_000).statuses == [401]
    assert post("http://localhost/push", [], "--unix-socket", str(path)).body == "[]"


@needs("curl")
def test_workers_share_the_port_of_the_api(start_api: Callable[..., ApiServer]) -> None:
    api = start_api("--workers", "2")
    browser = api.server.agent(1, 456)
    for number in range(6):  # each by a connection of its own
        assert post(api.url, {**PUBLISH, "id": f"m{number}"}).statuses == [200]
    for _ in range(6):
        browser.expect("new_message")


def test_stop_answers_a_request_that_was_sent(api: ApiServer) -> None:
    with socket.create_connection(("127.0.0.1", api.port), DEADLINE) as idle:
        client = http.client.HTTPConnection("127.0.0.1", api.port, timeout=DEADLINE)
        body = json.dumps([PUBLISH] * 10_000)
        client.request("POST", "/push", body, {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"})
        api.server.stop()
        response = client.getresponse()
        assert (response.status, len(json.loads(response.read()))) == (200, 10_000)
        client.close()
        assert idle.recv(1) == b""


@needs("curl")
def test_metrics_count_responses_by_status(start_api: Callable[..., ApiServer]) -> None:
    metrics = free_port()
    api = start_api("--metrics-port", str(metrics))
    post(api.url, [])
    curl("-d", "{}", api.url)
    page = curl(f"http://127.0.0.1:{metrics}/metrics").body
    assert 'chatws_api_responses_total{status="200"} 1.0' in page
    assert 'chatws_api_responses_total{status="401"} 1.0' in page
    until(lambda: api.server.log.count("rejected a request to the HTTP API") == 1, "one line in the log")


def test_address_that_others_can_reach_needs_a_secret(chatws_server: Start) -> None:
    server = chatws_server("--auth", "trust")
    server.stop()
    server.arguments += ("--api-listen", f"tcp:{free_port()}")
    done = subprocess.run(
        [*server.command(), "--check"], env=server.environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "is reachable from other hosts: set --push-secret-file" in done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("backends", ["with a secret", "without"])
def test_schemathesis_finds_no_difference_to_the_openapi_document(
    start_api: Callable[..., ApiServer], chatws_server: Start, tmp_path: Path, backends: str
) -> None:
    if backends == "with a secret":
        api = start_api()
    else:
        port = free_port()
        api = ApiServer(chatws_server("--auth", "trust", "--api-port", str(port)), port)
    # A batch with invalid items is 200, and a valid event may lack an audience: both checks would call that a fault.
    excluded = "negative_data_rejection,positive_data_acceptance"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI), "--url", f"http://127.0.0.1:{api.port}"),
            *("-H", BEARER, "-n", "200", "--exclude-checks", excluded, "--no-color"),
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
