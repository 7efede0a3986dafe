"""`chatws health`: it asks the real listener, whatever kind it is, past proxies, and within its time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.e2e.conftest import Server
from tests.e2e.process import Command, clean_environment, free_port, listens

Start = Callable[..., Server]

#: Answers whatever is sent with something that is not HTTP.
GREETER = """
import socketserver, sys

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(1000)
        self.request.sendall(b"hello\\n")

socketserver.TCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def health(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chatws.cli", "health", *([] if "--timeout" in words else ["--timeout", "30"]), *words],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


def refused(*words: str, **environment: str) -> str:
    """The one line on standard error of a check that fails."""
    done = health(*words, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("chatws health: ")
    return line.removeprefix("chatws health: ")


@pytest.mark.long
def test_health_ignores_a_proxy_and_asks_the_configured_port(server: Server, tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), nowhere)
    by_variable = health(CHATWS_PORT=str(server.port), **proxies)
    assert (by_variable.returncode, by_variable.stderr) == (0, "")
    assert by_variable.stdout == f"ok: tcp:{server.port}:interface=127.0.0.1\n"
    (tmp_path / "chatws.toml").write_text(f'port = {server.port}\ninterface = "0.0.0.0"\n')
    for words, variables in (
        (("--config", "chatws.toml"), {}),
        (("--ready",), {"CHATWS_CONFIG": "chatws.toml"}),
    ):
        assert health(*words, cwd=tmp_path, **variables, **proxies).returncode == 0


def test_health_follows_the_command_line_of_a_running_process(chatws_server: Start) -> None:
    server = chatws_server("--config", "chatws.toml", start=False, CHATWS_METRICS_PORT="0")
    (server.directory / "chatws.toml").write_text('interface = "127.0.0.1"\n')
    server.start()
    done = health("--process", str(server.pid), "--json", CHATWS_PORT="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ok": True, "listeners": [f"tcp:{server.port}:interface=127.0.0.1"]}


@pytest.mark.long
def test_health_follows_the_command_line_that_an_init_runs(chatws_server: Start, tmp_path: Path) -> None:
    """`docker run --init`: process 1 is the init, and has the whole command line as arguments."""
    server = chatws_server("--max-connections", "5")
    init = [sys.executable, "-c", "import sys; sys.stdin.read()", "--", *server.command()]
    with subprocess.Popen(init, stdin=subprocess.PIPE, cwd=tmp_path, env=clean_environment()) as process:
        try:
            done = health("--process", str(process.pid))
        finally:
            assert process.stdin is not None
            process.stdin.close()
    assert (done.returncode, done.stdout) == (0, f"ok: tcp:{server.port}:interface=127.0.0.1\n")


def test_health_of_a_process_that_is_not_the_server_is_one_line() -> None:
    assert refused("--process", str(os.getpid())) == f"--process: process {os.getpid()} does not run `twistd chatws`"
    assert refused("--process", str(2**31 - 1)).startswith("--process: there is no process 2147483647 here")


def test_health_asks_a_tls_listener_and_a_unix_socket(chatws_server: Start, tmp_path: Path) -> None:
    (tmp_path / "pem").write_bytes(self_signed("shop.example").both)
    port = free_port()
    tls = f"ssl:{port}:privateKey={tmp_path}/pem:certKey={tmp_path}/pem:interface=127.0.0.1"
    unix = f"unix:{tmp_path}/ws.sock"
    chatws_server("--listen", tls, "--listen", unix)
    (tmp_path / "chatws.toml").write_text(f'listen = ["{tls}", "{unix}"]\n')
    done = health("--config", str(tmp_path / "chatws.toml"))
    assert (done.returncode, done.stdout) == (0, f"ok: {tls}\nok: {unix}\n"), done.stderr


@pytest.mark.long
def test_health_asks_a_listener_behind_the_proxy_protocol(chatws_server: Start) -> None:
    port = free_port()
    server = chatws_server("--listen", f"haproxy:tcp:{port}:interface=127.0.0.1", start=False)
    server.is_ready = lambda: listens(port)  # type: ignore[method-assign]
    server.start()
    done = health("--process", str(server.pid))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_health_with_systemd_sockets_uses_the_metrics_listener(chatws_server: Start) -> None:
    metrics = free_port()
    chatws_server("--metrics-port", str(metrics))
    systemd = {"CHATWS_LISTEN": "systemd:domain=INET:index=0"}
    assert health(**systemd, CHATWS_METRICS_PORT=str(metrics)).returncode == 0
    assert refused(**systemd).startswith("the configuration does not tell the address of systemd:domain=INET:index=0; ")
    assert refused(CHATWS_PORT="0").startswith("the configuration does not tell the address of tcp:0:")


def test_health_without_a_server_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    assert refused(CHATWS_PORT=str(port)) == (
        f"tcp:{port}:interface=127.0.0.1 does not answer: Connection refused; does the server run?"
    )
    unix = f"unix:{tmp_path}/none.sock"
    assert refused(CHATWS_LISTEN=unix) == f"{unix} does not answer: No such file or directory; does the server run?"
    assert refused("--config", str(tmp_path / "none.toml")).startswith("cannot read ")


@pytest.mark.long
def test_health_of_a_server_that_hangs_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        line = refused("--timeout", "0.3", CHATWS_PORT=str(port))
    assert line == f"tcp:{port}:interface=127.0.0.1 does not answer in time: the server hangs or is overloaded"


@pytest.mark.long
def test_health_of_another_program_on_the_port_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    with Command([sys.executable, "-c", GREETER, str(port)], tmp_path, ready=lambda: listens(port)):
        assert "does not answer in HTTP" in refused(CHATWS_PORT=str(port))
    port = free_port()
    web = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with Command(web, tmp_path, ready=lambda: listens(port)):
        assert "answers 404 to /healthz" in refused(CHATWS_PORT=str(port))


def test_health_tells_alive_from_ready(chatws_server: Start) -> None:
    port = free_port()
    server = chatws_server("--database", f"postgresql://nobody@127.0.0.1:{port}/none", "--auth", "trust")
    assert health("--process", str(server.pid)).returncode == 0
    line = refused("--process", str(server.pid), "--ready")
    assert " answers 503 to /readyz: database: " in line
