"""Programs in their own mount namespace, with a small volume or with a part of /proc hidden."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from tests.e2e.conftest import Server

__all__ = ["MountedServer", "can_mount", "run_inside"]


def can_mount() -> bool:
    """Whether this process may mount in its own namespace."""
    try:
        words = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(words, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


class MountedServer(Server):
    """A server in a mount namespace that the first `start` makes, and that later ones enter again.

    :param mounts: shell commands that mount, run once in the namespace.
    """

    def __init__(self, directory: Path, arguments: tuple[str, ...], environment: dict[str, str], mounts: str) -> None:
        super().__init__(directory, arguments, environment)
        # keeps the namespace while the server is down, and ends with its standard input
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-ec", f"{mounts}\necho mounted\nexec cat"],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout is not None
        assert self.holder.stderr is not None
        assert self.holder.stdout.readline() == "mounted\n", self.holder.stderr.read()

    def command(self) -> list[str]:
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", f"--wdns={self.directory}", *super().command()]

    def run_inside(self, command: str) -> str:
        """Run a shell command in the namespace and the server's directory, and return its output."""
        return run_inside(self.holder.pid, command, self.directory)

    def close(self) -> None:
        """End the server and the namespace."""
        try:
            self.finish()
        finally:
            self.holder.communicate("", timeout=20)


def run_inside(pid: int, command: str, directory: Path) -> str:
    words = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--wdns={directory}", "sh", "-c", command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout
