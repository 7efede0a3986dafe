"""ruff and mypy have no complaint: the commands of `make check`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
(RECIPE,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
#: … but for the tests of the imports, which are tests already.
COMMANDS = [line.split() for line in re.findall(r"\$\(VENV\)/bin/(.*)", RECIPE) if "pytest" not in line]


@pytest.mark.parametrize(
    "words",
    # mypy takes as long as some hundred tests
    [pytest.param(words, id=" ".join(words), marks=[pytest.mark.long] * ("mypy" in words)) for words in COMMANDS],
)
def test_linters_report_no_errors(words: list[str]) -> None:
    program = Path(sys.executable).with_name(words[0])
    if not program.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"needs {words[0]}: pip install -e '.[check]'")
    done = subprocess.run([program, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
