"""The npm packages that tests run: tests/js/npm/package.json, with the versions of its lock file."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_FILES = ("package.json", "package-lock.json")


@cache
def npm_packages() -> Path | None:
    """Install the packages in `build/`, once. Return their directory, or None without npm or registry."""
    source = ROOT / "tests" / "js" / "npm"
    npm = shutil.which("npm")
    digest = hashlib.sha256(b"".join((source / name).read_bytes() for name in _FILES)).hexdigest()[:16]
    target = ROOT / "build" / f"npm-{digest}"
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite runs in several processes
        complete = target / "complete"
        if npm is not None and not complete.exists():
            for name in _FILES:
                shutil.copy(source / name, target)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=target, capture_output=True, timeout=300, check=False)
            if done.returncode == 0:
                complete.touch()
        return target / "node_modules" if complete.exists() else None


def require_npm_packages() -> Path:
    """Return the directory of the packages. Skip the test without them."""
    packages = npm_packages()
    if packages is None:
        pytest.skip("needs the Debian package npm and an npm registry")
    return packages
