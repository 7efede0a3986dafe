"""Checks twistd's own options (`--logfile`, `--pidfile`, `--uid` …), which stand before `chatws` on the command line.

twistd uses them after it has left the plugin, and reports what is wrong with a traceback, or from a daemon that has
left the terminal. Checked here, it is one line. Two mistakes come too early for that, because twistd converts these
values before it looks for plugins: a `--uid` or `--gid` whose name does not exist, and a `--umask` that is not an octal
number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.python.reflect import namedAny

from chatws.errors import ConfigError, StartError

__all__ = ["check_pidfile", "check_twistd_options", "log_path"]


def log_path(options: Mapping[str, Any]) -> str:
    """Return the file that twistd logs to with these options, empty for standard output and syslog."""
    name = options.get("logfile") or ("twistd.log" if _is_daemon(options) else "")
    return "" if options.get("syslog") or name == "-" else name


def _is_daemon(options: Mapping[str, Any]) -> bool:
    """Whether twistd leaves the terminal. On Windows it has no --pidfile, and never does."""
    return "pidfile" in options and not options.get("nodaemon")


def check_twistd_options(options: Mapping[str, Any], *, starting: bool) -> None:
    """Check what does not depend on a server that runs already.

    :param options: twistd's, as `twisted.scripts.twistd` has parsed them. On Windows some are absent.
    :param starting: the server starts now. Otherwise `--check` asks, which may run in any directory: the default file
        of the log is not looked at.
    :raises ConfigError: with one line that names the option and says what to do.
    """
    _check_user(options)
    root = options.get("chroot")
    if root is not None:
        _check_directory(root, "--chroot")
        if os.geteuid() != 0:
            raise ConfigError("--chroot: only root can change the root directory: start twistd as root")
    rundir = options.get("rundir") or "."
    if root is None:
        _check_directory(rundir, "--rundir")
    elif os.path.isabs(rundir):
        _check_directory(_inside(root, rundir), "--rundir")
    umask = options.get("umask")
    if umask is not None and not 0 <= umask <= 0o777:
        raise ConfigError(f"--umask must be an octal number from 0 to 777, not {umask:o}")
    if options.get("logger"):
        try:
            namedAny(options["logger"])  # type: ignore[no-untyped-call]
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"--logger: cannot import {options['logger']}: {reason}") from None
    elif options.get("logfile") == "-" and _is_daemon(options) and not options.get("syslog"):
        raise ConfigError("--logfile -: a daemon has no standard output; name a file, or run in the foreground (-n)")
    elif log_path(options) and (starting or options.get("logfile")):
        _check_file(log_path(options), "--logfile", "name another file, or run in the foreground (-n)")


def check_pidfile(options: Mapping[str, Any]) -> None:
    """Check that twistd can write its process id, and that no other process has the file.

    A file with the id of this very process is of an earlier run that was killed, in a container, where ids start from 1
    again. It is deleted. A file of a process that has ended is left to twistd, which deletes it.

    :raises ConfigError: with one line that says what to do.
    """
    if not options.get("pidfile"):
        return
    path = os.path.abspath(options["pidfile"])
    written = path if options.get("chroot") is None else _inside(options["chroot"], path)
    _check_file(written, "--pidfile", "name another file, or none (--pidfile=)")
    try:
        pid = int(Path(path).read_text())
        if pid <= 0:
            raise ValueError(pid)
        if pid == os.getpid():
            os.unlink(path)
            return
        os.kill(pid, 0)
    except FileNotFoundError:
        return
    except ProcessLookupError:
        if os.access(os.path.dirname(path), os.W_OK):
            return
        raise ConfigError(
            f"--pidfile: {path} names a process that has ended, and this user cannot delete it: delete it, or name a "
            "file in a directory of this user"
        ) from None
    except PermissionError as error:
        if error.filename is not None:
            raise ConfigError(f"--pidfile: cannot read {path}: {error.strerror}") from None
        # otherwise the process is another user's
    except (ValueError, OverflowError):
        raise ConfigError(f"--pidfile: {path} does not hold a process id: delete it, or name another file") from None
    raise StartError(
        f"--pidfile: process {pid}, which {path} names, is running: stop it first, or give this server a --pidfile of "
        "its own; if that process is another program, delete the file"
    )


def _inside(root: str, path: str) -> str:
    """Return the path of what is `path` once `root` is the root directory."""
    return os.path.join(root, os.path.relpath(path, "/"))


def _check_user(options: Mapping[str, Any]) -> None:
    uid, gid = options.get("uid"), options.get("gid")
    if uid is None and gid is None:
        return
    import pwd

    if uid is not None and gid is None:
        try:
            pwd.getpwuid(uid)
        except (KeyError, OverflowError):
            raise ConfigError(f"--uid: there is no user {uid}: create it, or give its group with --gid") from None
    if os.geteuid() == 0:
        return
    if uid not in (None, os.getuid()):
        raise ConfigError("--uid: only root can become another user: start twistd as root, or leave --uid out")
    if gid not in (None, os.getgid()):
        raise ConfigError("--gid: only root can take another group: start twistd as root, or leave --gid out")


def _check_directory(path: str, option: str) -> None:
    if not os.path.isdir(path):
        raise ConfigError(f"{option}: there is no directory {path}: create it, or name another one")
    if not os.access(path, os.X_OK):
        raise ConfigError(f"{option}: this user cannot enter {path}: name another one")


def _check_file(path: str, option: str, advice: str) -> None:
    """Check that a file can be written, and created where it is missing."""
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise ConfigError(f"{option}: {path} is a directory: name a file")
    if not os.path.isdir(directory):
        raise ConfigError(f"{option}: there is no directory {directory}: create it, or name another file")
    if not os.access(path if os.path.exists(path) else directory, os.W_OK):
        raise ConfigError(f"{option}: this user cannot write {os.path.abspath(path)}: {advice}")
