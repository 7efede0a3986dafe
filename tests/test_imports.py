"""The arrows between the rooms, read out of the source. Imports inside functions and those for types count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import chatws

ROOT = Path(chatws.__file__).parent

#: Who may import whom: a module or a package, and what lies under it.
MAY_IMPORT = {
    "chatws.errors": [],
    "chatws.ids": ["chatws.errors"],
    "chatws.config": ["chatws.errors"],
    "chatws.endpoints": ["chatws.errors"],
    "chatws.configure": ["chatws.config", "chatws.errors"],
    "chatws.server": ["chatws.errors", "chatws.ids", "chatws.sockets"],
    "chatws.sockets": [],
    "chatws.brokers": ["chatws.channel", "chatws.database", "chatws.errors", "chatws.ids"],
    "chatws.channel": [],
    "chatws.daemon": ["chatws.config", "chatws.errors", "chatws.logs"],
    "chatws.database": ["chatws.errors", "chatws.ids"],
    "chatws.chat": ["chatws.errors", "chatws.ids", "chatws.server", "chatws.brokers"],
    "chatws.push": ["chatws.errors", "chatws.ids", "chatws.brokers.contract", "chatws.chat", "chatws.sockets"],
    "chatws.auth": [
        "chatws.errors",
        "chatws.ids",
        "chatws.chat.contracts",
        "chatws.database.contract",
        "chatws.server.component",
    ],
    "chatws.demo": ["chatws.errors", "chatws.ids", "chatws.push.client"],
    "chatws.command": [
        "chatws.auth",
        "chatws.brokers.postgres.schema",
        "chatws.configure",
        "chatws.database.migrations",
        "chatws.errors",
        "chatws.ids",
        "chatws.push",
        "chatws.server.client",
        "chatws.service",
        "chatws.startup",
        "chatws.tap",
    ],
    "chatws.health": ["chatws.errors"],
    "chatws.logs": [],
    "chatws.metrics": [
        "chatws.brokers.contract",
        "chatws.database.contract",
        "chatws.errors",
        "chatws.server.pages",
        "chatws.service",  # for types
    ],
    "chatws.place": [
        "chatws.brokers",
        "chatws.config",
        "chatws.endpoints",
        "chatws.startup",
    ],
    "chatws.reload": ["chatws.auth", "chatws.config", "chatws.configure", "chatws.errors", "chatws.startup"],
    "chatws.startup": ["chatws.auth", "chatws.config", "chatws.configure", "chatws.endpoints", "chatws.errors"],
    "chatws.uvloop_reactor": [],
    "chatws.workers": [
        "chatws.auth.secrets",
        "chatws.brokers",
        "chatws.channel",
        "chatws.config",
        "chatws.daemon",
        "chatws.endpoints",
        "chatws.errors",
        "chatws.health",
        "chatws.logs",
        "chatws.metrics",
        "chatws.place",
        "chatws.reload",
        "chatws.server",
        "chatws.service",
        "chatws.startup",
    ],
}

#: Libraries that one room keeps from all the others.
SOLE_IMPORTERS = {
    "autobahn": "chatws.server",
    "txpostgres": "chatws.database",
    "psycopg2": "chatws.database",
    "txredisapi": "chatws.brokers.redis",
    "hiredis": "chatws.brokers.redis",
}

#: What may go without an import rule: here everything meets.
FREE = {"chatws", "chatws.service", "chatws.tap", "chatws.cli"}


class Import(NamedTuple):
    line: int
    name: str
    at_top: bool


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["chatws", *path.relative_to(ROOT).with_suffix("").parts]
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, `from a import b` as both `a` and, where it is one of our modules, `a.b`."""
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


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def test_each_room_imports_only_what_it_may() -> None:
    wrong = []
    for module, path in modules():
        rooms = [room for room in MAY_IMPORT if within(module, room)]
        if not rooms:
            assert module in FREE, f"{module} has no rule here: which rooms may it import?"
            continue
        allowed = [rooms[0], *MAY_IMPORT[rooms[0]]]
        wrong += [
            f"{path.relative_to(ROOT.parent)}:{one.line} {module} may not import {one.name}"
            for one in imports(path)
            if within(one.name, "chatws")
            and one.name != "chatws"
            and not any(within(one.name, room) for room in allowed)
        ]
    assert not wrong, "\n".join(wrong)


def test_some_libraries_are_known_to_one_room_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{one.line} {library} is for {room} alone"
        for module, path in modules()
        for one in imports(path)
        for library, room in SOLE_IMPORTERS.items()
        if within(one.name, library) and not within(module, room)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_errors_need_nothing_but_the_standard_library() -> None:
    names = {one.name.split(".")[0] for one in imports(ROOT / "errors.py")}
    assert names <= sys.stdlib_module_names


def test_nobody_imports_the_reactor_before_it_is_chosen() -> None:
    """`twistd --reactor` has to come first, so the import stands inside a function or nowhere."""
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{one.line}"
        for _, path in modules()
        for one in imports(path)
        if one.at_top and one.name == "twisted.internet.reactor"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_chat_knows_no_sockets() -> None:
    sockets = ("socket", "select", "asyncio", "twisted.internet.protocol", "twisted.internet.endpoints", "twisted.web")
    wrong = [
        f"{path.relative_to(ROOT.parent)}:{one.line} {one.name}"
        for module, path in modules()
        for one in imports(path)
        if within(module, "chatws.chat") and any(within(one.name, name) for name in sockets)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import chatws.errors", ["chatws.errors"]),
        ("from chatws import errors", ["chatws.errors"]),
        ("from chatws.errors import OperatorError", ["chatws.errors"]),
        ("def f():\n    from twisted.internet import reactor", ["twisted.internet.reactor"]),
        ("if TYPE_CHECKING:\n    from chatws.chat import hub", ["chatws.chat.hub"]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert [one.name for one in imports(path)] == found
