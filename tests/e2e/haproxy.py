"""A real HAProxy for tests, with backends of a test or with deploy/haproxy/chatws.cfg."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.process import Program, free_port, listens
from tests.e2e.wire import DEADLINE
from tests.requirements import find_program

__all__ = ["HaProxy", "ShippedHaProxy"]

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "chatws.cfg"

_STATS = "    stats socket {directory}/haproxy.sock mode 600 level admin\n"

_GLOBAL = f"""
global
{_STATS}
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
"""


class _HaProxy(Program):
    """HAProxy in the foreground, with `haproxy.cfg` in its directory.

    :ivar ports: by name, where each frontend listens on 127.0.0.1.
    """

    ports: dict[str, int]

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
            result = dict(zip(columns, row.split(","), strict=False))
            if result.get("pxname") == name and result.get("svname") == server:
                return " ".join((result["status"], result["check_status"].lstrip("* "), result["check_code"])).strip()
        raise AssertionError(text)


class HaProxy(_HaProxy):
    """HAProxy with one frontend for each backend.

    :param backends: by name, the lines of the `listen` section without `bind`.
    """

    def __init__(self, directory: Path, backends: dict[str, str]) -> None:
        super().__init__(directory)
        self.ports = {name: free_port() for name in backends}
        sections = [_GLOBAL.format(directory=directory)]
        for name, lines in backends.items():
            indented = "".join(f"    {line.strip()}\n" for line in lines.strip().splitlines())
            sections.append(f"listen {name}\n    bind 127.0.0.1:{self.ports[name]}\n{indented}")
        (directory / "haproxy.cfg").write_text("\n".join(sections))


class ShippedHaProxy(_HaProxy):
    """HAProxy with deploy/haproxy/chatws.cfg.

    :param nodes: the WebSocket port and the push port of two nodes.
    :param proxied: whether the nodes expect the PROXY protocol.
    """

    def __init__(self, directory: Path, nodes: Sequence[tuple[int, int]], *, proxied: bool = True) -> None:
        super().__init__(directory)
        self.ports = {"browsers": free_port(), "push": free_port()}
        text = CONFIGURATION.read_text()
        marked = [line for line in text.splitlines() if re.search(r"# ADAPT\b", line)]
        values = {"bind :80 ": f"bind 127.0.0.1:{self.ports['browsers']} "}
        values["bind 127.0.0.1:8081 "] = f"bind 127.0.0.1:{self.ports['push']} "
        for host, (port, push_port) in zip(("10.0.0.5", "10.0.0.6"), nodes, strict=True):
            values[f"{host}:8080"], values[f"{host}:8081"] = f"127.0.0.1:{port}", f"127.0.0.1:{push_port}"
        assert len(marked) == len(values)
        for old, new in values.items():
            assert sum(old in line for line in marked) == text.count(old) == 1, old
            text = text.replace(old, new)
        text = text.replace("global\n", "global\n" + _STATS.format(directory=directory), 1)
        (directory / "haproxy.cfg").write_text(text if proxied else text.replace(" send-proxy-v2", ""))
