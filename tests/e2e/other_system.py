"""`twistd` or `chatws` as on a system that lacks what only Linux, or only Unix, has.

Run as `python other_system.py KIND PROGRAM WORDS…`.

KIND is `macos` (no epoll, poll, io_uring, /proc; the select reactor) or `windows` (besides: no module, signal, socket
family or system call of Unix; Twisted's runner and reactor for Windows).

The standard library keeps what it needs of the system it really runs on, so only other importers miss the modules.
"""

from __future__ import annotations

import asyncio
import builtins
import ctypes.util
import errno
import getpass
import io
import ntpath
import os
import select
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import PurePath
from typing import Any

#: Imported for the system this really runs on, before it is hidden.
STANDARD_LIBRARY = (asyncio, ctypes.util, getpass, sqlite3, ssl, subprocess, tempfile, urllib.request)
#: Modules of Unix that are hidden, by kind.
MODULES = {
    "macos": {"resource"},
    "windows": {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "crypt", "readline"},
}
SIGNALS = [name for name in dir(signal) if name.startswith("SIG") and name[3:] not in (
    "_DFL", "_IGN", "ABRT", "FPE", "ILL", "INT", "SEGV", "TERM")]  # fmt: skip
CALLS = [
    "chown", "chroot", "fchmod", "fchown", "fork", "forkpty", "geteuid", "getgid", "getegid", "getpgid",
    "getuid", "killpg", "lchown", "mkfifo", "nice", "openpty", "register_at_fork", "sched_getaffinity",
    "set_blocking", "setegid", "seteuid", "setgid", "setsid", "setuid", "statvfs", "sysconf", "uname", "wait4",
    "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW", "posix_spawn", "posix_spawnp",
]  # fmt: skip


def hide(holder: Any, *names: str) -> None:
    for name in names:
        if hasattr(holder, name):
            delattr(holder, name)


def hide_modules(names: set[str]) -> None:
    """Make `import NAME` fail outside the standard library."""
    real = builtins.__import__

    def importing(name: str, globals: Any = None, *more: Any, **named: Any) -> Any:
        importer = (globals or {}).get("__name__", "").partition(".")[0]
        if name.partition(".")[0] in names and importer not in sys.stdlib_module_names:
            raise ImportError(f"No module named {name!r} (hidden from {importer})")
        return real(name, globals, *more, **named)

    builtins.__import__ = importing


def hide_proc() -> None:
    """Make opening a file below /proc fail. (Paths that are numbers are descriptors.)"""
    real = io.open

    def opening(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | PurePath) and str(file).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
        return real(file, *arguments, **options)

    io.open = builtins.open = opening  # type: ignore[assignment]


def become_windows() -> None:
    """What Twisted needs to take this for Windows, and what chatws must do without there."""
    from twisted.python import runtime

    runtime.platformType = "win32"
    # documented; without os.posix_spawn, subprocess uses the extension module's own
    subprocess._USE_POSIX_SPAWN = False  # type: ignore[attr-defined]
    if hasattr(ntpath, "isreserved"):  # Python 3.13, where Twisted takes it from os.path
        os.path.isreserved = ntpath.isreserved  # type: ignore[attr-defined]
    runtime.platform.type = "win32"
    for name, number in list(vars(errno).items()):
        if name.startswith("E") and isinstance(number, int):
            setattr(errno, f"WSA{name}", number)
    hide(signal, *SIGNALS, "pthread_sigmask", "pthread_kill", "sigwait", "siginterrupt", "alarm", "setitimer")
    hide(os, *CALLS)
    hide(socket, "AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL", "SO_REUSEPORT")


def become(kind: str) -> None:
    """Hide what a system of this kind lacks."""
    hide(select, "epoll", "poll", "kqueue")
    hide_proc()
    hide_modules(MODULES[kind])
    sys.platform = {"macos": "darwin", "windows": "win32"}[kind]
    if kind == "windows":
        become_windows()


def run_program() -> None:
    kind, program = sys.argv.pop(1), sys.argv.pop(1)
    become(kind)
    if program == "twistd":
        from twisted.scripts.twistd import run

        run()
    else:
        from chatws.cli.main import main

        sys.exit(main())


if __name__ == "__main__":
    run_program()
