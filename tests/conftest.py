"""What every test may lean on."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

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
    config.addinivalue_line("markers", "missing(package): a Debian package that CI should have installed")


@pytest.fixture
def missing_package(request: pytest.FixtureRequest) -> None:
    """Fails a test that would be skipped elsewhere: CI has to have everything."""
    marker = request.node.get_closest_marker("missing")
    assert marker is not None
    pytest.fail(f"the Debian package {marker.args[0]} is absent; `make test-deps` installs it")
