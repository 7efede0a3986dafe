"""Listeners: open the socket of an endpoint string, with TLS (`ssl:`) and the PROXY protocol (`haproxy:`) on top.

This module opens sockets of the kinds `tcp`, `tcp6`, `ssl`, `unix` and `systemd`. Twisted's plug-ins open those of
other kinds. A proxy sends the PROXY header first, before the TLS handshake.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, _SystemdParser, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python.systemd import ListenFDs
from zope.interface import implementer

from chatws.errors import ConfigError, StartError
from chatws.interfaces import Reactor
from chatws.net.endpoints import INTERNET, Endpoint, check_endpoint
from chatws.net.proxy_protocol import ProxyFactory
from chatws.net.sockets import TEMPORARY_BIND_ERRORS, shown_path

__all__ = [
    "Listener",
    "cannot_listen",
    "inherited_listener",
    "make_listener",
    "make_tls",
    "open_tcp",
    "open_unix",
    "systemd_socket",
    "try_to_listen",
]

#: The sockets that systemd passes (sd_listen_fds(3)). Twisted reads them from the environment once, at its import, and
#: removes the variables. It keeps the sockets in this private attribute.
_systemd: ListenFDs = _SystemdParser._sddaemon


@implementer(IStreamServerEndpoint)
class Listener:
    """An endpoint with the layers below the application's protocol: TLS and the PROXY protocol.

    :param inner: the endpoint of the plain socket.
    :param tls: a `chatws.net.tls.ServerTls`; None without TLS.
    :ivar label: the setting with the endpoint string, for log lines.
    """

    def __init__(self, reactor: Reactor, label: str, endpoint: Endpoint, inner: Any, tls: Any) -> None:
        self.label = label
        self.tls = tls
        self._reactor = reactor
        self._is_proxied = endpoint.is_proxied
        self._inner = inner

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """See `IStreamServerEndpoint`."""
        factory = protocolFactory
        if self.tls is not None:
            from chatws.net.tls import TlsFactory

            factory = TlsFactory(self.tls, factory)
        if self._is_proxied:
            factory = ProxyFactory(factory, self._reactor)
        return maybeDeferred(self._inner.listen, factory)


def make_listener(reactor: Reactor, description: str, source: str) -> Listener:
    """Return the listener of an endpoint string. It does not open anything yet.

    :param source: the setting that holds the string, for the error: "--listen".
    :raises ConfigError: the string is malformed, its certificate is invalid, or systemd has not passed such a socket.
    """
    endpoint = check_endpoint(description, source)
    label = f'{source} "{description}"'
    tls = make_tls(endpoint, label)
    inner: Any
    arguments = endpoint.arguments
    if endpoint.kind in INTERNET:
        port, interface = int(arguments["port"]), arguments.get("interface", "")
        if endpoint.kind == "tcp6":
            inner = TCP6ServerEndpoint(reactor, port, endpoint.backlog, interface or "::")  # type: ignore[no-untyped-call]
        else:
            inner = TCP4ServerEndpoint(reactor, port, endpoint.backlog, interface)  # type: ignore[no-untyped-call]
    elif endpoint.kind == "unix":
        inner = _UnixEndpoint(reactor, endpoint)
    elif endpoint.kind == "systemd":
        inner = _InheritedEndpoint(reactor, _systemd_descriptor(endpoint, label))
    else:
        inner = _plugin_endpoint(reactor, endpoint.kind, description, label)
    return Listener(reactor, label, endpoint, inner, tls)


def inherited_listener(reactor: Reactor, description: str, source: str, descriptor: int, pem: bytes | None) -> Listener:
    """Return the listener of an endpoint string, on a socket that is open already. The listener owns the socket.

    :param descriptor: the socket's descriptor.
    :param pem: the key and the certificate of a TLS listener, in place of its files.
    """
    endpoint = check_endpoint(description, source)
    label = f'{source} "{description}"'
    return Listener(reactor, label, endpoint, _InheritedEndpoint(reactor, descriptor), make_tls(endpoint, label, pem))


def make_tls(endpoint: Endpoint, label: str, pem: bytes | None = None) -> Any:
    """Return the `ServerTls` of an endpoint, or None if it has no TLS.

    :param pem: the key and the certificate; None: read them from the files.
    :raises ConfigError: they are invalid.
    """
    if endpoint.kind != "ssl":
        return None
    from chatws.net.tls import CertificateError, ServerTls, read_certificate  # load OpenSSL only if a listener needs it

    try:
        return ServerTls(pem or read_certificate(endpoint.arguments), endpoint.arguments)
    except CertificateError as error:
        raise ConfigError(f"{label}: {error}") from None


def _plugin_endpoint(reactor: Reactor, kind: str, description: str, label: str) -> Any:
    while description.startswith("haproxy:"):
        description = description.removeprefix("haproxy:")
    try:
        return serverFromString(reactor, description)  # type: ignore[no-untyped-call]
    except Exception as error:
        # the parsers are plug-ins, and each raises its own exceptions
        if str(error).startswith("Unknown endpoint type"):
            near = get_close_matches(kind, ["tcp", "tcp6", "ssl", "unix", "systemd", "haproxy"], 1)
            hint = f"; did you mean {near[0]}:?" if near else ""
            raise ConfigError(f'{label}: unknown kind of endpoint "{kind}"{hint}') from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{label}: {reason}") from None


# --- systemd --------------------------------------------------------------------------------------------------------


def _systemd_descriptor(endpoint: Endpoint, label: str) -> int:
    """Return the descriptor of a socket that systemd has passed.

    :raises ConfigError: systemd has passed no such socket.
    """
    descriptors = _systemd.inheritedDescriptors()
    if not descriptors:
        raise ConfigError(
            f"{label}: systemd has passed no socket: start chatws by its .socket unit, or listen on tcp: or unix:"
        )
    name = endpoint.arguments.get("name")
    if name is not None:
        named = _systemd.inheritedNamedDescriptors()
        if name not in named:
            known = ", ".join(sorted(named)) or "none with a name"
            raise ConfigError(f'{label}: systemd has passed no socket called "{name}", but {known}')
        return named[name]
    index = int(endpoint.arguments["index"])
    if index >= len(descriptors):
        raise ConfigError(f"{label}: there is no socket {index}: systemd has passed {len(descriptors)}, counted from 0")
    return descriptors[index]


def systemd_socket(description: str, source: str) -> socket.socket:
    """Duplicate a socket that systemd has passed.

    :raises ConfigError: there is no such socket, or its domain is not that of the endpoint string.
    """
    endpoint = check_endpoint(description, source)
    label = f'{source} "{description}"'
    try:
        duplicate = socket.socket(fileno=os.dup(_systemd_descriptor(endpoint, label)))
    except OSError as error:
        raise ConfigError(f"{label}: the descriptor is not an open socket: {error.strerror}") from None
    domain = duplicate.family.name.removeprefix("AF_")
    if domain != endpoint.arguments["domain"]:
        duplicate.close()
        raise ConfigError(f"{label}: the socket is of the domain {domain}: write domain={domain}")
    return duplicate


# --- opening --------------------------------------------------------------------------------------------------------


@implementer(IStreamServerEndpoint)
class _UnixEndpoint:
    def __init__(self, reactor: Reactor, endpoint: Endpoint) -> None:
        self._reactor = reactor
        self._endpoint = endpoint

    def listen(self, factory: Any) -> Deferred[Any]:
        """See `IStreamServerEndpoint`."""
        from chatws.net.unix_socket import listen_on

        try:
            opened = open_unix(self._endpoint)
            return succeed(listen_on(self._reactor, opened.socket, factory, opened))
        except OSError as error:
            return fail(CannotListenError(None, self._endpoint.arguments["address"], error))  # type: ignore[no-untyped-call]


@implementer(IStreamServerEndpoint)
class _InheritedEndpoint:
    """A socket that another process opened, and that stays open when this one ends. `listen` may be called once."""

    def __init__(self, reactor: Reactor, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def listen(self, factory: Any) -> Deferred[Any]:
        """See `IStreamServerEndpoint`."""
        try:
            inherited = socket.socket(fileno=self._descriptor)
            inherited.setblocking(False)
            if hasattr(socket, "AF_UNIX") and inherited.family == socket.AF_UNIX:
                from chatws.net.unix_socket import listen_on

                return succeed(listen_on(self._reactor, inherited, factory))
            with inherited:  # the reactor makes a duplicate
                return succeed(self._reactor.adoptStreamPort(inherited.fileno(), inherited.family, factory))
        except Exception:
            return fail()


def open_unix(endpoint: Endpoint) -> Any:
    """Open the `chatws.net.unix_socket.UnixSocket` of an endpoint.

    :raises OSError: the socket cannot be opened.
    """
    from chatws.net.unix_socket import UnixSocket  # Windows has none

    arguments = endpoint.arguments
    return UnixSocket(arguments["address"], int(arguments.get("mode", "666"), 8), endpoint.backlog)


def open_tcp(endpoint: Endpoint, port: int, *, shared: bool = False) -> socket.socket:
    """Bind a TCP address, without listening yet.

    :param port: the port to bind, in place of the endpoint's.
    :param shared: other sockets can bind the address too, and the kernel spreads the connections over them
        (SO_REUSEPORT, socket(7)).
    :raises OSError: the address cannot be bound.
    """
    interface = endpoint.arguments.get("interface", "")
    family = socket.AF_INET6 if ":" in interface else INTERNET[endpoint.kind]
    opened = socket.socket(family)
    try:
        opened.setblocking(False)
        if os.name == "posix":
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # with its scope: fe80::1%eth0
            opened.bind(socket.getaddrinfo(interface or "::", port, family, socket.SOCK_STREAM)[0][4])
        else:
            opened.bind((interface, port))
    except OSError:
        opened.close()
        raise
    return opened


def try_to_listen(descriptions: Iterable[tuple[str, str]]) -> None:
    """Open every address and close it again.

    `twistd` becomes a daemon before it starts the services. The operator would not see that a port is in use, and the
    exit status would be 0. This check comes before, and reports one line and an exit status. Kinds other than `tcp`,
    `tcp6`, `ssl`, `unix` and `systemd` are not checked.

    :param descriptions: pairs of an endpoint string and the setting that holds it.
    :raises ConfigError: an address is in use or not permitted.
    """
    with ExitStack() as opened:
        for description, source in descriptions:
            endpoint = check_endpoint(description, source)
            try:
                if endpoint.kind in INTERNET:
                    listening = opened.enter_context(open_tcp(endpoint, int(endpoint.arguments["port"])))
                    listening.listen(1)
                elif endpoint.kind == "unix":
                    opened.callback(open_unix(endpoint).close)
                elif endpoint.kind == "systemd":
                    systemd_socket(description, source).close()
            except OSError as error:
                raise cannot_listen(endpoint, source, error) from None


def cannot_listen(endpoint: Endpoint, source: str, error: OSError) -> ConfigError:
    """Return the error for an address that cannot be opened: what failed, why, and what to do.

    :param source: the setting that holds the endpoint string.
    """
    arguments = endpoint.arguments
    if endpoint.kind == "unix":
        path = shown_path(arguments["address"])
        text = f"cannot listen on unix:{path}: {_unix_reason(path, error)}"
    else:
        interface, port = arguments.get("interface", ""), int(arguments["port"])
        text = f"cannot listen on {interface or '*'} port {port}: {_tcp_reason(interface, port, error)}"
    is_temporary = error.errno in TEMPORARY_BIND_ERRORS or isinstance(error, socket.gaierror)
    return (StartError if is_temporary else ConfigError)(f"{source}: {text}")


def _tcp_reason(interface: str, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return f'the name "{interface}" cannot be resolved ({reason}): use an address, such as 127.0.0.1'
    match error.errno:
        case errno.EADDRINUSE:
            return f"{reason}: stop the other server, or choose another port"
        case errno.EADDRNOTAVAIL:
            return f"{reason}: this machine has no such address; `ip address` lists those that it has"
        case errno.EACCES if port < 1024:
            return (
                f"{reason}: ports below 1024 need root or CAP_NET_BIND_SERVICE "
                "(systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE); or choose another port"
            )
        case errno.EAFNOSUPPORT:
            return f"{reason}: this machine has no IPv6"
    return reason


def _unix_reason(path: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    directory = os.path.dirname(path) or "."
    match error.errno:
        case errno.EADDRINUSE:
            return "another server listens there: stop it, or choose another path"
        case errno.EEXIST:
            return "the path is a file that is not a socket: choose another path"
        case errno.ENOENT:
            return f"there is no directory {directory}"
        case errno.EACCES | errno.EPERM if os.path.lexists(path):
            return f"{reason}: it belongs to another user: stop that server, or delete the file if there is none"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"{reason}: this user may not create files in {directory}"
        case None:
            return f"{reason}: the longest path of a Unix socket has 107 bytes"
    return reason
