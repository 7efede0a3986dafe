"""The Autobahn test suite's fuzzing client against `EchoServer` through the whole stack.

    python -m tests.e2e.conformance [--cases '1.*,2.*'] [--write]

`--write` puts the summary of a run of all cases into docs/reliability.md. The exit status is 1 when a case fails, 0
when none does or when there is nothing to run it with: `wstest` (autobahntestsuite on PyPI) needs a Python 2.7 with
pip, which is looked for in PYTHON27, as `python2.7` on the PATH, and among pyenv's versions. It gets an environment of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.process import free_port
from tests.e2e.wire import until

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = ROOT / ".venv-conformance"
ARTIFACTS = ROOT / "test-artifacts" / "conformance"
REPORT = ROOT / "docs" / "reliability.md"
#: The last virtualenv that supports Python 2.7, and the suite.
VIRTUALENV, SUITE = "virtualenv==20.15.1", "autobahntestsuite==25.10.1"
#: Limits for the largest cases: messages of 16 MiB, and 4 MiB in frames of 64 bytes.
LARGEST = 32 * 1024 * 1024
GROUPS = {
    1: "framing",
    2: "pings and pongs",
    3: "reserved bits",
    4: "opcodes",
    5: "fragmentation",
    6: "UTF-8",
    7: "closing",
    9: "limits and performance",
    10: "chopped writes",
    12: "compression",
    13: "compression, parameters",
}
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

Case = dict[str, Any]


def serve(port: int) -> None:
    """Run `EchoServer` as in the README, with limits for the largest cases."""
    from chatws.server import EchoServer, HttpServer, IoServer, WsServer

    app = WsServer(
        EchoServer(),
        compression=True,
        max_message_size=LARGEST,
        max_fragments=sys.maxsize,
        send_buffer=2 * LARGEST,
        ping_interval=0,
    )
    IoServer.factory(HttpServer(app), port).run()


def find_python27() -> str | None:
    """Find a Python 2.7 with pip."""
    for candidate in _candidates():
        try:
            asked = [candidate, "-c", "import sys, pip; print(sys.version_info[:2] == (2, 7))"]
            if subprocess.run(asked, capture_output=True, timeout=60).stdout.strip() == b"True":
                return candidate
        except (OSError, subprocess.TimeoutExpired):
            continue
    return None


def _candidates() -> Iterator[str]:
    if os.environ.get("PYTHON27"):
        yield os.environ["PYTHON27"]
        return
    yield "python2.7"
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        yield from map(str, sorted(Path(root).glob("versions/2.7*/bin/python2.7")))


def install(python: str) -> Path:
    """The path of `wstest` in its own environment, which is created if needed."""
    wstest = ENVIRONMENT / "bin" / "wstest"
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not wstest.exists():
        tools = ENVIRONMENT / "tools"
        environment = {**os.environ, "PYTHONPATH": str(tools), "PYTHONWARNINGS": "ignore"}
        run([python, *pip, "--target", str(tools), VIRTUALENV], environment)
        run([python, "-m", "virtualenv", "--quiet", str(ENVIRONMENT)], environment)
        run([str(ENVIRONMENT / "bin" / "python"), *pip, SUITE], {**os.environ, "PYTHONWARNINGS": "ignore"})
    return wstest


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def fuzz(wstest: Path, cases: list[str]) -> dict[str, Case]:
    """Run the cases.

    :returns: the report of each case, by its number ("9.1.6").
    """
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    ARTIFACTS.mkdir(parents=True)
    port = free_port()
    with (ARTIFACTS / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.conformance", "--serve", str(port)], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        until(lambda: b"listening on" in (ARTIFACTS / "server.log").read_bytes(), "the server to listen")
        spec = {
            "outdir": str(ARTIFACTS / "report"),
            "servers": [{"agent": "chatws", "url": f"ws://127.0.0.1:{port}/ws"}],
            "cases": cases,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (ARTIFACTS / "spec.json").write_text(json.dumps(spec))
        with (ARTIFACTS / "wstest.log").open("wb") as log:
            subprocess.run(
                [wstest, "--mode", "fuzzingclient", "--spec", ARTIFACTS / "spec.json"],
                stdout=log,
                stderr=log,
                cwd=ARTIFACTS,
                check=True,
            )
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}: {ARTIFACTS / 'server.log'}")
    finally:
        server.terminate()
        server.wait(20)
    log_text = (ARTIFACTS / "server.log").read_text()
    if "Traceback" in log_text:
        sys.exit(f"the server's log has a traceback:\n{log_text}")
    result: dict[str, Case] = json.loads((ARTIFACTS / "report" / "index.json").read_text())["chatws"]
    return result


def failures(result: dict[str, Case]) -> list[str]:
    """The cases that failed, in message or in closing."""
    return [
        f"{number}: {case['behavior']}, closing {case['behaviorClose']}"
        for number, case in sorted(result.items(), key=lambda item: [int(part) for part in item[0].split(".")])
        if case["behavior"] not in GOOD or case["behaviorClose"] not in GOOD
    ]


def summary(result: dict[str, Case]) -> str:
    """The counts in Markdown. They differ between runs only if the results do."""
    by_group: dict[int, Counter[str]] = {}
    for number, case in result.items():
        by_group.setdefault(int(number.split(".")[0]), Counter())[verdict(case)] += 1
    columns = ["OK", "NON-STRICT", "INFORMATIONAL", "FAILED"]
    lines = [
        f"{len(result)} cases of {SUITE.replace('==', ' ')}:",
        "",
        f"| group | {' | '.join(first.lower() for first in columns)} |",
        f"| --- {'| ---: ' * len(columns)}|",
    ]
    total: Counter[str] = Counter()
    for group, counts in sorted(by_group.items()):
        total += counts
        cells = " | ".join(str(counts[column]) for column in columns)
        lines.append(f"| {group} {GROUPS.get(group, '')} | {cells} |")
    lines.append(f"| **all** | {' | '.join(f'**{total[column]}**' for column in columns)} |")
    return "\n".join(lines)


def verdict(case: Case) -> str:
    behavior: str = case["behavior"]
    return behavior if behavior in GOOD and case["behaviorClose"] in GOOD else "FAILED"


def write(text: str) -> None:
    """Put `text` between the markers in docs/reliability.md."""
    page = REPORT.read_text()
    new, count = re.subn(
        r"(<!-- conformance: begin[^>]*-->\n).*?(<!-- conformance: end -->)",
        lambda match: f"{match[1]}{text}\n{match[2]}",
        page,
        flags=re.DOTALL,
    )
    assert count == 1, "docs/reliability.md has lost its markers"
    REPORT.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="*", help="patterns such as '1.*,7.3.2', separated by commas")
    parser.add_argument("--write", action="store_true", help="put the summary into docs/reliability.md")
    parser.add_argument("--serve", type=int, metavar="PORT", help="only run the server")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    python = find_python27()
    if python is None:
        print("conformance: SKIPPED, as there is no Python 2.7 with pip for wstest; name one with PYTHON27=")
        return
    wstest = install(python)
    print("conformance: this takes a quarter of an hour or two", flush=True)
    result = fuzz(wstest, options.cases.split(","))
    print(summary(result))
    if options.write and options.cases == "*":
        write(summary(result))
    failed = failures(result)
    if not result:
        sys.exit("no case was run")
    if failed:
        print("\n".join(failed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
