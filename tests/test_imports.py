"""Allowed imports between packages, checked in the source. Imports inside functions and those for types count too."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import chatws

ROOT = Path(chatws.__file__).parent

#: Allowed imports: a module or package, and what it may import besides itself. The most specific row counts.
#: `chatws.runtime.service` and `chatws.cli.twistd` wire everything together (see `WIRING`).
BASE = ["chatws.errors", "chatws.ids", "chatws.interfaces"]
#: Modules of `runtime/` that import nothing but each other: usable everywhere.
LEAVES = [
    f"chatws.runtime.{name}"
    for name in (
        "backoff",
        "clock",
        "connection_counts",
        "file_budget",
        "log_levels",
        "log_writer",
        "regular_file",
        "resolver",
        "shutdown",
        "signals",
        "streams",
        "systemd",
        "threads",
        "throttled_log",
    )
]
MAY_IMPORT = {
    "chatws.errors": [],
    "chatws.ids": ["chatws.errors"],
    "chatws.interfaces": [],
    **{leaf: ["chatws.errors", "chatws.interfaces", *LEAVES] for leaf in LEAVES},
    "chatws.config.schema": ["chatws.errors"],
    "chatws.config.text_files": ["chatws.errors"],
    "chatws.config": [
        *BASE,
        *LEAVES,
        "chatws.auth",
        "chatws.brokers",
        "chatws.database.factory",
        "chatws.database.mysql_options",
        "chatws.database.query_check",
        "chatws.net",
        "chatws.outbox.check",
        "chatws.outbox.dialects",
        "chatws.pusher.apps",
        "chatws.server.origins",
        "chatws.webhooks.settings",
    ],
    "chatws.net": [*BASE, *LEAVES],
    "chatws.server": [*BASE, *LEAVES, "chatws.net.sockets"],
    "chatws.database": [*BASE, *LEAVES],
    "chatws.brokers": [*BASE, *LEAVES, "chatws.database"],
    "chatws.chat": [*BASE, *LEAVES, "chatws.brokers", "chatws.server"],
    "chatws.push": [*BASE, *LEAVES, "chatws.brokers.interface", "chatws.chat", "chatws.net"],
    "chatws.auth": [
        *BASE,
        *LEAVES,
        "chatws.chat.interfaces",
        "chatws.config.text_files",
        "chatws.database.exact_ids",
        "chatws.database.interface",
        "chatws.net.web_client",
        "chatws.server.component",
    ],
    "chatws.outbox.dialects": ["chatws.errors"],
    "chatws.outbox": [
        *BASE,
        *LEAVES,
        "chatws.brokers.interface",
        "chatws.database",
        "chatws.push.operations",
        "chatws.push.protocol",
        "chatws.push.responses",
    ],
    "chatws.webhooks": [
        *BASE,
        *LEAVES,
        "chatws.auth.auth_url",
        "chatws.auth.secrets",
        "chatws.brokers.interface",
        "chatws.brokers.webhook_queue",
        "chatws.chat.cluster_commands",
        "chatws.chat.interfaces",
        "chatws.chat.presence",
        "chatws.clients.webhook",
        "chatws.config.text_files",
        "chatws.net.web_client",
    ],
    "chatws.pusher.apps": ["chatws.auth.auth_url", "chatws.auth.secrets", "chatws.errors"],
    "chatws.pusher": [
        *BASE,
        *LEAVES,
        "chatws.auth.auth_url",
        "chatws.auth.secrets",
        "chatws.brokers.interface",
        "chatws.brokers.webhook_queue",
        "chatws.chat",
        "chatws.net.web_client",
        "chatws.server",
    ],
    "chatws.clients": [*BASE, "chatws.runtime.backoff"],
    "chatws.demo": [*BASE, *LEAVES],
    "chatws.runtime.health": BASE,
    "chatws.runtime.logging": [*BASE, *LEAVES, "chatws.runtime.twistd_options"],
    "chatws.runtime.twistd_options": [*BASE, *LEAVES],
    "chatws.runtime.start_report": [*BASE, *LEAVES],
    "chatws.runtime.root_service": [
        *BASE,
        *LEAVES,
        "chatws.config.schema",
        "chatws.runtime.logging",
        "chatws.runtime.start_report",
    ],
    "chatws.runtime.measurements": [*BASE, *LEAVES, "chatws.database.interface"],
    "chatws.runtime.turns": [*BASE, *LEAVES, "chatws.runtime.measurements"],
    # it reads the counters of all packages
    "chatws.runtime.metrics": [
        *BASE,
        *LEAVES,
        "chatws.auth.chain",
        "chatws.auth.token",
        "chatws.brokers.interface",
        "chatws.chat.server",
        "chatws.outbox.reader",
        "chatws.push",
        "chatws.runtime.measured_broker",
        "chatws.runtime.measurements",
        "chatws.runtime.node",
        "chatws.runtime.turns",
        "chatws.server",
        "chatws.webhooks.service",
    ],
    "chatws.runtime.measured_broker": [
        *BASE,
        *LEAVES,
        "chatws.brokers.interface",
        "chatws.brokers.webhook_queue",
        "chatws.runtime.measurements",
    ],
    "chatws.runtime.node": [
        *BASE,
        *LEAVES,
        "chatws.brokers.interface",
        "chatws.brokers.postgres.schema",
        "chatws.chat",
        "chatws.config.schema",
        "chatws.net.sockets",
        "chatws.runtime.measurements",
        "chatws.server",
    ],
    "chatws.runtime.parts": [
        *BASE,
        *LEAVES,
        "chatws.brokers",
        "chatws.chat",
        "chatws.config",
        "chatws.net",
        "chatws.server.admission",
    ],
    "chatws.workers": [
        *BASE,
        *LEAVES,
        "chatws.auth.public_keys",
        "chatws.auth.secrets",
        "chatws.brokers",
        "chatws.config",
        "chatws.net",
        "chatws.runtime",
        "chatws.server",
    ],
    "chatws.cli": [
        *BASE,
        "chatws.auth",
        "chatws.brokers.postgres.schema",
        "chatws.brokers.reset",
        "chatws.chat.interfaces",
        "chatws.clients",
        "chatws.config",
        "chatws.database",
        "chatws.net.endpoints",
        "chatws.outbox",
        "chatws.runtime",
        "chatws.server.component",
        "chatws.server.websocket_client",
        "chatws.webhooks",
    ],
}

#: Libraries that only one package may import.
SOLE_IMPORTERS = {
    "autobahn": "chatws.server",
    "txpostgres": "chatws.database",
    "psycopg2": "chatws.database",
    "pymysql": "chatws.database",
    "txredisapi": "chatws.brokers.redis",
    "hiredis": "chatws.brokers.redis",
}

#: Modules without a rule: they wire everything together.
WIRING = {"chatws", "chatws.runtime", "chatws.runtime.service", "chatws.cli.twistd"}


class Import(NamedTuple):
    line: int
    name: str
    at_top: bool


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["chatws", *path.relative_to(ROOT).with_suffix("").parts]
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@cache
def imports(path: Path) -> list[Import]:
    """Every import of a file, `from a import b` as both `a` and, where it is one of our modules, `a.b`."""
    return list(find_imports(path))


def find_imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        at_top = id(node) not in inner
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole == "twisted.internet.reactor" or is_ours(whole):
                    yield Import(node.lineno, whole, at_top)
                else:
                    yield Import(node.lineno, node.module, at_top)


def is_ours(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return name.startswith("chatws.") and (path.is_dir() or path.with_suffix(".py").exists())


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_each_package_imports_only_allowed_packages() -> None:
    wrong = []
    for module, path in modules():
        if module in WIRING:
            continue
        rules = sorted((package for package in MAY_IMPORT if within(module, package)), key=len, reverse=True)
        if not rules:
            raise AssertionError(f"{module} has no rule here: which packages may it import?")
        allowed = [rules[0], *MAY_IMPORT[rules[0]]]
        wrong += [
            f"{path.relative_to(ROOT.parent)}:{imported.line} {module} may not import {imported.name}"
            for imported in imports(path)
            if within(imported.name, "chatws")
            and imported.name != "chatws"
            and not any(within(imported.name, package) for package in allowed)
        ]
    assert not wrong, "\n".join(wrong)


def test_restricted_libraries_are_imported_by_one_package_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{imported.line} {library} is for {package} alone"
        for module, path in modules()
        for imported in imports(path)
        for library, package in SOLE_IMPORTERS.items()
        if within(imported.name, library) and not within(module, package)
    ]
    assert not wrong, "\n".join(wrong)


def test_errors_import_only_the_standard_library() -> None:
    names = {imported.name.split(".")[0] for imported in imports(ROOT / "errors.py")}
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        "chatws",
        "chatws.clients",
        "chatws.clients.addresses",
        "chatws.clients.asyncio",
        "chatws.clients.blocking",
        "chatws.clients.webhook",
        "chatws.errors",
    ],
)
def test_import_of_a_client_without_twisted_loads_neither_twisted_nor_the_server(module: str) -> None:
    """A Django process imports it: a reactor, or anything that may install one, must not come with it."""
    script = f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
    names = json.loads(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    assert module in names
    allowed = ("chatws.clients", "chatws.errors", "chatws.ids", "chatws.runtime.backoff")
    assert [
        name
        for name in names
        if within(name, "chatws") and name not in ("chatws", "chatws.runtime") and not name.startswith(allowed)
    ] == []
    assert [name for name in names if name.split(".")[0] in ("twisted", "zope", "autobahn", "txaio", "OpenSSL")] == []


def test_no_module_imports_the_reactor_at_import_time() -> None:
    """`twistd --reactor` has to come first, so the import stands inside a function or nowhere."""
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{imported.line}"
        for _, path in modules()
        for imported in imports(path)
        if imported.at_top and imported.name == "twisted.internet.reactor"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_chat_package_imports_no_sockets() -> None:
    sockets = ("socket", "select", "asyncio", "twisted.internet.protocol", "twisted.internet.endpoints", "twisted.web")
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{imported.line} {imported.name}"
        for module, path in modules()
        for imported in imports(path)
        if within(module, "chatws.chat") and any(within(imported.name, name) for name in sockets)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import chatws.errors", ["chatws.errors"]),
        ("from chatws import errors", ["chatws.errors"]),
        ("from chatws.errors import ConfigError", ["chatws.errors"]),
        ("def f():\n    from twisted.internet import reactor", ["twisted.internet.reactor"]),
        ("if TYPE_CHECKING:\n    from chatws.chat import hub", ["chatws.chat.hub"]),
    ],
)
def test_imports_within_functions_are_found(source: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert [imported.name for imported in imports(path)] == names


def import_cycles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The modules that import each other, directly or not. `graph` has the imports of each module."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def test_modules_form_no_cycle_not_even_by_imports_in_functions_or_for_types() -> None:
    names = {module for module, _ in modules()}
    # the package itself is imported for its version
    graph = {
        module: {imported.name for imported in imports(path) if imported.name in names} - {"chatws", module}
        for module, path in modules()
    }
    assert "chatws.chat.session" in graph["chatws.chat.server"]
    assert import_cycles(graph) == []


def test_cycle_of_imports_is_found() -> None:
    assert import_cycles({"a": ["b"], "b": ["c"], "c": []}) == []
    [cycle] = import_cycles({"a": ["b"], "b": ["c"], "c": ["b"]})
    assert set(cycle) == {"b", "c"}


def test_class_names_are_unique() -> None:
    paths: dict[str, list[str]] = {}
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef):
                paths.setdefault(node.name, []).append(name)
    assert "ChatServer" in paths
    assert {name: modules for name, modules in paths.items() if len(modules) > 1} == {}
    tests = {
        node.name: path.name
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef)
    }
    assert {name: path for name, path in tests.items() if name in paths} == {}
