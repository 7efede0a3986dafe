"""What every test may lean on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says more of the machine than of the code, and is never a reason to fail.
settings.register_profile("chatws", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatws")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "missing(package): a Debian package that CI should have installed")


@pytest.fixture
def missing_package(request: pytest.FixtureRequest) -> None:
    """Fails a test that would be skipped elsewhere: CI has to have everything."""
    marker = request.node.get_closest_marker("missing")
    assert marker is not None
    pytest.fail(f"the Debian package {marker.args[0]} is absent; `make test-deps` installs it")
