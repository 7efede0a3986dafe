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

# The time that an example takes depends on the machine, and never fails a test. The examples are the same in each run:
# what new ones find must not fail a change that has nothing to do with it. To search for new ones:
# make test-long PYTEST_ARGS=--hypothesis-profile=explore
settings.register_profile(
    "chatws", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("chatws"), derandomize=False)
settings.load_profile("chatws")

#: Tests of one run that may fail at first and pass when they are repeated (`--reruns 1` in the Makefile). A whole run
#: starts a thousand servers, browsers and databases, and a pause of the machine may fail one of 4,000 tests. More than
#: two in a run are a defect of the suite or of chatws.
MAX_RERUNS = 2

# Started by nohup, or behind a script's `&`, a process and all that it starts ignore interrupts; some tests send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(requirement): see tests/requirements.py")
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        _share_bytecode(config)


def _rerun_reports(config: pytest.Config) -> list[Any]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else reporter.stats.get("rerun", [])


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(_rerun_reports(session.config)) > MAX_RERUNS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the first failure of each test that was repeated."""
    reports = _rerun_reports(config)
    if reports:
        terminalreporter.section(f"{len(reports)} failed and were repeated ({MAX_RERUNS} may)")
    for report in reports:
        terminalreporter.section(report.nodeid, sep="_")
        terminalreporter.line(report.longreprtext)


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
