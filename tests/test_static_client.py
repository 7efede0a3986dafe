"""Run tests/js/client_*.test.mjs under Node: the tests of chatws/static/websocket-client.js.

Manually, with one seed of the random test: `CHATWS_SEED=7 node --test tests/js/client_random.test.mjs`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.requirements import find_program, needs

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "chatws" / "static" / "websocket-client.js"
#: Fewer tests mean that Node has not found the files.
AT_LEAST = 240


@needs("nodejs")
def test_client_library_under_node_passes_its_tests() -> None:
    node = find_program("nodejs")
    assert node is not None
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "js").glob("client_*.test.mjs"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CHATWS_", "NODE_"))}
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", *files],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    output = f"{done.stdout}\n{done.stderr}"
    counts = {name: int(number) for name, number in re.findall(r"^# (tests|pass|fail) (\d+)$", done.stdout, re.M)}
    assert done.returncode == 0, output
    assert counts.get("fail") == 0, output
    assert counts["pass"] == counts["tests"] >= AT_LEAST, output


def test_client_library_has_no_imports() -> None:
    text = CLIENT.read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    assert not re.search(r"^\s*(import|export)\b|\bimport\(|\brequire\(", code, re.M)
    assert all(len(line) <= 120 for line in text.splitlines())
