"""A real nginx with deploy/nginx/chatws.conf, for tests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

from tests.e2e.conftest import free_port
from tests.e2e.wire import DEADLINE, until
from tests.requirements import find_program

__all__ = ["CONFIGURATION", "Nginx", "adapt"]

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "chatws.conf"

#: The smallest nginx.conf that can include a site's file.
_MAIN = """
daemon off;
master_process on;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 256; }}
http {{
    access_log {directory}/access.log;
    types {{ text/html html; text/javascript js; }}
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/chatws.conf;
}}
"""


def adapt(text: str, *, listen: str, upstream: str, cache: str, root: str, server_name: str = "_") -> str:
    """Do what the lines marked ADAPT ask for, and nothing else."""
    values = {
        "server 127.0.0.1:8080;": f"server {upstream};",
        "proxy_cache_path /var/cache/nginx-chatws ": f"proxy_cache_path {cache} ",
        "listen 80;": f"listen {listen};",
        "server_name shop.example;": f"server_name {server_name};",
        "root /var/www/shop/public; ": f"root {root}; ",
    }
    marked = [one for one in text.splitlines() if re.search(r"# ADAPT\b", one)]
    assert len(marked) == len(values)
    for old, new in values.items():
        assert text.count(old) == 1, old
        assert any(old in one for one in marked), old
        text = text.replace(old, new)
    return text


class Nginx:
    """:ivar port: where it listens.

    :param upstream: chatws, as `server` wants it.
    :param root: what `location /` shows.
    """

    def __init__(self, directory: Path, upstream: str, root: Path) -> None:
        self.directory = directory
        self.port = free_port()
        text = adapt(
            CONFIGURATION.read_text(),
            listen=f"127.0.0.1:{self.port}",
            upstream=upstream,
            cache=f"{directory}/cache",
            root=str(root),
        )
        (directory / "chatws.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""
        (directory / "nginx.conf").write_text(_MAIN.format(directory=directory, user=user))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def error_log(self) -> str:
        return (self.directory / "error.log").read_text(errors="replace")

    def start(self) -> None:
        program = find_program("nginx")
        assert program is not None
        command = [program, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]
        checked = subprocess.run([*command, "-t"], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._listens, "nginx to listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.error_log
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0
