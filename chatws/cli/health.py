"""`chatws health`: whether the server on this machine answers, on the listener that its configuration names."""

from __future__ import annotations

import argparse
import getopt
import http.client
import os
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chatws.cli.options import number
from chatws.cli.output import Output
from chatws.config.loader import load
from chatws.config.schema import Config
from chatws.errors import ConfigError
from chatws.net.endpoints import parse_endpoint

HELP = "ask the server on this machine whether it works"
DESCRIPTION = """\
Reads the configuration as the server does, and asks /healthz of each listener for browsers: TCP, TLS or a Unix socket.
It never uses a proxy. The exit status is 0 when every listener answers 200.
"""
EXAMPLES = """\
  chatws health --config /etc/chatws/chatws.toml
  chatws health --process "$(cat /run/chatws.pid)" --ready
"""

#: Below the 5 seconds that the image's HEALTHCHECK allows, so that the reason is still printed.
_TIMEOUT = 4.0
#: Bytes. `/readyz` has a line for each part that does not answer.
_MAX_BODY = 65536
#: Addresses that stand for every interface, and the one to ask.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class HealthTarget(NamedTuple):
    """A listener that can be asked.

    :ivar name: its endpoint string.
    :ivar address: (host, port), or the path of a Unix socket.
    :ivar tls: it expects a TLS handshake.
    :ivar proxied: it expects the PROXY protocol's header (`haproxy:`).
    """

    name: str
    address: tuple[str, int] | str
    tls: bool = False
    proxied: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="the server's TOML file (CHATWS_CONFIG)")
    source.add_argument(
        "--process",
        type=number(int, 1, 2**31 - 1),
        metavar="PID",
        help="take the options, the environment and the directory of this process, which runs `twistd chatws` (Linux)",
    )
    parser.add_argument(
        "--ready", action="store_true", help="ask /readyz: whether the database and the event log answer, too"
    )
    parser.add_argument(
        "--timeout",
        type=number(float, 0.1, 60),
        default=_TIMEOUT,
        metavar="SECONDS",
        help=f"for all listeners together (default {_TIMEOUT:g})",
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.process is None:
        config = load({}, os.environ, arguments.config).config
    else:
        config = config_of_process(arguments.process)
    path = "/readyz" if arguments.ready else "/healthz"
    deadline = time.monotonic() + arguments.timeout
    asked = listeners(config)
    for listener in asked:
        _ask(listener, path, deadline)
    names = [listener.name for listener in asked]
    output.result({"ok": True, "listeners": names}, "\n".join(f"ok: {name}" for name in names))
    return 0


def listeners(config: Config) -> list[HealthTarget]:
    """Return the listeners for browsers, or that for metrics if no other address is known.

    :raises ConfigError: there is none that can be asked.
    """
    # imports the whole server
    from chatws.config.validate import browser_endpoints, metrics_endpoints

    endpoints = browser_endpoints(config)
    for descriptions in (endpoints, metrics_endpoints(config)):
        known = [listener for listener in map(_listener, descriptions) if listener is not None]
        if known:
            return known
    raise ConfigError(
        f"the configuration does not tell the address of {', '.join(endpoints)}; set metrics_port, whose listener has "
        "/healthz too"
    )


def _listener(description: str) -> HealthTarget | None:
    endpoint = parse_endpoint(description)
    kind, arguments, proxied = endpoint.kind, endpoint.arguments, endpoint.is_proxied
    if kind == "unix":
        return HealthTarget(description, arguments.get("address", ""), proxied=proxied)
    port = arguments.get("port", "")
    if kind not in ("tcp", "tcp6", "ssl") or not (port.isascii() and port.isdigit() and int(port)):
        return None
    interface = arguments.get("interface", "")
    return HealthTarget(description, (_LOOPBACK.get(interface, interface), int(port)), kind == "ssl", proxied)


def _ask(listener: HealthTarget, path: str, deadline: float) -> None:
    """Request `path` from a listener.

    :raises ConfigError: the status is not 200, or the response does not come in time.
    """
    connection = http.client.HTTPConnection("localhost")
    try:
        # set beforehand: HTTPConnection then connects to nothing by itself
        connection.sock = _connect(listener, deadline)
        connection.request("GET", path, headers={"Connection": "close"})
        connection.sock.settimeout(_left(deadline))
        response = connection.getresponse()
        body = response.read(_MAX_BODY).decode("utf-8", "replace")
    except TimeoutError:
        raise ConfigError(f"{listener.name} does not answer in time: the server hangs or is overloaded") from None
    except OSError as error:
        raise ConfigError(f"{listener.name} does not answer: {error.strerror or error}; does the server run?") from None
    except http.client.HTTPException as error:
        raise ConfigError(f"{listener.name} does not answer in HTTP: {error!r}; is it chatws?") from None
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        details = "; ".join(body.split("\n")).strip("; ")
        raise ConfigError(f"{listener.name} answers {response.status} to {path}: {details}")


def _left(deadline: float) -> float:
    """Seconds until then.

    :raises TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _connect(listener: HealthTarget, deadline: float) -> socket.socket:
    if isinstance(listener.address, str):
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(_left(deadline))
        stream.connect(listener.address)
    else:
        stream = socket.create_connection(listener.address, _left(deadline))
    if listener.proxied:
        stream.sendall(b"PROXY UNKNOWN\r\n")
    if listener.tls:
        # the certificate is for the public name, and this is the machine itself
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        stream.settimeout(_left(deadline))
        stream = context.wrap_socket(stream, server_hostname="localhost")
    stream.settimeout(_left(deadline))
    return stream


def config_of_process(pid: int) -> Config:
    """Return the configuration with which a process runs `twistd chatws`.

    The process may also be one that runs this as its child with the same command line, as docker's init does. The
    current directory becomes that of the process, for relative paths.

    :raises ConfigError: there is no such process, it may not be looked at, or it is another program.
    """
    directory = Path("/proc", str(pid))
    try:
        words = _arguments(directory / "cmdline")
        environment = dict(pair.split("=", 1) for pair in _arguments(directory / "environ") if "=" in pair)
        flags, file = _flags(words)
        os.chdir(directory / "cwd")
    except FileNotFoundError:
        raise ConfigError(f"--process: there is no process {pid} here, or this system has no /proc") from None
    except OSError as error:
        raise ConfigError(
            f"--process: cannot look at process {pid}: {error.strerror}; run this as the server's user"
        ) from None
    except ValueError:
        raise ConfigError(f"--process: process {pid} does not run `twistd chatws`") from None
    return load(flags, environment, file).config


def _arguments(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\0").split("\0")


def _flags(words: list[str]) -> tuple[Mapping[str, list[str]], str | None]:
    """Parse the words after `twistd … chatws`: the settings' flags and the file.

    :raises ValueError: the command line is another one.
    """
    from twisted.scripts import twistd

    from chatws.cli.twistd import Options

    class Flags(Options):
        def postOptions(self) -> None:
            """Leave the environment of this process alone."""

    start = [os.path.basename(word) for word in words].index("twistd") + 1
    known: Any = twistd.ServerOptions()  # type: ignore[attr-defined, no-untyped-call]
    try:
        _, rest = getopt.getopt(words[start:], known.shortOpt, known.longOpt)
    except getopt.GetoptError as error:
        raise ValueError(str(error)) from None
    if rest[:1] != ["chatws"]:
        raise ValueError(rest)
    options = Flags()
    options.parseOptions(rest[1:])
    return options.given, options.get("config")
