"""Skips for what the machine lacks; in CI (`CI=true`) they are failures instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatws.server.io_uring import Ring

#: Debian package → the program that shows it is there.
PROGRAMS = {
    "chromium": "chromium",
    "iproute2": "ip",
    "netcat-openbsd": "nc",
    "nginx": "nginx",
    "nodejs": "node",
    "php-cli": "php",
    "postgresql": "pg_ctl",
    "redis-server": "redis-server",
    "strace": "strace",
}


def find_program(package: str) -> str | None:
    """The path of the program that `package` brings, or None."""
    name = PROGRAMS[package]
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None and package == "postgresql":
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        found = str(versions[-1]) if versions else None
    return found


def needs(package: str) -> Callable[[Any], Any]:
    """Mark a test or class that cannot run without a Debian package."""
    if find_program(package) is None and os.environ.get("CI") == "true":

        def fail(test: Any) -> Any:
            return pytest.mark.usefixtures("missing_package")(pytest.mark.missing(package)(test))

        return fail
    return pytest.mark.skipif(find_program(package) is None, reason=f"needs the Debian package {package}")


def _has_io_uring() -> bool:
    try:
        Ring(2)
    except OSError:
        return False
    return True


#: Not a matter of packages: containers often lack it.
needs_io_uring = pytest.mark.skipif(not _has_io_uring(), reason="the kernel has or permits no io_uring")
