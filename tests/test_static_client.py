"""chatws/static/websocket-client.js under Node; its tests are tests/js/client_*.test.mjs.

By hand, with one seed of the random test: `CHATWS_SEED=7 node --test tests/js/client_random.test.mjs`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.requirements import find_program, needs

ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "chatws" / "static" / "websocket-client.js"
#: Fewer than these mean that files were not found, not that they passed.
AT_LEAST = 140


@needs("nodejs")
def test_the_client_keeps_its_contract_under_node() -> None:
    node = find_program("nodejs")
    assert node is not None
    files = sorted(str(one.relative_to(ROOT)) for one in (ROOT / "tests" / "js").glob("client_*.test.mjs"))
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
    said = f"{done.stdout}\n{done.stderr}"
    counts = {name: int(number) for name, number in re.findall(r"^# (tests|pass|fail) (\d+)$", done.stdout, re.M)}
    assert done.returncode == 0, said
    assert counts.get("fail") == 0, said
    assert counts["pass"] == counts["tests"] >= AT_LEAST, said


def test_the_client_needs_no_build_step_and_no_other_file() -> None:
    text = CLIENT.read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    assert not re.search(r"^\s*(import|export)\b|\bimport\(|\brequire\(", code, re.M)
    assert all(len(line) <= 120 for line in text.splitlines())
