"""Endpoint strings: which are local, which are wrong, which are taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.endpoints import TCP4ServerEndpoint

from chatws.endpoints import Endpoint, is_loopback, make_endpoint, parse_endpoint, tcp_endpoint, try_to_listen
from chatws.errors import OperatorError
from tests.e2e.process import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port on 127.0.0.1 that another server listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(1)
        yield one.getsockname()[1]


@pytest.mark.parametrize(
    ("description", "endpoint"),
    [
        ("tcp:8080", Endpoint("tcp", {"port": "8080"})),
        ("tcp:8080:127.0.0.1", Endpoint("tcp", {"port": "8080", "interface": "127.0.0.1"})),
        ("tcp6:port=1:interface=\\:\\:1", Endpoint("tcp6", {"port": "1", "interface": "::1"})),
        ("haproxy:tcp:1", Endpoint("tcp", {"port": "1"})),
        ("unix:/run/a\\:b:mode=660", Endpoint("unix", {"address": "/run/a:b", "mode": "660"})),
        ("systemd:domain=INET:index=0", Endpoint("systemd", {"domain": "INET", "index": "0"})),
        ("onion:80:hiddenServiceDir=/x", Endpoint("onion", {"hiddenServiceDir": "/x"})),
        ("", Endpoint("", {})),
    ],
)
def test_an_endpoint_string_is_taken_apart(description: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(description) == endpoint


@pytest.mark.parametrize(
    ("description", "is_local"),
    [
        ("tcp:8080:interface=127.0.0.1", True),
        ("tcp:8080:127.3.2.1", True),
        ("tcp:8080:interface=localhost", True),
        ("tcp6:8080:interface=\\:\\:1", True),
        ("ssl:443:privateKey=k:interface=127.0.0.1", True),
        ("haproxy:tcp:8080:interface=127.0.0.1", True),
        ("unix:/run/x", True),
        ("systemd:domain=UNIX:index=0", True),
        ("tcp:8080", False),
        ("tcp6:8080", False),
        ("tcp:8080:interface=10.0.0.1", False),
        ("tcp:8080:interface=shop.example", False),
        ("ssl:443:127.0.0.1", False),
        ("systemd:domain=INET:index=0", False),
        ("onion:80", False),
    ],
)
def test_only_what_surely_stays_on_this_machine_is_local(description: str, is_local: bool) -> None:
    assert parse_endpoint(description).is_local is is_local


def test_every_interface_is_not_the_loopback() -> None:
    assert not is_loopback("")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")


@pytest.mark.parametrize("interface", ["127.0.0.1", "::1", "", "localhost"])
def test_a_port_and_an_interface_become_an_endpoint_string(interface: str) -> None:
    description = tcp_endpoint(80, interface)
    assert parse_endpoint(description).arguments.get("interface", "") == interface
    assert make_endpoint(None, description, "--port")


def test_a_good_endpoint_string_becomes_twisteds_endpoint() -> None:
    assert isinstance(make_endpoint(None, "tcp:0:interface=127.0.0.1", "--listen"), TCP4ServerEndpoint)


@pytest.mark.parametrize("description", ["tcp:0", "tcp6:0", "haproxy:tcp:0", "unix:/run/x.sock"])
def test_a_crowd_that_comes_at_once_finds_room_to_wait(description: str) -> None:
    def backlog(text: str) -> int:
        endpoint = make_endpoint(None, text, "--listen")
        return getattr(endpoint, "_wrappedEndpoint", endpoint)._backlog

    assert backlog(description) == 2048
    assert backlog(f"{description}:backlog=7") == 7


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ("tpc:8080", '--listen "tpc:8080": no kind of endpoint is called "tpc"; did you mean tcp:?'),
        ("8080", '--listen "8080": no kind of endpoint is called "8080"'),
        ("", '--listen "": no kind of endpoint is called ""'),
        ("tcp", '--listen "tcp": the port must be a number from 0 to 65535'),
        ("tcp:http", '--listen "tcp:http": the port must be a number from 0 to 65535'),
        ("tcp:99999", '--listen "tcp:99999": the port must be a number from 0 to 65535'),
        ("tcp:80:interfaces=x", "interfaces"),
        ("tcp:80:a:b:c:d", "--listen"),
        ("ssl:443:privateKey=/nowhere/key.pem", "/nowhere/key.pem: No such file or directory"),
        ("systemd:domain=INET:index=0", "--listen"),
    ],
)
def test_a_bad_endpoint_string_is_one_line_that_says_where_it_stands(description: str, line: str) -> None:
    with pytest.raises(OperatorError) as caught:
        make_endpoint(None, description, "--listen")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_named(taken: int) -> None:
    with pytest.raises(OperatorError) as caught:
        try_to_listen([(f"tcp:{taken}:interface=127.0.0.1", "--port")])
    assert str(caught.value) == f"--port: cannot listen on 127.0.0.1 port {taken}: Address already in use"


def test_one_port_for_two_listeners_is_found_out() -> None:
    description = f"tcp:{free_port()}:interface=127.0.0.1"
    try_to_listen([(description, "--port")])
    with pytest.raises(OperatorError, match="--push-port: cannot listen"):
        try_to_listen([(description, "--port"), (description, "--push-port")])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OperatorError, match=r"cannot listen on 192.0.2.1 port 0: Cannot assign requested address"):
        try_to_listen([("tcp:0:interface=192.0.2.1", "--interface")])


def test_a_free_port_is_free_again_afterwards() -> None:
    for _ in range(2):
        try_to_listen([("tcp:0:interface=127.0.0.1", "--port"), ("ssl:0:interface=127.0.0.1", "--listen")])


def test_a_unix_socket_that_is_listened_on_is_taken_and_a_stale_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "push.sock")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        one.listen(1)
        with pytest.raises(OperatorError, match="another server does"):
            try_to_listen([(f"unix:{path}", "--push-listen")])
    try_to_listen([(f"unix:{path}", "--push-listen")])


def test_a_unix_socket_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="there is no directory"):
        try_to_listen([(f"unix:{tmp_path}/none/push.sock", "--push-listen")])
