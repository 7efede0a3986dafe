"""A real HAProxy for tests."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.e2e.process import Program, free_port, listens
from tests.e2e.wire import DEADLINE
from tests.requirements import find_program

__all__ = ["HaProxy"]

_GLOBAL = """
global
    stats socket {directory}/haproxy.sock mode 600 level admin
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""


class HaProxy(Program):
    """HAProxy in the foreground, with one frontend for each backend.

    :param backends: by name, the lines of the `listen` section without `bind`.
    :ivar ports: by name, where the frontend listens on 127.0.0.1.
    """

    def __init__(self, directory: Path, backends: dict[str, str]) -> None:
        super().__init__(directory)
        self.ports = {name: free_port() for name in backends}
        sections = [_GLOBAL.format(directory=directory)]
        for name, lines in backends.items():
            indented = "".join(f"    {line.strip()}\n" for line in lines.strip().splitlines())
            sections.append(f"listen {name}\n    bind 127.0.0.1:{self.ports[name]}\n{indented}")
        (directory / "haproxy.cfg").write_text("\n".join(sections))

    def command(self) -> list[str]:
        program = find_program("haproxy")
        assert program is not None
        return [program, "-db", "-f", str(self.directory / "haproxy.cfg")]

    def start(self) -> None:
        checked = subprocess.run([*self.command(), "-c"], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        super().start()

    def is_ready(self) -> bool:
        return all(listens(port) for port in self.ports.values())

    def check(self, name: str, server: str = "chatws") -> str:
        """The state of the backend's server, and what its last health check said: "UP L7OK 200"."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(DEADLINE)
            control.connect(str(self.directory / "haproxy.sock"))
            control.sendall(b"show stat\n")
            text = b"".join(iter(lambda: control.recv(65536), b"")).decode()
        header, *rows = text.removeprefix("# ").splitlines()
        columns = header.split(",")
        for row in rows:
            found = dict(zip(columns, row.split(","), strict=False))
            if found.get("pxname") == name and found.get("svname") == server:
                return " ".join((found["status"], found["check_status"].lstrip("* "), found["check_code"])).strip()
        raise AssertionError(text)
