"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chatws.auth.secrets import read_secret_file
from chatws.clients.addresses import parse_addresses
from chatws.clients.blocking import BlockingPushClient
from chatws.config.loader import load
from chatws.config.names import environment_name
from chatws.config.text_files import decode_text, describe_encoding
from chatws.errors import ClientError, ConfigError
from chatws.ids import Id, parse_id

__all__ = [
    "add_push_options",
    "allow_world_readable_secrets",
    "an_id",
    "ids",
    "number",
    "push_client",
    "push_secret",
    "web_socket_url",
]

DEFAULT_ADDRESS = "127.0.0.1:8081"


def an_id(text: str) -> Id:
    """Parse an option's value that is an id."""
    try:
        return parse_id(text, "an id")
    except ClientError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def ids(text: str) -> list[Id]:
    """Parse an option's value that is a list of ids, separated by commas."""
    return [an_id(item.strip()) for item in text.split(",")]


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], Any]:
    """Make a parser of an option's value that is a number between two others."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return parse


def web_socket_url(text: str) -> str:
    """Parse an option's value that is a WebSocket URL. Without a path it gets that of the page."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is not a WebSocket URL, such as ws://127.0.0.1:8080/ws")
    return text if parts.path else parts._replace(path="/").geturl()


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server's push port."""
    group = parser.add_argument_group("the push port")
    group.add_argument(
        "--push",
        metavar="ADDRESS",
        help=f"host:port, unix:/path or tls://host:port; of several nodes, with commas between them "
        f"(CHATWS_PUSH_ADDRESS, else {DEFAULT_ADDRESS})",
    )
    group.add_argument(
        "--push-secret-file",
        metavar="FILE",
        help="a file with the push secret (CHATWS_PUSH_SECRET, CHATWS_PUSH_SECRET_FILE)",
    )
    group.add_argument(
        "--timeout",
        type=number(float, 0.1, 3600),
        default=5.0,
        metavar="SECONDS",
        help="how long to try, also over a restart of the server (default 5)",
    )


def push_address(arguments: argparse.Namespace) -> str:
    """Where the push port is, or those of several nodes are: for `parse_addresses`."""
    return arguments.push or os.environ.get("CHATWS_PUSH_ADDRESS") or DEFAULT_ADDRESS


def push_secret(arguments: argparse.Namespace) -> str | None:
    """Read the push secret from the environment or its file.

    :raises ConfigError: the file cannot be read, or other users can read it.
    """
    if not arguments.push_secret_file and os.environ.get("CHATWS_PUSH_SECRET"):
        return os.environ["CHATWS_PUSH_SECRET"].strip()
    path = arguments.push_secret_file or os.environ.get("CHATWS_PUSH_SECRET_FILE")
    if not path:
        return None
    allow = allow_world_readable_secrets()
    secret = read_secret_file(path, "--push-secret-file", allow_world_readable=allow)
    return decode_text(secret, f"--push-secret-file: {path}")


def allow_world_readable_secrets() -> bool:
    """Whether the environment has the server's setting `allow_world_readable_secrets`, as in the image.

    :raises ConfigError: its value is neither true nor false.
    """
    name = environment_name("allow_world_readable_secrets")
    return load({}, {name: os.environ.get(name, "")}).config.allow_world_readable_secrets


def push_client(arguments: argparse.Namespace) -> BlockingPushClient:
    """Make a client from the options of `add_push_options`.

    :raises ConfigError: an address is invalid, or the secret cannot be read.
    """
    address = push_address(arguments)
    tls = None
    ca = os.environ.get("CHATWS_PUSH_TLS_CA") or None
    try:
        if any(server.tls for server in parse_addresses(address)):
            tls = ssl.create_default_context(cafile=ca)
        return BlockingPushClient(
            address,
            secret=push_secret(arguments),
            tls=tls,
            connect_timeout=min(2.0, arguments.timeout),
            timeout=min(2.0, arguments.timeout),
            deadline=arguments.timeout,
        )
    except ValueError as error:
        raise ConfigError(f"--push: {error}") from None
    except ssl.SSLError as error:
        assert ca is not None
        problem = describe_encoding(Path(ca).read_bytes()) or f"has no certificate in PEM ({error.reason or error})"
        raise ConfigError(f"CHATWS_PUSH_TLS_CA: {ca} {problem}") from None
    except OSError as error:
        raise ConfigError(f"CHATWS_PUSH_TLS_CA: cannot read {ca}: {error.strerror or error}") from None
