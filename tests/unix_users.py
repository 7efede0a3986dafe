"""Unix users that a test makes, and code that runs as one of them. Needs `UNIX_USERS` of tests/requirements.py."""

from __future__ import annotations

import os
import pickle
import pwd
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_name", "public_directory", "remove_user", "run_as", "twistd_as", "words_as"]

ROOT = Path(__file__).parents[1]


def new_name() -> str:
    """A name that no user has."""
    return f"cwtest{secrets.token_hex(4)}"


def remove_user(name: str) -> None:
    """Remove the user and its group. One that does not exist is no error."""
    subprocess.run(["userdel", name], stderr=subprocess.DEVNULL, timeout=60)
    subprocess.run(["groupdel", name], stderr=subprocess.DEVNULL, timeout=60)


@contextmanager
def public_directory() -> Iterator[Path]:
    """An empty directory that every user can enter. pytest's own are for one user."""
    path = Path(tempfile.mkdtemp(prefix="deploy-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def twistd_as(name: str) -> tuple[list[str], dict[str, str]] | None:
    """A command that runs `twistd` so that it can go on as the user (`--uid`), and variables for it.

    The Python that runs the tests may lie in a directory of root alone. Then the system's Python of the same version
    takes its place, with the same packages. None where the user can run neither.
    """
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])}
    script = "from twisted.scripts.twistd import run; run()"
    for python in (sys.executable, f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"):
        words = [python, "-c", "import chatws.runtime.service, json, twisted.scripts.twistd"]
        if not os.path.exists(python):
            continue
        done = subprocess.run(words_as(name, *words), env={**os.environ, **paths}, capture_output=True, timeout=60)
        if done.returncode == 0:
            return [python, "-c", script], paths
    return None


def words_as(name: str, *words: str) -> list[str]:
    """A command line that runs `words` as the user, with its groups."""
    user = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", *words]


def run_as(name: str, function: Callable[[], object]) -> object:
    """Call a function in a child process of the user, with its groups.

    The child does not start a Python: its user may not be allowed to read the one that runs the tests.

    :returns: what the function returns, or the exception that it raises.
    """
    user = pwd.getpwnam(name)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.initgroups(name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            outcome: object = function()
        except BaseException as error:
            outcome = error
        os.write(writer, pickle.dumps(outcome))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        outcome = pickle.loads(pipe.read())
    os.waitpid(pid, 0)
    return outcome
