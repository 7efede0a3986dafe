"""The map of packages in docs/contributing.md is that of the tree, and the pages name modules and tests that exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import chatws
from tests.prose import documents

PACKAGE = Path(chatws.__file__).parent
ROOT = PACKAGE.parent

CONTRIBUTING = ROOT / "docs" / "contributing.md"
PAGES = [ROOT / "docs" / "architecture.md", *sorted((ROOT / "docs" / "adr").glob("*.md"))]


def map_of_packages(text: str) -> set[str]:
    """The paths below chatws/ in the map: packages end with a slash, modules with `.py`.

    A line has one name or several, two blanks apart, and then a description. Two blanks of indentation are a level.
    """
    result: set[str] = set()
    parents: list[str] = []
    for line in text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = []
        for word in re.split(r"\s{2,}", line.strip()):
            if not re.fullmatch(r"\w+(/|\.py)", word):
                break
            names.append(word)
        del parents[depth:]
        result |= {"".join([*parents, name]) for name in names}
        parents.append(names[0])
    return {path.removeprefix("chatws/") for path in result} - {""}


def tree_of_packages() -> set[str]:
    """Every folder below chatws/, every package below those, and the modules beside them."""
    folders = {path.name + "/" for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.*"))}
    packages = {str(path.parent.relative_to(PACKAGE)) + "/" for path in PACKAGE.rglob("*/__init__.py")}
    modules = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    return (folders | packages | modules) - {"__pycache__/", "./"}


def test_map_of_packages_is_that_of_the_tree() -> None:
    (block,) = re.findall(r"^```\n(chatws/\n.*?)^```", CONTRIBUTING.read_text(encoding="utf-8"), re.M | re.S)
    assert map_of_packages(block) == tree_of_packages()


def test_map_with_levels_is_read() -> None:
    text = (
        "chatws/\n  errors.py  ids.py    for all\n  brokers/    history\n    redis/  sqlite/    engines\n  cli/    x\n"
    )
    expected = {"errors.py", "ids.py", "brokers/", "brokers/redis/", "brokers/sqlite/", "cli/"}
    assert map_of_packages(text) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda path: os.path.relpath(path, ROOT))
def test_modules_that_a_page_names_exist(page: Path) -> None:
    folders = "|".join(sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
    named = re.findall(rf"`(?:chatws/)?((?:{folders})/[\w/]*)(?:/\*\.\w+)?`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists())]
    assert missing == []


@pytest.mark.parametrize("page", documents(), ids=lambda path: os.path.relpath(path, ROOT))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"\btests/[\w/*]+\.(?:py|mjs)", page.read_text(encoding="utf-8"))
    assert [name for name in named if not list(ROOT.glob(name))] == []
