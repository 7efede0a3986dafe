"""Test addresses, TLS and packaging of the PHP helper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.e2e.conftest import Server
from tests.e2e.php import BOUND, PHP_DIRECTORY, SCRIPTS, FakePushApi, Php, run_php
from tests.e2e.process import free_port
from tests.requirements import needs

SOURCES = sorted([*PHP_DIRECTORY.rglob("*.php"), *SCRIPTS.rglob("*.php")])


# --- Addresses


@needs("php-cli")
def test_unix_socket_address_is_accepted(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "push.sock"
    server = chatws_server("--push-listen", f"unix:{path}:mode=600")
    with server.agent(1) as browser:
        for address in (f"unix:{path}", f"unix://{path}"):
            with Php(address=address) as php:
                assert php.notifyUser(1, "note", {"by": address}) is True
                assert browser.expect("note")["data"] == {"by": address}


@needs("php-cli")
def test_ipv6_address_is_accepted() -> None:
    try:
        port = FakePushApi(host="::1")
    except OSError:
        pytest.skip("no IPv6 on the loopback")
    with port, Php(address=port.address) as php:
        assert port.address.startswith("[::1]:")
        assert php.notifyUser(1, "note", {}) is True


@needs("php-cli")
def test_tls_certificate_is_verified_and_large_messages_arrive(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
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
def test_stalled_tls_handshake_ends_at_the_connect_timeout() -> None:
    with FakePushApi(read=False) as port, Php(address=f"tls://{port.address}", patient=False) as php:
        assert php.ping() is False
        assert php.log == ["chatws: ping not delivered: no answer in time"]
        assert php.milliseconds < BOUND


@needs("php-cli")
def test_token_authenticates_only_its_user_and_conversations(chatws_server: Callable[..., Server]) -> None:
    environment = {"CHATWS_SECRET": "a secret of at least 32 bytes, this"}
    server = chatws_server("--auth", "token", **environment)
    with Php(helper=True, environment=environment) as php:
        with server.browser() as browser:
            assert browser.auth(123, token=php.token(123))["user_id"] == 123
            browser.subscribe(456)
        with server.browser() as browser:
            browser.auth(123, token=php.token(123, 60, [457]))
            browser.subscribe(457)
            browser.send({"type": "subscribe", "conversation_id": 456})
            assert browser.expect("error")["data"]["code"] == "forbidden"
        browser = server.browser()
        browser.send({"type": "auth", "user_id": 124, "token": php.token(123)})
        assert browser.expect_close()[0] == 4901
        browser = server.browser()
        browser.send({"type": "auth", "token": php.token(123, -600)})
        assert browser.expect_close()[0] == 4901


# --- Static checks


@needs("php-cli")
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PHP_DIRECTORY.parent)))
def test_php_file_is_strict_and_parses(path: Path) -> None:
    assert "declare(strict_types=1);" in path.read_text()
    run_php("-l", str(path))


def test_class_file_matches_psr_4() -> None:
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


def test_php_file_uses_no_syntax_newer_than_8_1() -> None:
    """Search for syntax and functions of later versions, because the installed PHP may be newer."""
    newer = re.compile(
        r"\breadonly class\b|\bjson_validate\b|\bconst (?:int|string|array|bool|float) \w|\biterator_apply\b"
        r"|\):\s*(?:true|false|null)\s*[;{]|#\[\\Override\]|\bmb_str_pad\b|\barray_(?:find|any|all)\("
    )
    paths = list(PHP_DIRECTORY.rglob("*.php"))
    assert PHP_DIRECTORY / "src" / "Client.php" in paths
    assert [path for path in paths if newer.search(path.read_text())] == []
