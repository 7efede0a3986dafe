"""Test the PHP helper with the PHP settings of shops: php.ini of hosting companies, `.env` files, PHP-FPM."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.nginx import NginxWith
from tests.e2e.php import PHP_DIRECTORY, SCRIPTS, FakePushApi, Php, run_php
from tests.e2e.process import WebServer, clean_environment, free_port
from tests.e2e.wire import DEADLINE
from tests.requirements import find_library, needs

pytestmark = needs("php-cli")

GUIDE = PHP_DIRECTORY.parent / "docs/pt-BR/WEBSOCKET.md"
SECRET = "0123456789abcdef0123456789abcdef"


# --- disable_functions


@pytest.mark.parametrize(
    "function", ["getenv", "getmypid", "chmod", "usleep", "stream_select", "ini_set", "error_log", "putenv,fsockopen"]
)
def test_optional_function_disabled_in_php_ini_is_not_needed(tmp_path: Path, function: str) -> None:
    def respond(line: dict[str, Any]) -> bytes:
        if not kept and line.get("event") == "first":
            kept.append(line)
            raise EOFError  # causes a retry after its pause
        return json.dumps({"ok": True, "id": line["id"]}).encode() + b"\n"

    kept: list[dict[str, Any]] = []
    ini = (f"disable_functions={function}", "error_log=/dev/null")
    with FakePushApi(respond) as port:
        environment = {"CHATWS_PUSH_ADDRESS": port.address, "CHATWS_SECRET": SECRET}
        with Php(ini=ini, environment=environment, spool_dir=str(tmp_path), pause_ms=0) as php:
            assert php.notifyUser(5, "first", {"price": 0.1}) is True, php.log
            assert php.token(5).count(".") == 2
            port.close()
            assert php.notifyUser(5, "second", {}) is False
            assert "Connection refused" in php.log[-1]
            assert php.log[-1].endswith("; spooled")
        assert len(list(tmp_path.glob("*.json"))) == 1


@pytest.mark.parametrize("function", ["stream_socket_client", "stream_set_blocking"])
def test_required_function_disabled_in_php_ini_is_named_and_the_line_spooled(tmp_path: Path, function: str) -> None:
    with (
        FakePushApi() as port,
        Php(ini=(f"disable_functions={function}",), address=port.address, spool_dir=str(tmp_path)) as php,
    ):
        assert php.notifyUser(5, "note", {}) is False
        sentence = f"note not delivered: php.ini disables {function}() (disable_functions)"
        assert php.log[0].startswith(f"chatws: {sentence}")
        assert php.log[0].endswith("; spooled")
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_unreadable_spool_does_not_stop_new_lines(tmp_path: Path) -> None:
    (tmp_path / "1700000000000000-000000000000.json").write_text('{"event":"old","id":"a","ack":true,"data":{}}\n')
    with (
        FakePushApi() as port,
        Php(ini=("disable_functions=flock",), address=port.address, spool_dir=str(tmp_path)) as php,
    ):
        assert php.notifyUser(5, "new", {}) is True
        assert php.log == ["chatws: cannot read the spool: php.ini disables flock() (disable_functions)"]
        assert [line["event"] for line in port.lines] == ["new"]


# --- Other settings of php.ini


def test_path_outside_open_basedir_is_logged(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    ini = (f"open_basedir={PHP_DIRECTORY.parent}",)
    with FakePushApi() as port:
        settings = {"secret_file": str(secret), "spool_dir": str(tmp_path / "spool")}
        with Php(ini=ini, address=f"{port.address},127.0.0.1:{free_port()}", **settings) as php:
            assert php.notifyUser(5, "note", {}) is True
            assert php.log == [f"chatws: secret_file: cannot read {secret}, or it is empty"]
        with Php(ini=ini, address=f"127.0.0.1:{free_port()}", spool_dir=str(tmp_path / "spool")) as php:
            assert php.notifyUser(5, "note", {}) is False
            assert "1 not spooled: cannot create" in php.log[0]
            assert "open_basedir" in php.log[0]


@pytest.mark.parametrize(
    "ini", ["allow_url_fopen=0", "precision=5", "serialize_precision=5", "default_socket_timeout=0", "memory_limit=16M"]
)
def test_php_ini_setting_does_not_change_the_wire(ini: str) -> None:
    data = {"price": 1234.5678, "whole": 2.0, "small": 1e-7}
    with FakePushApi() as port, Php(ini=(ini,), address=port.address) as php:
        assert php.notifyUser(5, "note", data) is True, php.log
        assert port.lines[0]["data"] == data


# --- Data


def test_object_in_the_data_is_encoded_by_json_encode_or_logged() -> None:
    """A proxy object of an ORM loads its row when it is encoded, which may fail."""
    code = """
        class Customer implements JsonSerializable {
            public function __construct(private string $name) {}
            public function jsonSerialize(): mixed { return ['name' => $this->name]; }
        }
        final class CustomerProxy extends Customer {
            public function __construct(private ?Closure $load) {}
            public function jsonSerialize(): mixed { return ($this->load)()->jsonSerialize(); }
        }
        $chat->notifyUser(5, 'note', ['customer' => new CustomerProxy(fn () => new Customer("Zo\\xeb"))]);
        echo $chat->lastError() ?? 'sent', "\\n";
        $chat->notifyUser(5, 'note', ['customer' => new CustomerProxy(fn () => throw new PDOException('gone away'))]);
        echo $chat->lastError() ?? 'sent', "\\n";
        $chat->notifyUser(5, "caf\\xe9", ["caf\\xe9" => 1.5]);
        echo $chat->lastError() ?? 'sent', "\\n";
    """
    with FakePushApi() as port:
        start = f"require '{PHP_DIRECTORY}/autoload.php'; $chat = new Chatws\\Client();"
        environment = {"CHATWS_PUSH_ADDRESS": port.address}
        written = run_php("-d", "error_log=/dev/null", "-r", start + code, environment=environment).splitlines()
        assert written == ["sent", "note not sent: gone away", "sent"]
        assert [line["data"] for line in port.lines] == [{"customer": {"name": "Zo\ufffd"}}, {"caf\ufffd": 1.5}]
        assert port.lines[1]["event"] == "caf\ufffd"


# --- .env


@pytest.mark.parametrize("form", ['"{}"', "'{}'", " {} ", "{}\r", '"{}"\r'])
def test_value_with_quotation_marks_of_an_env_file_is_accepted(tmp_path: Path, form: str) -> None:
    with FakePushApi() as port:
        values = {"ADDRESS": port.address, "BUDGET_MS": "9000", "PAUSE_MS": "0"}
        environment = {f"CHATWS_PUSH_{name}": form.format(value) for name, value in values.items()}
        with Php(environment={**environment, "CHATWS_SPOOL_DIR": form.format(tmp_path)}) as php:
            assert php.ping() is True, php.log
            assert php.log == []
            port.close()
            assert php.notifyUser(5, "note", {}) is False
        assert len(list(tmp_path.glob("*.json"))) == 1


def test_secret_variable_has_the_same_meaning_as_for_the_server(chatws_server: Callable[..., Server]) -> None:
    """The server removes white space and leaves quotation marks."""
    for value, problems in ((f" {SECRET}\r\n", 0), (f'"{SECRET}"', 1)):
        environment = {"CHATWS_SECRET": value}
        server = chatws_server("--auth", "token", **environment)
        with Php(environment=environment) as php, server.browser() as browser:
            assert browser.auth(5, token=php.token(5))["user_id"] == 5
        with Php(environment={**environment, "CHATWS_PUSH_ADDRESS": f"127.0.0.1:{server.push_port}"}) as php:
            assert php.ping() is True
            sentence = "chatws: CHATWS_SECRET is in quotation marks, which count as part of the secret"
            assert php.log == [sentence] * problems
        server.stop()


@pytest.mark.parametrize("directory", ["spool", "./spool", "storage/chatws", '"/var/spool/chatws"'])
def test_relative_spool_directory_is_rejected(tmp_path: Path, directory: str) -> None:
    """Web servers deliver the files in the directory of a script, and the spool holds messages."""
    code = f"""
        require '{PHP_DIRECTORY}/autoload.php';
        chdir('{tmp_path}');
        $logger = function ($level, $message) {{ echo "$message\\n"; }};
        $settings = ['spool_dir' => '{directory}', 'address' => '127.0.0.1:{free_port()}', 'logger' => $logger];
        (new Chatws\\Client(Chatws\\Config::fromArray($settings)))->notifyUser(5, 'note', []);
    """
    first, second = run_php("-r", code).splitlines()
    assert first == f'chatws: spool_dir must be an absolute path; "{directory}" is not used as a spool'
    assert second.startswith("chatws: note not delivered: Connection refused")
    assert "spooled" not in second
    assert list(tmp_path.iterdir()) == []


# --- PHP-FPM


class PhpFpm(WebServer):
    """Run PHP-FPM with one pool on a TCP port.

    :param pool: more lines for the pool's configuration.
    """

    def __init__(self, directory: Path, pool: str, **environment: str) -> None:
        super().__init__(directory, clean_environment(**environment), log="fpm.out")
        user = "user = root\ngroup = root\n" if os.geteuid() == 0 else ""
        (directory / "fpm.conf").write_text(
            f"[global]\nerror_log = {directory}/fpm.log\n"
            f"[shop]\n{user}listen = 127.0.0.1:{self.port}\npm = static\npm.max_children = 2\n{pool}\n"
        )

    def command(self) -> list[str]:
        program = find_library("php-fpm")
        assert program is not None
        root = ["--allow-to-run-as-root"] if os.geteuid() == 0 else []
        return [program, "--nodaemonize", *root, "--fpm-config", str(self.directory / "fpm.conf")]


@needs("php-fpm")
@needs("nginx")
def test_pool_variable_under_php_fpm_is_used(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    """The line is that of the Portuguese guide. PHP-FPM clears its own environment."""
    server = chatws_server()
    (line,) = re.findall(r"`(env\[CHATWS_PUSH_ADDRESS\] = 127\.0\.0\.1:8081)`", GUIDE.read_text(encoding="utf-8"))
    pool = line.replace("8081", str(server.push_port))
    for name in ("fpm", "nginx"):
        (tmp_path / name).mkdir()
    with PhpFpm(tmp_path / "fpm", pool, CHATWS_PUSH_ADDRESS=f"127.0.0.1:{free_port()}") as fpm:
        location = (
            "location / { include /etc/nginx/fastcgi_params; "
            f"fastcgi_param SCRIPT_FILENAME {SCRIPTS}/request.php; fastcgi_pass 127.0.0.1:{fpm.port}; }}"
        )
        with NginxWith(tmp_path / "nginx", location) as nginx, server.agent(5, 456) as browser:
            for _ in range(3):
                with urllib.request.urlopen(nginx.url, timeout=DEADLINE) as page:
                    response = json.load(page)
                assert (response["sapi"], response["results"]) == ("fpm-fcgi", [True, True, True])
            assert len([event for event in browser.settle() if event["event"] == "new_message"]) == 3
