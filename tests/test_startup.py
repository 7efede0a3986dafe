"""Which settings go together, and what is refused before anything is opened."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatws.auth.secrets import load_secrets
from chatws.config.reload import push_secret
from chatws.config.schema import Config
from chatws.config.validate import (
    browser_endpoints,
    check,
    database_url,
    push_endpoints,
    read_secret_file,
    try_ports,
)
from chatws.errors import ConfigError
from tests.certificates import self_signed
from tests.e2e.process import free_port

SECRET = "x" * 32


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(Config(**settings), None)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o640)
    return str(path)


# --- addresses ------------------------------------------------------------------------------------------------------


def test_without_settings_both_ports_are_on_the_loopback() -> None:
    assert browser_endpoints(Config()) == ("tcp:8080:interface=127.0.0.1",)
    assert push_endpoints(Config()) == ("tcp:8081:interface=127.0.0.1",)


def test_endpoint_strings_take_the_place_of_the_ports() -> None:
    config = Config(listen=("tcp:1", "tcp:2"), push_listen=("unix:/x",))
    assert browser_endpoints(config) == ("tcp:1", "tcp:2")
    assert push_endpoints(config) == ("unix:/x",)


def test_a_bad_endpoint_is_named_by_its_flag() -> None:
    assert refused(listen=("tcp:x",)).startswith('--listen "tcp:x"')
    assert refused(push_listen=("tcq:1",)).startswith('--push-listen "tcq:1"')


@pytest.mark.parametrize(
    ("names", "flag"),
    [
        (("port", "push_port"), "--push-port"),
        (("port", "metrics_port"), "--metrics-port"),
        (("push_port", "metrics_port"), "--metrics-port"),
    ],
)
def test_one_port_for_two_listeners_is_an_error_that_names_the_second(names: tuple[str, str], flag: str) -> None:
    port = free_port()
    config = Config(**{"port": 0, "push_port": 0, **dict.fromkeys(names, port)})
    with pytest.raises(ConfigError, match=f"^{flag}: cannot listen on 127.0.0.1 port {port}: Address already in use"):
        try_ports(config)


def test_try_ports_leaves_the_ports_free() -> None:
    config = Config(port=free_port(), push_port=free_port())
    try_ports(config)
    try_ports(config)


# --- who may enter --------------------------------------------------------------------------------------------------


def test_trust_is_warned_of_and_kept_on_this_machine() -> None:
    assert check(Config(), None) == ["--auth trust accepts any user_id: clients are not authenticated"]
    line = "is reachable from other hosts, but no authentication is configured"
    assert f"--interface 0.0.0.0 {line}" in refused(interface="0.0.0.0")
    assert f"--interface (all) {line}" in refused(interface="")
    assert f'--listen "tcp:80" {line}' in refused(listen=("unix:/tmp/x", "tcp:80"))


@pytest.mark.parametrize("settings", [{"interface": "0.0.0.0"}, {"interface": "::"}, {"listen": ("tcp:80",)}])
def test_explicit_trust_on_a_public_interface_is_a_warning(settings: dict[str, Any]) -> None:
    assert len(check(Config(auth_methods=("trust",), **settings), None)) == 1


def test_with_tokens_any_interface_is_accepted(secret_file: str) -> None:
    assert check(Config(interface="0.0.0.0", secret_files=(secret_file,)), None) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"auth_methods": ("tokens",)},
            '--auth: "tokens" is not one of token, callback, database, trust; did you mean token?',
        ),
        ({"auth_methods": ("ticket",)}, "--auth: ticket is now token"),
        ({"auth_methods": ("trust", "trust")}, "--auth has a method twice"),
        ({"auth_methods": ("token",)}, "--auth token needs the secret"),
        ({"auth_methods": ("callback",)}, "--auth callback needs the URL"),
        ({"auth_methods": ("trust", "database")}, "--auth database needs the database"),
        ({"auth_url": "ftp://x/"}, '--auth-url must be an http:// or https:// URL, not "ftp://x/"'),
        ({"auth_url": "/whoami"}, "--auth-url must be"),
        ({"secret": ("short",)}, "CHATWS_SECRET: a token secret has at least 32 bytes"),
        ({"secret": (SECRET, SECRET, SECRET)}, "at most two secrets"),
        ({"secret": ("a",), "secret_files": ("b",)}, "CHATWS_SECRET and --secret-file exclude each other"),
        ({"secret_files": ("/nowhere",)}, "--secret-file: cannot read /nowhere: No such file or directory"),
    ],
)
def test_ways_in_that_cannot_work_are_refused(settings: dict[str, Any], line: str) -> None:
    assert line in refused(**settings)


def test_an_unused_secret_and_the_database_alone_are_warned_of(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    assert check(Config(secret=(SECRET,), auth_methods=("database",), database=database), None) == [
        "a token secret is set, but --auth does not have token",
        "--auth database only checks that the user exists; clients are not authenticated",
    ]


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_file_is_read_without_its_line_end(secret_file: str) -> None:
    assert read_secret_file(secret_file, "--secret-file") == SECRET


def test_a_world_readable_secret_is_rejected(secret_file: str) -> None:
    Path(secret_file).chmod(0o644)
    line = (
        f"--secret-file: every user of this machine can read {secret_file}; do chmod 640 {secret_file}, and chgrp it "
    )
    assert refused(secret_files=(secret_file,)).startswith(line)
    assert refused(push_secret_file=secret_file).startswith("--push-secret-file: every user of this machine")
    assert refused(database_file=secret_file).startswith("--database-file: every user of this machine")


def test_world_readable_secrets_are_accepted_by_the_option(secret_file: str) -> None:
    Path(secret_file).chmod(0o444)  # as Docker and Kubernetes mount them
    config = Config(secret_files=(secret_file,), push_secret_file=secret_file, allow_world_readable_secrets=True)
    check(config, None)
    assert load_secrets(config) == (SECRET.encode(),)
    assert push_secret(config) == SECRET.encode()
    assert database_url(replace(config, database_file=secret_file)) == SECRET


@pytest.mark.parametrize(("content", "line"), [(b" \n", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_file_without_a_secret_is_refused(content: bytes, line: str, secret_file: str) -> None:
    Path(secret_file).write_bytes(content)
    assert line in refused(push_secret_file=secret_file)


def test_a_directory_is_no_secret_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert "Is a directory" in refused(secret_files=(str(tmp_path),))


# --- backends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["tcp:8081", "tcp:8081:interface=10.0.0.1"])
def test_a_public_push_listener_needs_a_secret(endpoint: str, secret_file: str) -> None:
    line = f'--push-listen "{endpoint}" is reachable from other hosts: set --push-secret-file'
    assert refused(push_listen=(endpoint,)) == line
    check(Config(push_listen=(endpoint,), push_secret_file=secret_file), None)


@pytest.mark.parametrize("endpoint", ["tcp:9180", "tcp:9180:interface=10.0.0.1"])
def test_a_public_metrics_listener_needs_a_secret(endpoint: str, secret_file: str) -> None:
    line = f'--metrics-listen "{endpoint}" is reachable from other hosts: set --metrics-secret-file'
    assert refused(metrics_listen=(endpoint,)) == line
    check(Config(metrics_listen=(endpoint,), metrics_secret_file=secret_file), None)
    check(Config(metrics_listen=("unix:/run/metrics.sock",)), None)
    assert refused(metrics_listen=("tcq:1",)).startswith('--metrics-listen "tcq:1"')


def test_the_demo_cannot_push_through_tls_or_the_proxy_protocol(tmp_path: Path) -> None:
    (tmp_path / "both.pem").write_bytes(self_signed().both)
    for description in (
        f"ssl:8081:privateKey={tmp_path}/both.pem:interface=127.0.0.1",
        "haproxy:tcp:8081:interface=127.0.0.1",
        f"haproxy:unix:{tmp_path}/push.sock",
    ):
        assert refused(demo=True, push_listen=(description,)) == (
            f'--push-listen "{description}": the demo pushes plain lines: leave ssl: and haproxy: out'
        )


def test_a_unix_push_listener_needs_no_secret(tmp_path: Path) -> None:
    check(Config(push_listen=(f"unix:{tmp_path}/push.sock:mode=660",)), None)


# --- databases and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"database": "oracle://x/y"},
            "--database: the URL must begin with postgresql://, mysql://, mariadb:// or sqlit",
        ),
        ({"database": "mysql://x/y"}, "--database: the database URL has no user"),
        ({"database": "sqlite://x"}, '--database must be sqlite:///path, not "sqlite://x"'),
        ({"database": "sqlite:///"}, "--database must be sqlite:///path"),
        ({"database": "sqlite:////nowhere/at/all.db"}, "--database: there is no directory /nowhere/at"),
        ({"database": "sqlite:///a", "database_file": "b"}, "--database and --database-file exclude each other"),
        ({"broker": "kafka"}, "--broker must be memory, sqlite:///path, postgresql://… or redis://…"),
        (
            {"demo": True, "auth_methods": ("token",), "secret": ("x" * 32,)},
            "--demo needs --auth trust or --auth database: its page has no token and no session",
        ),
        ({"broker_poll": 1.0}, "--broker-listen and --broker-poll go with --broker postgresql://… only"),
        (
            {"broker": "postgresql:///x", "broker_poll": 1.0, "broker_listen": "postgresql:///y"},
            "--broker-listen and --broker-poll exclude each other: leave one out",
        ),
        ({"broker": "sqlite:///:memory:"}, "--broker must be sqlite:///path"),
        ({"broker": "sqlite:////nowhere/log.db"}, "--broker: there is no directory /nowhere"),
        ({"sqlite_synchronous": "full"}, "--sqlite-synchronous needs --broker sqlite:///path"),
        ({"demo_database": "/tmp/x.db"}, "--demo-database needs --demo"),
        ({"demo": True, "demo_database": "/nowhere/x.db"}, "--demo-database: there is no directory /nowhere"),
    ],
)
def test_stores_that_cannot_work_are_refused(settings: dict[str, Any], line: str) -> None:
    assert line in refused(**settings)


def test_a_wrong_database_url_is_not_shown_when_it_holds_a_password() -> None:
    assert "hunter2" not in refused(database="postgre://chat:hunter2@db/shop")


def test_a_database_url_may_stand_in_a_file(secret_file: str) -> None:
    Path(secret_file).write_text("postgresql://db/shop\n")
    assert database_url(Config(database_file=secret_file)) == "postgresql://db/shop"
    assert check(Config(database_file=secret_file, auth_methods=("trust",)), None)
    Path(secret_file).write_text("oracle://db/shop\n")
    assert refused(database_file=secret_file) == (
        "--database-file: the URL must begin with postgresql://, mysql://, mariadb:// or sqlite:///"
    )


def test_a_file_that_is_no_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_text("notes of a meeting")
    assert refused(broker=f"sqlite:///{path}") == f"--broker: {path} is not a SQLite file"
    path.write_text("")
    check(Config(broker=f"sqlite:///{path}", sqlite_synchronous="full"), None)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    check(Config(broker=f"sqlite:///{path}"), None)


# --- listeners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["*", "shop.example", "https://*.example", "https://a:x", "https://u@a"])
def test_an_origin_must_be_exact(origin: str) -> None:
    assert refused(allowed_origins=(origin,)).startswith(f'--allowed-origin "{origin}"')


def test_exact_origins_pass() -> None:
    origins = ("https://shop.example", "http://localhost:3000", "http://[::1]:80", "https://café.example/")
    assert len(check(Config(allowed_origins=origins), None)) == 1


def test_origins_without_a_site_are_accepted_with_a_warning() -> None:
    warnings = check(Config(allowed_origins=("null", "file://")), None)
    assert warnings[-2:] == [
        '--allowed-origin "null" accepts sandboxed frames of every site: see "Origins" in docs/security.md',
        '--allowed-origin "file://" accepts every HTML file that a user opens: see "Origins" in docs/security.md',
    ]


def test_a_proxy_must_be_an_address_or_a_network() -> None:
    check(Config(trusted_proxies=("10.0.0.0/8", "192.0.2.1", "fd00::/8")), None)
    assert refused(trusted_proxies=("proxy.internal",)).startswith("--trusted-proxy: ")
