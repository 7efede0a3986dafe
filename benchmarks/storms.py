"""Measure the delays of a bystander while 10,000 browsers disconnect and reconnect at once (benchmarks/storm.c).

    python benchmarks/storms.py [--connections N]

Results go to benchmarks/storms.json, and from there into docs/performance.md (benchmarks/report.py).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

from entrants import BUILD, HERE, USERS, WORKLOADS, install
from running import Running

#: Maximum delay of a bystander's event (ms).
LIMIT_MS = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--recover", type=int, default=20, help="events that each connection has missed")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    install(["chatws"])
    running = Running("chatws", WORKLOADS["inbox"], [])
    phases: list[dict[str, Any]] = []
    numbers = map(str, (running.port, running.push, arguments.connections, arguments.recover, USERS))
    try:
        spent = running.cpu()
        with subprocess.Popen(
            ["taskset", "-c", "1", str(BUILD / "storm"), *numbers], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            for line in client.stdout:
                phase = json.loads(line)
                now = running.cpu()
                phase["server_cpu_s"] = now - spent
                spent = now
                phases.append(phase)
                print(
                    f"{phase['phase']:10} {phase['connections']} connections, {phase['events']} events: "
                    f"p50 {phase['p50_ms']} ms, p99 {phase['p99_ms']} ms, longest {phase['max_ms']} ms",
                    file=sys.stderr,
                )
    finally:
        running.end()
    if len(phases) != 3 or phases[-1]["recovered"] != arguments.connections:
        sys.exit("the storm came to a premature end")
    document = {"limit_ms": LIMIT_MS, "recover": arguments.recover, "users": USERS, "phases": phases}
    (HERE / "storms.json").write_text(json.dumps(document, indent=1) + "\n")
    worst = max(phase["max_ms"] for phase in phases)
    if worst > LIMIT_MS:
        print(f"the bystander waited {worst} ms, more than {LIMIT_MS}", file=sys.stderr)


if __name__ == "__main__":
    main()
