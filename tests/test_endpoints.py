"""Endpoint strings: which are local, which are wrong, which are taken."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.python.systemd import ListenFDs

from chatws.errors import ConfigError
from chatws.net import listeners
from chatws.net.endpoints import Endpoint, check_endpoint, is_loopback, parse_endpoint, tcp_endpoint
from chatws.net.listeners import make_listener, try_to_listen
from tests.certificates import self_signed
from tests.e2e.conftest import twistd_command
from tests.e2e.process import clean_environment, free_port
from tests.variants import others_long


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port on 127.0.0.1 that another server listens on."""
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen(1)
        yield first.getsockname()[1]


@pytest.mark.parametrize(
    ("description", "endpoint"),
    [
        ("tcp:8080", Endpoint("tcp", {"port": "8080"})),
        ("tcp:8080:127.0.0.1", Endpoint("tcp", {"port": "8080", "interface": "127.0.0.1"})),
        ("tcp6:port=1:interface=\\:\\:1", Endpoint("tcp6", {"port": "1", "interface": "::1"})),
        ("haproxy:tcp:1", Endpoint("tcp", {"port": "1"}, is_proxied=True)),
        ("tcp:1:a:2:b", Endpoint("tcp", {"port": "1", "interface": "a", "backlog": "2"}, surplus=("b",))),
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
def test_only_loopback_and_unix_endpoints_are_local(description: str, is_local: bool) -> None:
    assert parse_endpoint(description).is_local is is_local


def test_every_interface_is_not_the_loopback() -> None:
    assert not is_loopback("")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")


@pytest.mark.parametrize("interface", ["127.0.0.1", "::1", "", "localhost"])
def test_a_port_and_an_interface_become_an_endpoint_string(interface: str) -> None:
    description = tcp_endpoint(80, interface)
    assert parse_endpoint(description).arguments.get("interface", "") == interface
    assert make_listener(None, description, "--port")


@pytest.mark.parametrize("description", ["tcp:0", "tcp6:0", "haproxy:tcp:0", "unix:/run/x.sock"])
def test_the_default_backlog_is_2048(description: str) -> None:
    assert check_endpoint(description, "--listen").backlog == 2048
    assert check_endpoint(f"{description}:backlog=7", "--listen").backlog == 7


@pytest.mark.parametrize(
    ("description", "line"),
    [
        ("tpc:8080", '--listen "tpc:8080": unknown kind of endpoint "tpc"; did you mean tcp:?'),
        ("8080", '--listen "8080": unknown kind of endpoint "8080"'),
        ("", '--listen "": unknown kind of endpoint ""'),
        ("tcp", '--listen "tcp": the port must be a number from 0 to 65535'),
        ("tcp:http", '--listen "tcp:http": the port must be a number from 0 to 65535'),
        ("tcp:99999", '--listen "tcp:99999": the port must be a number from 0 to 65535'),
        ("tcp:80:interfaces=x", "interfaces"),
        ("tcp:80:a:b:c:d", "--listen"),
        ("ssl:443:privateKey=/nowhere/key.pem", "/nowhere/key.pem: No such file or directory"),
        ("systemd:domain=INET:index=0", "--listen"),
    ],
)
def test_an_invalid_endpoint_is_one_line_that_names_its_setting(description: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_listener(None, description, "--listen")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_named(taken: int) -> None:
    with pytest.raises(ConfigError) as caught:
        try_to_listen([(f"tcp:{taken}:interface=127.0.0.1", "--port")])
    advice = "Address already in use: stop the other server, or choose another port"
    assert str(caught.value) == f"--port: cannot listen on 127.0.0.1 port {taken}: {advice}"


def test_one_port_for_two_listeners_is_found_out() -> None:
    description = f"tcp:{free_port()}:interface=127.0.0.1"
    try_to_listen([(description, "--port")])
    with pytest.raises(ConfigError, match="--push-port: cannot listen"):
        try_to_listen([(description, "--port"), (description, "--push-port")])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192.0.2.1 port 0: Cannot assign requested address"):
        try_to_listen([("tcp:0:interface=192.0.2.1", "--interface")])


def test_a_free_port_is_free_again_afterwards() -> None:
    for _ in range(2):
        try_to_listen([("tcp:0:interface=127.0.0.1", "--port"), ("ssl:0:interface=127.0.0.1", "--listen")])


def test_a_unix_socket_that_is_listened_on_is_taken_and_a_stale_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "push.sock")
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(path)
        first.listen(1)
        with pytest.raises(ConfigError, match="another server listens there"):
            try_to_listen([(f"unix:{path}", "--push-listen")])
    try_to_listen([(f"unix:{path}", "--push-listen")])


def test_a_unix_socket_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory"):
        try_to_listen([(f"unix:{tmp_path}/none/push.sock", "--push-listen")])


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (r"tcp:8080:interface=::1", r"a colon inside of an address is written as \: (tcp6:8080:interface=\:\:1)"),
        (r"tcp:8080:::1", r"a colon inside of an address is written as \: (tcp6:8080:interface=\:\:1)"),
        (r"tcp6:8080:interface=::", r"a colon inside of an address is written as \: (tcp6:8080:interface=\:\:)"),
        (r"tcp:[::1]:8080", r"a colon inside of an address is written as \: (tcp6:PORT:interface=\:\:1)"),
        (
            r"ssl:443:privateKey=k:interface=[2001:db8::5]:backlog=5",
            r"a colon inside of an address is written as \: (ssl:443:interface=2001\:db8\:\:5)",
        ),
        (
            r"haproxy:tcp:8080:interface=fe80::1",
            r"a colon inside of an address is written as \: (tcp6:8080:interface=fe80\:\:1)",
        ),
        ("tcp:8080:127.0.0.1:5:x", r'"x" is one argument too many (a colon inside of a value is written as \:)'),
        ("tcp:8080:interfac=127.0.0.1", 'tcp: has no argument "interfac"; did you mean interface=?'),
        ("ssl:443:privatekey=k", 'ssl: has no argument "privatekey"; did you mean privateKey=?'),
        ("unix:/run/x:user=chatws", 'unix: has no argument "user"'),
        ("unix:", "the path is missing: write unix:/run/chatws/push.sock:mode=660"),
        ("unix:/run/x:mode=rw", "the mode must be octal permissions, such as mode=660"),
        ("unix:/run/x:mode=0o660", "the mode must be octal permissions, such as mode=660"),
        ("tcp:8080:backlog=many", "the backlog must be a number of connections"),
        ("ssl:443", "the private key is missing: write ssl:443:privateKey=key.pem:certKey=fullchain.pem"),
        ("ssl:443:certKey=c.pem", "the private key is missing: write ssl:443:privateKey=key.pem:certKey=fullchain.pem"),
        ("systemd:domain=TCP:index=0", "the domain must be INET, INET6 or UNIX"),
        ("systemd:index=0", "the domain must be INET, INET6 or UNIX"),
        (
            "systemd:domain=INET",
            "name either the index of the socket or its FileDescriptorName: systemd:domain=INET:index=0",
        ),
        ("systemd:domain=INET:index=first", "the index must be a number from 0"),
        (
            "systemd:domain=INET:index=0",
            "systemd has passed no socket: start chatws by its .socket unit, or listen on tcp: or unix:",
        ),
        (
            "systemd:domain=UNIX:name=push",
            "systemd has passed no socket: start chatws by its .socket unit, or listen on tcp: or unix:",
        ),
    ],
)
def test_make_listener_of_an_invalid_endpoint_shows_the_syntax(description: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_listener(None, description, "--listen")
    assert str(caught.value) == f'--listen "{description}": {reason}'


def test_make_listener_of_a_unix_socket_without_support_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(ConfigError, match="this system has no Unix sockets: listen on tcp:"):
        make_listener(None, "unix:push.sock", "--push-listen")


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (
            "systemd:domain=INET:index=2",
            "there is no socket 2: systemd has passed 2, counted from 0",
        ),
        (
            "systemd:domain=INET:name=mail",
            'systemd has passed no socket called "mail", but push, web',
        ),
        ("systemd:domain=UNIX:index=0", "the socket is of the domain INET: write domain=INET"),
        ("systemd:domain=INET6:name=push", "the socket is of the domain INET: write domain=INET"),
    ],
)
def test_try_to_listen_on_an_unknown_systemd_socket_lists_the_names(
    description: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("127.0.0.1", 0)) as push:
        monkeypatch.setattr(listeners, "_systemd", ListenFDs([web.fileno(), push.fileno()], ("web", "push")))
        try_to_listen([("systemd:domain=INET:index=0", "--listen"), ("systemd:domain=INET:name=push", "--listen")])
        with pytest.raises(ConfigError) as caught:
            try_to_listen([(description, "--listen")])
    assert str(caught.value) == f'--listen "{description}": {reason}'


@pytest.mark.parametrize(
    ("interface", "line"),
    [
        ("192.0.2.1", "this machine has no such address; `ip address` lists those that it has"),
        (r"2001\:db8\:\:1", "this machine has no such address; `ip address` lists those that it has"),
        ("no-such-host.invalid", 'the name "no-such-host.invalid" cannot be resolved'),
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "ssl"])
def test_try_to_listen_on_an_absent_interface_is_one_line(kind: str, interface: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        try_to_listen([(f"{kind}:0:interface={interface}", "--listen")])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give rights up")
def test_try_to_listen_on_a_privileged_port_without_root_is_one_line() -> None:
    script = """
import os
import chatws.net.listeners
from chatws.errors import ConfigError
os.setuid(65534)
try:
    chatws.net.listeners.try_to_listen([("tcp:443:interface=127.0.0.1", "--listen")])
except ConfigError as error:
    print(error)
"""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as setting:
        if int(setting.read()) <= 443:
            pytest.skip("every user may open port 443 here")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == (
        "--listen: cannot listen on 127.0.0.1 port 443: Permission denied: ports below 1024 need root or "
        "CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE); or choose another port\n"
    ), done.stderr


@pytest.mark.parametrize("words", others_long([["-n", "chatws"], ["chatws"], ["chatws", "--workers", "2"]]))
@pytest.mark.parametrize("kind", ["tcp", "tcp6", "ssl", "haproxy:tcp"])
def test_twistd_on_a_port_in_use_ends_with_one_line_and_status_1(tmp_path: Path, kind: str, words: list[str]) -> None:
    signed = self_signed()
    (tmp_path / "both.pem").write_bytes(signed.both)
    host, interface = ("::1", r"\:\:1") if kind == "tcp6" else ("127.0.0.1", "127.0.0.1")
    family = socket.AF_INET6 if kind == "tcp6" else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        port = server.getsockname()[1]
        key = ":privateKey=both.pem" if kind == "ssl" else ""
        done = subprocess.run(
            [*twistd_command(), *words, "--listen", f"{kind}:{port}{key}:interface={interface}", "--push-port", "0"],
            cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout + done.stderr == (
        f"twistd chatws: --listen: cannot listen on {host} port {port}: Address already in use: "
        "stop the other server, or choose another port\n"
    )
    assert not (tmp_path / "twistd.pid").exists()
