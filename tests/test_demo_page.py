"""Run tests/js/demo_page.mjs under Node: the tests of the demo page's state and texts."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.requirements import find_program, needs


@needs("nodejs")
def test_demo_page_under_node_passes_its_tests() -> None:
    node = find_program("nodejs")
    assert node is not None
    script = Path(__file__).parent / "js" / "demo_page.mjs"
    done = subprocess.run([node, "--test", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
