"""A real nginx for tests, with deploy/nginx/chatws.conf or with a document's configuration."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.e2e.process import WebServer
from tests.e2e.wire import DEADLINE
from tests.requirements import find_program

__all__ = ["CONFIGURATION", "Nginx", "NginxWith", "adapt"]

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "chatws.conf"

#: The smallest nginx.conf that can include a site's file.
_MAIN = """
daemon off;
master_process on;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log info;
events {{ worker_connections 4096; }}
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
    """Change the lines marked ADAPT, and no others."""
    values = {
        "server 127.0.0.1:8080;": f"server {upstream};",
        "proxy_cache_path /var/cache/nginx-chatws ": f"proxy_cache_path {cache} ",
        "listen 80;": f"listen {listen};",
        "server_name shop.example;": f"server_name {server_name};",
        "root /var/www/shop/public; ": f"root {root}; ",
    }
    marked = [line for line in text.splitlines() if re.search(r"# ADAPT\b", line)]
    assert len(marked) == len(values)
    for old, new in values.items():
        assert text.count(old) == 1, old
        assert any(old in item for item in marked), old
        text = text.replace(old, new)
    return text


class _Nginx(WebServer):
    """nginx in the foreground, with `nginx.conf` in its directory."""

    def command(self) -> list[str]:
        program = find_program("nginx")
        assert program is not None
        return [program, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]

    def start(self) -> None:
        checked = subprocess.run([*self.command(), "-t"], capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr, checked.stderr
        super().start()


class Nginx(_Nginx):
    """nginx with deploy/nginx/chatws.conf.

    :param upstream: address of chatws for `server`.
    :param root: directory of `location /`.
    """

    def __init__(self, directory: Path, upstream: str, root: Path) -> None:
        super().__init__(directory)
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

    @property
    def error_log(self) -> str:
        return (self.directory / "error.log").read_text(errors="replace")


class NginxWith(_Nginx):
    """nginx with some locations of a document. It also serves the files of its directory."""

    def __init__(self, directory: Path, locations: str) -> None:
        super().__init__(directory)
        (directory / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr;\n"
            "events {}\n"
            "http {\n"
            "types { text/html html; text/javascript js; } charset utf-8;\n"
            f"access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n"
            f"fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n"
            f"server {{ listen 127.0.0.1:{self.port}; root {directory}; {locations} }}\n"
            "}\n"
        )
