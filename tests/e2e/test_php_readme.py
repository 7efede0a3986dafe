"""Run each code block of php/README.md and compare its names and settings with the code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt

from tests.e2e.conftest import Server
from tests.e2e.php import PHP_DIRECTORY, FakePushApi, run_php
from tests.e2e.process import clean_environment, free_port
from tests.requirements import find_program, needs

TEXT = (PHP_DIRECTORY / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
#: A text that identifies each block. Every block needs a test.
HERE = {
    "": ["CHATWS_PUSH_ADDRESS="],
    "json": ["repositories"],
    "php": ["autoload.php", "'maintenance'", "key:", "WebSocket::configure", "->token("],
}
#: Run by tests/e2e/test_secret_recipe.py.
RECIPE = {"sh": ["openssl rand"]}
#: Run by tests/e2e/test_php_laravel.py.
LARAVEL = {"js": ["fetchToken"], "php": ["Broadcast::channel("], "ini": ["BROADCAST_CONNECTION="]}

SECRET = "a secret of at least 32 bytes, this"


def block(language: str, mark: str) -> str:
    assert mark in HERE[language]
    (text,) = [text for kind, text in BLOCKS if kind == language and mark in text]
    return text


def run_snippet(directory: Path, text: str, **environment: str) -> str:
    """Run a snippet with both helpers loaded and a client in `$chat`."""
    script = directory / "snippet.php"
    script.write_text(
        f"<?php\nrequire '{PHP_DIRECTORY}/autoload.php';\nrequire '{PHP_DIRECTORY}/legacy/WebSocket.php';\n"
        f"$chat = new Chatws\\Client();\n{text}"
    )
    return run_php("-d", "display_errors=1", "-d", "error_reporting=-1", str(script), environment=environment)


def test_readme_blocks_are_all_run_by_a_test() -> None:
    marks = [
        (language, mark) for table in (HERE, RECIPE, LARAVEL) for language, texts in table.items() for mark in texts
    ]
    for language, text in BLOCKS:
        assert sum(kind == language and mark in text for kind, mark in marks) == 1, text
    assert len(marks) == len(BLOCKS)
    laravel = (Path(__file__).parent / "test_php_laravel.py").read_text()
    for language, texts in LARAVEL.items():
        for mark in texts:
            assert f'snippet("{language}", "{mark}")' in laravel


# --- Installation


@needs("composer")
@needs("php-cli")
def test_composer_install_of_the_readme_loads_the_library(tmp_path: Path) -> None:
    (tmp_path / "chatws").mkdir()
    (tmp_path / "chatws/php").symlink_to(PHP_DIRECTORY)
    shop = tmp_path / "shop"
    shop.mkdir()
    settings = json.loads(block("json", "repositories"))
    settings["repositories"].append({"packagist.org": False})  # no network
    (shop / "composer.json").write_text(json.dumps(settings))
    run_composer("install", directory=shop)
    code = f"require '{shop}/vendor/autoload.php'; echo (new Chatws\\Client())->token(5) === false ? 'loaded' : '?';"
    assert run_php("-d", "error_log=/dev/null", "-r", code) == "loaded"


@needs("composer")
@needs("php-cli")
def test_composer_json_is_valid(tmp_path: Path) -> None:
    (tmp_path / "composer.json").write_bytes((PHP_DIRECTORY / "composer.json").read_bytes())
    assert "composer.json is valid" in run_composer("validate", "--strict", directory=tmp_path)


def run_composer(*words: str, directory: Path) -> str:
    program = find_program("composer")
    assert program is not None
    home = directory / ".composer"
    done = subprocess.run(
        [program, "--no-interaction", "--no-ansi", *words],
        cwd=directory,
        env=clean_environment(COMPOSER_ALLOW_SUPERUSER="1", COMPOSER_HOME=str(home), COMPOSER_DISABLE_NETWORK="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- The other blocks


@needs("php-cli")
def test_first_snippet_publishes_a_message(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    program = find_program("php-cli")
    assert program is not None
    script = tmp_path / "first.php"
    text = block("php", "autoload.php")
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
        assert (done.returncode, done.stdout, done.stderr) == (0, "published\n", "")
        browser.expect("new_message", conversation_id=456)


@needs("php-cli")
def test_broadcast_snippets_reach_their_audiences(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server("--presence-grace", "0")
    with server.agent(5, 456) as five, server.agent(6, 456) as six, server.agent(7) as seven:
        address = f"127.0.0.1:{server.push_port}"
        assert run_snippet(tmp_path, block("php", "'maintenance'"), CHATWS_PUSH_ADDRESS=address) == ""

        def seen(browser: Any) -> list[str]:
            return [event["event"] for event in browser.settle() if event["event"] != "agent_status"]

        assert seen(five) == ["maintenance", "order_paid"]
        assert seen(six) == ["maintenance", "order_paid", "note"]
        assert seen(seven) == ["maintenance"]


@needs("php-cli")
def test_key_snippet_run_twice_delivers_one_event(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    server = chatws_server()
    code = "$message = ['id' => 9, 'conversation_id' => 456];\n" + block("php", "key:") * 2
    with server.agent(5, 456) as browser:
        assert run_snippet(tmp_path, code, CHATWS_PUSH_ADDRESS=f"127.0.0.1:{server.push_port}") == ""
        assert [event["event"] for event in browser.settle()] == ["new_message"]


@needs("php-cli")
def test_variable_with_several_nodes_reaches_the_second(tmp_path: Path) -> None:
    variable, _, value = block("", "CHATWS_PUSH_ADDRESS=").strip().partition("=")
    with FakePushApi() as node:
        addresses = value.replace("10.0.0.1:8081", f"127.0.0.1:{free_port()}").replace("10.0.0.2:8081", node.address)
        assert run_snippet(tmp_path, "var_dump($chat->ping());", **{variable: addresses}) == "bool(true)\n"
        assert len(node.lines) == 1


@needs("php-cli")
def test_legacy_helper_with_settings_uses_them(tmp_path: Path) -> None:
    code = f"""
        $logger = new class {{ public function warning(string $message): void {{ echo $message; }} }};
        {block("php", "WebSocket::configure").replace("/var/spool/chatws", str(tmp_path / "spool"))}
        WebSocket::notifyAgentStatus(5, 'away');
    """
    address = f"127.0.0.1:{free_port()}"
    written = run_snippet(tmp_path, code, CHATWS_PUSH_ADDRESS=address)
    assert written == f"chatws: agent_status not delivered: Connection refused ({address}); spooled"
    assert len(list((tmp_path / "spool").glob("*.json"))) == 1


@needs("php-cli")
def test_token_snippets_match_their_comments(tmp_path: Path) -> None:
    lines = block("php", "->token(").splitlines(keepends=True)
    code = "$userId = 5;\n" + "".join(f'{line} echo $token, "\\n";\n' for line in lines)
    written = run_snippet(tmp_path, code, CHATWS_SECRET=SECRET)
    first, second = (jwt.decode(token, SECRET, algorithms=["HS256"]) for token in written.split())
    assert (first["sub"], first["exp"] - first["iat"], first.get("conversations")) == ("5", 300, None)
    assert (second["sub"], second["exp"] - second["iat"], second["conversations"]) == ("5", 60, [456, 457])


# --- Names


def test_readme_lists_each_variable_and_setting() -> None:
    config = (PHP_DIRECTORY / "src" / "Config.php").read_text()
    variables = dict(re.findall(r"'(CHATWS_\w+)' => '(\w+)'", config))
    rows = dict(re.findall(r"^\| `(CHATWS_\w+)` \| `(\w+)` \|", TEXT, re.MULTILINE))
    assert rows == variables


def test_readme_lists_each_public_method() -> None:
    client = (PHP_DIRECTORY / "src" / "Client.php").read_text()
    methods = set(re.findall(r"public function (\w+)\(", client)) - {"__construct"}
    assert {name for name in methods if f"`{name}(" not in TEXT} == set()
