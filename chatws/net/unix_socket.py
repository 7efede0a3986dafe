"""Unix sockets to listen on: replace the file of a server that was killed, and remove the file at the end.

There is no lock file. A lock file with a process id is wrong in a container, where each start has the same id, and
after a reboot. A connection attempt shows whether a server still listens, because the kernel accepts it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet import tcp, unix
from twisted.python.failure import Failure

from chatws.interfaces import Reactor

__all__ = ["UnixSocket", "listen_on"]


class UnixSocket:
    """A listening Unix socket that this process opened.

    :param path: a file, or an abstract name, which begins with NUL (Linux, unix(7)).
    :param mode: the file's permissions.
    :param backlog: connections that may wait to be accepted.
    :raises OSError: the socket cannot be opened. EADDRINUSE: another server listens on it. EEXIST: the path is a file
        that is not a socket.
    :ivar socket: the socket, non-blocking.
    """

    def __init__(self, path: str, mode: int, backlog: int) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.setblocking(False)
            if path.startswith("\0"):
                self.socket.bind(path)
            else:
                with _lock_directory(os.path.dirname(path) or "."):
                    _remove_stale(path)
                    self.socket.bind(path)
                    status = os.lstat(path)
                    self._file = status.st_dev, status.st_ino
                    os.chmod(path, mode)
            self.socket.listen(backlog)
        except OSError:
            self.close()
            raise

    def remove(self) -> None:
        """Remove the file, unless another server has replaced it. Idempotent."""
        own_file, self._file = self._file, None
        if own_file is not None:
            with suppress(OSError):
                status = os.lstat(self._path)
                if (status.st_dev, status.st_ino) == own_file:
                    os.unlink(self._path)

    def close(self) -> None:
        """Remove the file and close the socket."""
        self.remove()
        self.socket.close()


@contextmanager
def _lock_directory(directory: str) -> Iterator[None]:
    """Keep other servers from opening a socket in the directory at the same time.

    Without the lock, the second of two servers that find the same stale file would remove the socket of the first. The
    kernel releases the lock (flock(2)) at the latest when the process ends.
    """
    import fcntl  # Unix only

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # a server listens, and its backlog is full
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)


def listen_on(reactor: Reactor, listening: socket.socket, factory: Any, owner: UnixSocket | None = None) -> Any:
    """Accept connections on a bound Unix socket. The returned port owns the socket.

    Twisted's `unix.Port` treats an adopted socket as its own. It sets the mode 666 and a backlog of 50 connections. At
    the end it shuts the socket down and deletes the file, so that the next start finds a dead socket.

    :param listening: a socket that is bound and listens.
    :param owner: removes the file at the end. Without it the socket was inherited, and its file stays.
    :returns: an `IListeningPort`.
    """
    listening.setblocking(False)
    port = _Port(listening.getsockname(), factory, reactor=reactor)
    port.adopt(listening, owner)
    return port


class _Port(unix.Port):
    """A port on a socket that is already bound.

    Uses these private attributes of Twisted: `_shouldShutdown`, and `numberAccepts`, `fileno` and `connected`, which
    its own `startListening` sets.
    """

    # other processes may share the socket: close it, but do not shut it down
    _shouldShutdown = False
    _owner: UnixSocket | None = None

    def adopt(self, listening: socket.socket, owner: UnixSocket | None) -> None:
        port: Any = self
        port._owner = owner
        port.factory.doStart()
        port.socket = listening
        port.fileno = listening.fileno
        port.connected = True
        port.numberAccepts = 100  # connections accepted in one turn of the reactor, as in Twisted
        port.startReading()

    def connectionLost(self, reason: Failure) -> None:
        if self._owner is not None:
            self._owner.remove()
        tcp.Port.connectionLost(self, reason)  # type: ignore[no-untyped-call]
