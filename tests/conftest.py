"""What every test may lean on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.requirements import FIXTURES, needs, skip_or_fail

# How long an example takes says more of the machine than of the code, and is never a reason to fail. In CI the examples
# are the same every time: what new ones would find does not fail a change that has nothing to do with it.
settings.register_profile(
    "chatws",
    deadline=None,
    database=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("chatws")

# Started by nohup, or behind a script's `&`, a process and all that it starts ignore interrupts; some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(requirement): see tests/requirements.py")
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        _share_bytecode(config)


def _share_bytecode(config: pytest.Config) -> None:
    """Have the programs that tests start compile chatws once, where PYTHONDONTWRITEBYTECODE keeps it uncompiled.

    A start of chatws takes a third longer without bytecode, and the suite starts it a thousand times. The checkout
    stays free of it.
    """
    directory = tempfile.mkdtemp(prefix="chatws-bytecode-")
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = directory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in FIXTURES:
                item.add_marker(needs(FIXTURES[name]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    skip_or_fail(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        pytest.fail(f"the fixture {fixturedef.argname} skips ({skipped}): use a mark, see tests/requirements.py")
