"""Run tests/js/echo_*.test.mjs under Node: the tests of chatws/static/chatws-echo.js, with npm's pusher-js and Echo."""

from __future__ import annotations

import os
import re
import subprocess

from tests.npm import ROOT, npm_packages
from tests.requirements import find_program, needs

SCRIPT = ROOT / "chatws" / "static" / "chatws-echo.js"
#: Fewer tests mean that Node has not found the files.
AT_LEAST = 18


@needs("nodejs")
def test_echo_script_under_node_passes_its_tests() -> None:
    """Without the npm packages Node skips the tests that need them."""
    node = find_program("nodejs")
    assert node is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CHATWS_", "NODE_"))}
    packages = npm_packages()
    if packages is not None:
        environment["CHATWS_NPM"] = str(packages)
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "js").glob("echo_*.test.mjs"))
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = f"{done.stdout}\n{done.stderr}"
    counts = {name: int(number) for name, number in re.findall(r"^# (tests|fail|skipped) (\d+)$", done.stdout, re.M)}
    assert done.returncode == 0, output
    assert counts["tests"] >= AT_LEAST, output
    assert counts["fail"] == 0, output
    assert counts["skipped"] == 0 or packages is None, output


def test_echo_script_has_no_imports() -> None:
    """A page loads the file as it is, without a build step."""
    text = SCRIPT.read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    assert not re.search(r"^\s*(import|export)\b|\bimport\(|\brequire\(", code, re.M)
    assert text.startswith("// @ts-check\n")
    assert all(len(line) <= 120 for line in text.splitlines())
