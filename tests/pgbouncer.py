"""A real PgBouncer in transaction mode in front of a test's PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.process import WebServer
from tests.postgres import Postgres
from tests.requirements import find_program

__all__ = ["PgBouncer"]

_CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={target} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
unix_socket_dir =
pool_mode = transaction
max_client_conn = {clients}
default_pool_size = 4
logfile = {directory}/pgbouncer.log
{user}
"""


class PgBouncer(WebServer):
    """PgBouncer in the foreground, with the options that the documentation has: none beside the mode.

    :param clients: connections that it accepts.
    """

    def __init__(self, directory: Path, server: Postgres, *, clients: int = 100) -> None:
        super().__init__(directory)
        user = "user = nobody" if os.geteuid() == 0 else ""
        if user:
            directory.chmod(0o777)
        (directory / "pgbouncer.ini").write_text(
            _CONFIGURATION.format(target=server.port, port=self.port, clients=clients, directory=directory, user=user)
        )

    def command(self) -> list[str]:
        program = find_program("pgbouncer")
        assert program is not None
        return [program, str(self.directory / "pgbouncer.ini")]

    def before(self, url: str, server: Postgres) -> str:
        """The URL of the same database through PgBouncer."""
        return url.replace(f":{server.port}/", f":{self.port}/")
