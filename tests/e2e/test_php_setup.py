"""The PHP helper's surroundings: addresses, TLS, Composer, Laravel, and what its README says."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from tests.certificates import self_signed
from tests.e2e.conftest import Server
from tests.e2e.php import BOUND, PHP_DIRECTORY, SCRIPTS, FakePushPort, Php, run_php
from tests.e2e.process import free_port
from tests.requirements import find_program, needs

README = PHP_DIRECTORY / "README.md"
SOURCES = sorted([*PHP_DIRECTORY.rglob("*.php"), *SCRIPTS.rglob("*.php")])


def readme_snippets() -> list[str]:
    return re.findall(r"^```php\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


# --- addresses


@needs("php-cli")
def test_a_unix_socket_is_an_address(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "push.sock"
    server = chatws_server("--push-listen", f"unix:{path}:mode=600")
    with server.agent(1) as browser:
        for address in (f"unix:{path}", f"unix://{path}"):
            with Php(address=address) as php:
                assert php.notifyUser(1, "note", {"by": address}) is True
                assert browser.expect("note")["data"] == {"by": address}


@needs("php-cli")
def test_ipv6_is_an_address() -> None:
    try:
        port = FakePushPort(host="::1")
    except OSError:
        pytest.skip("no IPv6 on the loopback")
    with port, Php(address=port.address) as php:
        assert port.address.startswith("[::1]:")
        assert php.notifyUser(1, "note", {}) is True


@needs("php-cli")
def test_tls_is_checked_and_carries_big_messages(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    certificate = self_signed("chat.example")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    pem.write_bytes(certificate.certificate)
    key.write_bytes(certificate.key)
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    port = free_port()
    server = chatws_server(
        "--push-listen",
        f"ssl:{port}:privateKey={key}:certKey={pem}:interface=127.0.0.1",
        "--push-secret-file",
        str(secret),
    )
    settings = {"address": f"tls://127.0.0.1:{port}", "secret": "s3cret"}
    content = "ß漢" * 150_000
    with server.agent(1) as browser:
        with Php(tls_ca=str(pem), **settings) as php:
            assert php.notifyUser(1, "note", {"content": content}) is True, php.log
            assert browser.expect("note")["data"] == {"content": content}
            assert php.notifyUser(1, "note", {"content": "again"}) is True
            server.restart()
            assert php.ping() is True, "the dead connection was noticed"
        with Php(tls_ca=str(pem), tls_name="chat.example", **settings) as php:
            assert php.ping() is True
        with Php(tls_ca=str(pem), tls_name="evil.example", **settings) as php:
            assert php.ping() is False
            assert "did not match" in php.log[0]
        with Php(**settings) as php:
            assert php.ping() is False
            assert "certificate verify failed" in php.log[0]


@needs("php-cli")
def test_a_tls_handshake_that_stalls_costs_the_connect_time_out() -> None:
    with FakePushPort(read=False) as port, Php(address=f"tls://{port.address}", patient=False) as php:
        assert php.ping() is False
        assert php.log == ["chatws: ping not delivered: no answer in time"]
        assert php.milliseconds < BOUND


@needs("php-cli")
def test_a_ticket_opens_the_door_for_whom_it_names(chatws_server: Callable[..., Server]) -> None:
    environment = {"CHATWS_SECRET": "a secret of at least 32 bytes, this"}
    server = chatws_server("--auth", "ticket", **environment)
    with Php(helper=True, environment=environment) as php:
        with server.browser() as browser:
            assert browser.auth(123, token=php.ticket(123))["user_id"] == 123
            browser.subscribe(456)
        with server.browser() as browser:
            browser.auth(123, token=php.ticket(123, 60, [457]))
            browser.subscribe(457)
            browser.send({"type": "subscribe", "conversation_id": 456})
            assert browser.expect("error")["data"]["code"] == "forbidden"
        browser = server.browser()
        browser.send({"type": "auth", "user_id": 124, "token": php.ticket(123)})
        assert browser.expect_close()[0] == 4901
        browser = server.browser()
        browser.send({"type": "auth", "token": php.ticket(123, -600)})
        assert browser.expect_close()[0] == 4901


# --- the code as it stands


@needs("php-cli")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PHP_DIRECTORY.parent)))
def test_each_file_is_strict_and_parses(path: Path) -> None:
    assert "declare(strict_types=1);" in path.read_text()
    run_php("-l", str(path))


def test_composer_finds_each_class_where_it_stands() -> None:
    composer = json.loads((PHP_DIRECTORY / "composer.json").read_text())
    ((prefix, folder),) = composer["autoload"]["psr-4"].items()
    for path in sorted((PHP_DIRECTORY / folder).rglob("*.php")):
        name = prefix + str(path.relative_to(PHP_DIRECTORY / folder).with_suffix("")).replace("/", "\\")
        namespace, _, short = name.rpartition("\\")
        text = path.read_text()
        assert f"\nnamespace {namespace};\n" in text
        assert re.search(rf"^(final )?class {short}\b", text, re.MULTILINE), path
    assert "autoload-dev" not in composer
    assert set(composer["require"]) == {"php", "ext-hash", "ext-json"}, "no dependency"


def test_nothing_is_used_that_php_8_1_lacks() -> None:
    """The PHP at hand may be newer: these are what later ones brought and a hand slips into."""
    newer = re.compile(
        r"\breadonly class\b|\bjson_validate\b|\bconst (?:int|string|array|bool|float) \w|\biterator_apply\b"
        r"|\):\s*(?:true|false|null)\s*[;{]|#\[\\Override\]|\bmb_str_pad\b|\barray_(?:find|any|all)\("
    )
    for path in PHP_DIRECTORY.rglob("*.php"):
        assert not newer.search(path.read_text()), path


# --- Laravel


@needs("php-cli")
def test_laravel_broadcasts_by_its_channels(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server("--presence-grace", "0")
    with (
        server.agent(5) as five,
        server.agent(6) as six,
        server.agent(7, 456) as seven,
        server.agent(8, "c-1") as eight,
    ):
        written = json.loads(run_php(str(SCRIPTS / "laravel.php"), f"127.0.0.1:{server.push_port}"))

        def seen(browser: object) -> list[tuple[str, object]]:
            return [(one["event"], one["data"]) for one in browser.settle() if "rder" in one["event"]]  # type: ignore[attr-defined]

        paid = ("App.Events.OrderPaid", {"order": 77})
        assert seen(five) == [paid, paid], "as one of everyone, and by name"
        assert seen(six) == [paid, paid]
        assert seen(seven) == [paid, paid]
        assert seen(eight) == [paid, ("order.shipped", {})]
    assert len(written["log"]) == 1
    assert "order.shipped was refused: bad_message" in written["log"][0]
    assert written["refused"] is True
    claims = jwt.decode(written["auth"]["token"], "a secret of at least 32 bytes, this", algorithms=["HS256"])
    assert claims["sub"] == "5"


# --- README.md


def test_the_readme_names_each_variable_and_each_setting() -> None:
    config = (PHP_DIRECTORY / "src" / "Config.php").read_text()
    variables = dict(re.findall(r"'(CHATWS_\w+)' => '(\w+)'", config))
    rows = dict(re.findall(r"^\| `(CHATWS_\w+)` \| `(\w+)` \|", README.read_text(), re.MULTILINE))
    assert rows == variables


def test_the_readme_names_each_public_method() -> None:
    client = (PHP_DIRECTORY / "src" / "Client.php").read_text()
    methods = set(re.findall(r"public function (\w+)\(", client)) - {"__construct"}
    text = README.read_text()
    assert {one for one in methods if f"`{one}(" not in text} == set()


@needs("php-cli")
@pytest.mark.parametrize("number", range(len(readme_snippets())))
def test_each_snippet_of_the_readme_parses(number: int, tmp_path: Path) -> None:
    text = readme_snippets()[number]
    path = tmp_path / "snippet.php"
    path.write_text(text if text.startswith("<?php") else f"<?php\n{text}")
    run_php("-l", str(path))


@needs("php-cli")
def test_the_first_snippet_of_the_readme_works(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    program = find_program("php-cli")
    assert program is not None
    script = tmp_path / "first.php"
    text = readme_snippets()[0]
    assert "vendor/chatws/php/autoload.php" in text
    script.write_text("<?php\n" + text.replace("__DIR__ . '/vendor/chatws/php", f"'{PHP_DIRECTORY}"))
    with server.agent(1, 456) as browser:
        done = subprocess.run(
            [program, str(script)],
            env={"CHATWS_PUSH_ADDRESS": f"127.0.0.1:{server.push_port}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")
        browser.expect("new_message", conversation_id=456)
