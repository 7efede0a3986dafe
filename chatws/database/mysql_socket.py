"""Connects sockets to a MySQL server."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Sequence

from chatws.database.mysql_options import MysqlOptions

__all__ = ["connect_socket"]


def connect_socket(
    options: MysqlOptions, addresses: Sequence[str], timeout: float, on_socket: Callable[[socket.socket], None]
) -> socket.socket:
    """Connect to the server. Blocking.

    :param addresses: those of `options.host`, tried in this order.
    :param timeout: seconds that a query may take. Connecting takes half of it at most, which the addresses share.
    :param on_socket: called with each socket before it connects.
    :raises OSError: no address accepts the connection.
    """
    failure = OSError("no address")
    targets = [options.unix_socket] if options.unix_socket else addresses
    # as long as the pool waits: an address that is silent leaves time for the others
    until = time.monotonic() + timeout / 2
    for index, address in enumerate(targets):
        family = socket.AF_UNIX if options.unix_socket else socket.AF_INET6 if ":" in address else socket.AF_INET
        connecting = socket.socket(family, socket.SOCK_STREAM)
        connecting.settimeout(max(0.1, (until - time.monotonic()) / (len(targets) - index)))
        try:
            on_socket(connecting)
            if options.unix_socket:
                connecting.connect(address)
            else:
                connecting.connect((address, options.port))
                _keep_alive(connecting, timeout)
        except OSError as error:
            connecting.close()
            failure = error
        else:
            return connecting
    raise failure


def _keep_alive(connected: socket.socket, timeout: float) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # a dead peer is noticed after 45 s while the connection is idle, after the timeout while data is unacknowledged
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", math.ceil(timeout * 1000)),
    ):
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
