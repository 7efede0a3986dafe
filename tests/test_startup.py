"""Which settings go together, and what is refused before anything is opened."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from chatws.config import Config
from chatws.errors import OperatorError
from chatws.startup import (
    browser_endpoints,
    check,
    database_url,
    push_endpoints,
    read_secret_file,
    try_ports,
)

SECRET = "x" * 32


def refused(**settings: Any) -> str:
    with pytest.raises(OperatorError) as caught:
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


def test_without_settings_both_doors_are_on_the_loopback() -> None:
    assert browser_endpoints(Config()) == ("tcp:8080:interface=127.0.0.1",)
    assert push_endpoints(Config()) == ("tcp:8081:interface=127.0.0.1",)


def test_endpoint_strings_take_the_place_of_the_ports() -> None:
    config = Config(listen=("tcp:1", "tcp:2"), push_listen=("unix:/x",))
    assert browser_endpoints(config) == ("tcp:1", "tcp:2")
    assert push_endpoints(config) == ("unix:/x",)


def test_a_bad_endpoint_is_named_by_its_flag() -> None:
    assert refused(listen=("tcp:x",)).startswith('--listen "tcp:x"')
    assert refused(push_listen=("tcq:1",)).startswith('--push-listen "tcq:1"')


def test_a_port_in_use_by_the_other_door_is_found_out() -> None:
    config = Config(port=0, push_port=0)
    try_ports(config)


# --- who may enter --------------------------------------------------------------------------------------------------


def test_trust_is_warned_of_and_kept_on_this_machine() -> None:
    assert check(Config(), None) == ["--auth trust takes every browser's word for who it is"]
    line = "lets others in, who may say they are anybody"
    assert f"--interface 0.0.0.0 {line}" in refused(interface="0.0.0.0")
    assert f"--interface (all) {line}" in refused(interface="")
    assert f'--listen "tcp:80" {line}' in refused(listen=("unix:/tmp/x", "tcp:80"))


@pytest.mark.parametrize("settings", [{"interface": "0.0.0.0"}, {"interface": "::"}, {"listen": ("tcp:80",)}])
def test_trust_in_so_many_words_may_be_open_to_others(settings: dict[str, Any]) -> None:
    assert len(check(Config(auth=("trust",), **settings), None)) == 1


def test_with_tickets_any_interface_will_do(secret_file: str) -> None:
    assert check(Config(interface="0.0.0.0", secret_file=(secret_file,)), None) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"auth": ("tickets",)},
            '--auth: "tickets" is none of ticket, callback, database, trust; did you mean ticket?',
        ),
        ({"auth": ("trust", "trust")}, "--auth names a method twice"),
        ({"auth": ("ticket",)}, "--auth ticket needs the secret"),
        ({"auth": ("callback",)}, "--auth callback needs the URL"),
        ({"auth": ("trust", "database")}, "--auth database needs the database"),
        ({"auth_url": "ftp://x/"}, '--auth-url must be an http:// or https:// URL, not "ftp://x/"'),
        ({"auth_url": "/whoami"}, "--auth-url must be"),
        ({"secret": ("short",)}, "CHATWS_SECRET: a ticket secret has at least 32 bytes"),
        ({"secret": (SECRET, SECRET, SECRET)}, "two secrets are the most"),
        ({"secret": ("a",), "secret_file": ("b",)}, "CHATWS_SECRET and --secret-file exclude each other"),
        ({"secret_file": ("/nowhere",)}, "--secret-file: cannot read /nowhere: No such file or directory"),
    ],
)
def test_ways_in_that_cannot_work_are_refused(settings: dict[str, Any], line: str) -> None:
    assert line in refused(**settings)


def test_an_unused_secret_and_the_database_alone_are_warned_of(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    assert check(Config(secret=(SECRET,), auth=("database",), database=database), None) == [
        "a ticket secret is given, but --auth does not name ticket",
        "--auth database looks whether a user exists; it does not prove who is calling",
    ]


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_file_is_read_without_its_line_end(secret_file: str) -> None:
    assert read_secret_file(secret_file, "--secret-file") == SECRET


def test_a_secret_that_others_can_read_is_refused(secret_file: str) -> None:
    Path(secret_file).chmod(0o644)
    line = f"--secret-file: everybody on this machine can read {secret_file}; do chmod o-r {secret_file}"
    assert refused(secret_file=(secret_file,)) == line
    assert refused(push_secret_file=secret_file).startswith("--push-secret-file: everybody on this machine")
    assert refused(database_file=secret_file).startswith("--database-file: everybody on this machine")


@pytest.mark.parametrize(("content", "line"), [(b" \n", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_file_without_a_secret_is_refused(content: bytes, line: str, secret_file: str) -> None:
    Path(secret_file).write_bytes(content)
    assert line in refused(push_secret_file=secret_file)


def test_a_directory_is_no_secret_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert "Is a directory" in refused(secret_file=(str(tmp_path),))


# --- backends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["tcp:8081", "tcp:8081:interface=10.0.0.1"])
def test_a_push_door_open_to_others_needs_a_secret(endpoint: str, secret_file: str) -> None:
    line = f'--push-listen "{endpoint}" is open to others: it needs a --push-secret-file'
    assert refused(push_listen=(endpoint,)) == line
    check(Config(push_listen=(endpoint,), push_secret_file=secret_file), None)


def test_a_unix_push_door_needs_none(tmp_path: Path) -> None:
    check(Config(push_listen=(f"unix:{tmp_path}/push.sock:mode=660",)), None)


# --- databases and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"database": "mysql://x/y"}, "--database: the URL must begin with postgresql:// or sqlite:///"),
        ({"database": "sqlite://x"}, '--database must be sqlite:///path, not "sqlite://x"'),
        ({"database": "sqlite:///"}, "--database must be sqlite:///path"),
        ({"database": "sqlite:////nowhere/at/all.db"}, "--database: there is no directory /nowhere/at"),
        ({"database": "sqlite:///a", "database_file": "b"}, "--database and --database-file exclude each other"),
        ({"broker": "kafka"}, "--broker must be memory, sqlite:///path, postgresql://… or redis://…"),
        (
            {"demo": True, "auth": ("ticket",), "secret": ("x" * 32,)},
            "--demo has neither tickets nor cookies to show: it needs --auth trust",
        ),
        ({"broker_poll": 1.0}, "--broker-listen and --broker-poll go with --broker postgresql://… only"),
        (
            {"broker": "postgresql:///x", "broker_poll": 1.0, "broker_listen": "postgresql:///y"},
            "--broker-listen and --broker-poll exclude each other: leave one out",
        ),
        ({"broker": "sqlite:///:memory:"}, "--broker must be sqlite:///path"),
        ({"broker": "sqlite:////nowhere/log.db"}, "--broker: there is no directory /nowhere"),
        ({"durable": True}, "--durable needs --broker sqlite:///path"),
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
    assert check(Config(database_file=secret_file, auth=("trust",)), None)
    Path(secret_file).write_text("mysql://db/shop\n")
    assert refused(database_file=secret_file) == (
        "--database-file: the URL must begin with postgresql:// or sqlite:///"
    )


def test_a_file_that_is_no_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_text("notes of a meeting")
    assert refused(broker=f"sqlite:///{path}") == f"--broker: {path} is no SQLite file"
    path.write_text("")
    check(Config(broker=f"sqlite:///{path}", durable=True), None)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    check(Config(broker=f"sqlite:///{path}"), None)


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["*", "shop.example", "https://shop.example/", "https://*.example", "https://a:x", "null", "https://u@a"]
)
def test_an_origin_must_be_exact(origin: str) -> None:
    assert refused(allowed_origin=(origin,)) == (
        f'--allowed-origin must be scheme://host or scheme://host:port, not "{origin}"'
    )


def test_exact_origins_pass() -> None:
    check(Config(allowed_origin=("https://shop.example", "http://localhost:3000", "http://[::1]:80")), None)


def test_a_proxy_must_be_an_address_or_a_network() -> None:
    check(Config(trusted_proxy=("10.0.0.0/8", "192.0.2.1", "fd00::/8")), None)
    assert refused(trusted_proxy=("proxy.internal",)).startswith("--trusted-proxy: ")
