"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from chatws.auth.secrets import read_secret_file
from chatws.errors import ClientError, OperatorError
from chatws.ids import Id, parse_id
from chatws.push.addresses import parse_addresses
from chatws.push.blocking import BlockingPushClient

__all__ = [
    "add_push_options",
    "an_id",
    "ids",
    "number",
    "push_client",
    "push_secret",
    "web_socket_url",
]

DEFAULT_ADDRESS = "127.0.0.1:8081"


def an_id(text: str) -> Id:
    """An option's value that is an id."""
    try:
        return parse_id(text, "an id")
    except ClientError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def ids(text: str) -> list[Id]:
    """An option's value that is a list of ids, parted by commas."""
    return [an_id(one.strip()) for one in text.split(",")]


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], Any]:
    """An option's value that is a number between two others."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}")
        return value

    return parse


def web_socket_url(text: str) -> str:
    """An option's value that is a WebSocket's URL; the page's path where it has none."""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0 and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no WebSocket URL, such as ws://127.0.0.1:8080/ws")
    return text if parts.path else parts._replace(path="/").geturl()


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """The server's push port."""
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
    """:raises OperatorError: the file cannot be read, or others can."""
    if not arguments.push_secret_file and os.environ.get("CHATWS_PUSH_SECRET"):
        return os.environ["CHATWS_PUSH_SECRET"].strip()
    path = arguments.push_secret_file or os.environ.get("CHATWS_PUSH_SECRET_FILE")
    if not path:
        return None
    try:
        return read_secret_file(path, "--push-secret-file").decode()
    except UnicodeDecodeError:
        raise OperatorError(f"--push-secret-file: {path} is not UTF-8") from None


def push_client(arguments: argparse.Namespace) -> BlockingPushClient:
    """A client for `add_push_options`'s options.

    :raises OperatorError: an address is none, or the secret cannot be read.
    """
    address = push_address(arguments)
    tls = None
    try:
        if any(one.tls for one in parse_addresses(address)):
            tls = ssl.create_default_context(cafile=os.environ.get("CHATWS_PUSH_TLS_CA") or None)
        return BlockingPushClient(
            address,
            secret=push_secret(arguments),
            tls=tls,
            connect_timeout=min(2.0, arguments.timeout),
            timeout=min(2.0, arguments.timeout),
            deadline=arguments.timeout,
        )
    except ValueError as error:
        raise OperatorError(f"--push: {error}") from None
    except OSError as error:
        raise OperatorError(f"CHATWS_PUSH_TLS_CA: {error.strerror or error}") from None
