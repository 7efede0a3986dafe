"""A real Caddy for tests, with deploy/caddy/Caddyfile."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.e2e.process import WebServer
from tests.e2e.wire import DEADLINE
from tests.requirements import find_program

__all__ = ["Caddy"]

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "caddy" / "Caddyfile"


class Caddy(WebServer):
    """Caddy in the foreground, without TLS.

    :param nodes: the WebSocket ports of the nodes.
    :param root: the directory of the application.
    """

    def __init__(self, directory: Path, nodes: tuple[int, ...], root: Path) -> None:
        super().__init__(directory)
        self.environment |= {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        text = CONFIGURATION.read_text()
        values = {
            "shop.example {": f"http://127.0.0.1:{self.port} {{",
            "10.0.0.5:8080 10.0.0.6:8080 {": " ".join(f"127.0.0.1:{port}" for port in nodes) + " {",
            "root * /var/www/shop/public ": f"root * {root} ",
        }
        marked = [line for line in text.splitlines() if re.search(r"# ADAPT\b", line)]
        assert len(marked) == len(values)
        for old, new in values.items():
            assert sum(old in line for line in marked) == text.count(old) == 1, old
            text = text.replace(old, new)
        (directory / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)

    def command(self) -> list[str]:
        program = find_program("caddy")
        assert program is not None
        return [program, "run", "--config", str(self.directory / "Caddyfile"), "--adapter", "caddyfile"]

    def start(self) -> None:
        command = [self.command()[0], "validate", *self.command()[2:]]
        checked = subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE, check=False, env=self.environment
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        super().start()
