"""Compare one process with `--workers 2` under the same load: processor time of each process, and throughput.

    python benchmarks/workers.py                a minute; writes its table into docs/operations.md
    python benchmarks/workers.py --quick        a first impression, which writes nothing

Nothing is pinned to a core. The connections of both servers stay open, and the two take turns, so that other load of
the machine affects both. The load client is benchmarks/load.c. Measured is the processor time of every process, from
the kernel's scheduler. Deliveries per second are measured on this machine as it is, client included. The rate with a
core for every process is calculated from the busiest process. As root, the rate is also measured on slow cores: the
kernel's cgroups limit every process of the servers, not the client, to a fifth of a core, so that two workers, a
supervisor and the client fit on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from entrants import BUILD, HERE, PAD, USERS, Workload, install
from figures import table
from running import QUIET_SECONDS, environment_without_settings, free_ports

DOCUMENT = HERE.parent / "docs" / "operations.md"
#: Slow cores: the share of a core, and the period of the limit in µs.
SLOW = 0.2
SLOW_PERIOD = 10_000
MARKS = ("<!-- workers: measured -->\n", "<!-- end -->")
COUNTS = (1, 2)
WORKLOADS = (
    Workload("500 connections in one room, one message at a time", 500, 0, 150, 1, "delivery"),
    Workload("the same, 16 outstanding", 500, 0, 800, 16, "delivery"),
    Workload("2,000 connections, 3 recipients a message, 16 outstanding", 2000, 3, 4000, 16, "message"),
)


def _cpu(pid: int) -> float:
    """Seconds of processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Server:
    """`twistd chatws`, and a load client with its connections.

    :ivar processes: ids by role: "one", or "supervisor" and "worker 0" …
    """

    def __init__(self, workers: int, workload: Workload) -> None:
        self.workload = workload
        self.directory = tempfile.TemporaryDirectory()
        port, push = free_ports()
        self._metrics, _ = free_ports()
        words = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "chatws"]
        words += [f"--port={port}", f"--push-port={push}", "--max-connections-per-user=0", "--auth-deadline=0"]
        words += [f"--metrics-port={self._metrics}"]
        log = Path(self.directory.name) / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*words, f"--workers={workers}"], cwd=self.directory.name, env=environment_without_settings(),
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._await(log, "listening for browsers" if workers == 1 else f"{workers} workers listen")
        self.processes = {"one": self.process.pid}
        if workers > 1:
            results = re.findall(r"worker (\d+) serves, as process (\d+)", log.read_text())
            self.processes = {"supervisor": self.process.pid, **{f"worker {name}": int(pid) for name, pid in results}}
        self._groups: list[Path] = []
        self.client = self._connect(port, push)

    def _await(self, log: Path, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)

    def _connect(self, port: int, push: int) -> subprocess.Popen[str]:
        workload = self.workload
        group = "%g" if workload.per else "1"
        hellos = ['{"type":"auth","user_id":%u}', f'{{"type":"subscribe","conversation_id":{group}}}']
        line = f'{{"event":"new_message","data":{{"conversation_id":{group},"ts":%T,"content":"{PAD}"}}}}'
        environment = dict(os.environ, GATE="1", MATCH="new_message", SETTLE="1", USERS=str(USERS))
        if workload.per:
            environment["PER"] = str(workload.per)
        numbers = map(str, (port, "/ws", workload.connections, 0, workload.window))
        client = subprocess.Popen(
            [str(BUILD / "load"), "127.0.0.1", *numbers, *hellos, "--", f"tcp:{push}", line],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert client.stdout is not None
        if json.loads(client.stdout.readline() or "{}").get("ready", 0) < workload.connections:
            raise RuntimeError("the client could not connect")
        return client

    def cpu(self) -> dict[str, float]:
        """Processor time in seconds, by role."""
        return {role: _cpu(pid) for role, pid in self.processes.items()}

    def slow_down(self) -> bool:
        """Limit each process to `SLOW` of a core. Returns whether that is possible."""
        try:
            for pid in self.processes.values():
                group = _cgroup_root() / f"chatws-{pid}"
                group.mkdir()
                self._groups.append(group)
                if (group / "cpu.max").exists():
                    (group / "cpu.max").write_text(f"{round(SLOW_PERIOD * SLOW)} {SLOW_PERIOD}")
                else:
                    (group / "cpu.cfs_period_us").write_text(str(SLOW_PERIOD))
                    (group / "cpu.cfs_quota_us").write_text(str(round(SLOW_PERIOD * SLOW)))
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            print(f"no slow cores: {error}")
            return False
        return True

    def await_quiet(self) -> None:
        """Wait until all have subscribed and the server is idle."""
        deadline = time.monotonic() + 3 * QUIET_SECONDS
        while self._subscriptions() < self.workload.connections:
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {self._subscriptions()} connections have subscribed")
            time.sleep(0.2)
        while time.monotonic() < deadline:
            before = sum(self.cpu().values())
            time.sleep(0.5)
            if sum(self.cpu().values()) - before < 0.01:
                break

    def _subscriptions(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as response:
            text = response.read().decode()
        return sum(float(value) for value in re.findall(r"^chatws_subscriptions(?:{.*?})? (.*)$", text, re.M))

    def burst(self, messages: int) -> dict[str, Any]:
        """Publish, and wait until all messages are received.

        :returns: `cpu_us` of each process per delivery or message, `per_s` (deliveries or messages), `client_us`.
        """
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        before = self.cpu()
        self.client.stdin.write(f"{messages}\n")
        self.client.stdin.flush()
        seen = json.loads(self.client.stdout.readline())
        after = self.cpu()
        if seen["lost"] or seen["errors"]:
            raise RuntimeError(f"{seen['lost']} frames lost, {seen['errors']} errors")
        recipients = self.workload.per or self.workload.connections
        units = messages * (recipients if self.workload.unit == "delivery" else 1)
        deliveries = messages * recipients
        return {
            "cpu_us": {role: (after[role] - before[role]) / units * 1e6 for role in before},
            "client_us": seen["client_us_per_frame"] * deliveries / units,
            "per_s": units / seen["wall_s"],
            "p50_ms": seen["p50_ms"],
        }

    def end(self) -> None:
        """Stop both. The workers end with their supervisor."""
        self.client.kill()
        self.client.wait()
        workers = [pid for pid in self.processes.values() if pid != self.process.pid]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pid in workers:
            while Path(f"/proc/{pid}/task").exists() and _is_alive(pid):
                time.sleep(0.05)
        for group in self._groups:
            group.rmdir()
        self.directory.cleanup()


def _cgroup_root() -> Path:
    """The directory of the CPU controller: cgroups version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    return root / "cpu" if (root / "cpu" / "cgroup.procs").exists() else root


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def measure(workload: Workload, rounds: int) -> dict[int, dict[str, Any]]:
    """The medians of some rounds, by the number of workers."""
    servers: dict[int, Server] = {}
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in COUNTS}
    slow: dict[int, list[float]] = {count: [] for count in COUNTS}
    try:
        for count in COUNTS:
            servers[count] = Server(count, workload)
        for server in servers.values():
            server.await_quiet()
            server.burst(max(workload.messages // 10, workload.window))
        for number in range(rounds):
            for count in COUNTS if number % 2 else reversed(COUNTS):
                runs[count].append(servers[count].burst(workload.messages))
        if all(server.slow_down() for server in servers.values()):
            for _ in range(max(1, rounds // 3)):
                for count in COUNTS:
                    slow[count].append(servers[count].burst(workload.messages // 4)["per_s"])
    finally:
        for server in servers.values():
            server.end()
    middle = {count: _middle(results) for count, results in runs.items()}
    for count, figures in middle.items():
        figures["slow_per_s"] = statistics.median(slow[count]) if slow[count] else None
    return middle


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    first = runs[0]
    medians: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in first if key != "cpu_us"}
    medians["cpu_us"] = {role: statistics.median(run["cpu_us"][role] for run in runs) for role in first["cpu_us"]}
    return medians


def report(results: list[tuple[Workload, dict[int, dict[str, Any]]]]) -> str:
    """The table, and the ratios below it."""
    rows, ratios = [], []
    for workload, by_count in results:
        for count, result in by_count.items():
            costs = result["cpu_us"]
            workers = [cost for role, cost in costs.items() if role != "supervisor"]
            rows.append(
                [
                    workload.title if count == 1 else "",
                    "one process" if count == 1 else f"`--workers {count}`",
                    f"{result['p50_ms']:.1f}",
                    " + ".join(f"{cost:.2f}" for cost in workers),
                    f"{costs['supervisor']:.2f}" if "supervisor" in costs else "",
                    f"{result['client_us']:.2f}",
                    f"{result['per_s']:,.0f}",
                    "" if result["slow_per_s"] is None else f"{result['slow_per_s']:,.0f}",
                    f"{1e6 / max(costs.values()):,.0f}",
                ]
            )
        alone, together = (by_count[count] for count in COUNTS)
        measured = together["per_s"] / alone["per_s"]
        possible = max(alone["cpu_us"].values()) / max(together["cpu_us"].values())
        total = sum(together["cpu_us"].values()) / sum(alone["cpu_us"].values())
        slowly = ""
        if alone["slow_per_s"] is not None:
            slowly = f"{together['slow_per_s'] / alone['slow_per_s']:.2f} times on a slow core each (measured) and "
        ratios.append(
            f"- {workload.title}: {measured:.2f} times the rate of one process on the {_cores()} cores of the "
            f"measurement. It is {slowly}{possible:.2f} times with a core for each (calculated). The total processor "
            f"time is {total:.2f} times that of one process."
        )
    head = ["µs per delivery (third workload: per message)", "", "p50, ms", "workers", "supervisor", "load client"]
    head += ["a second, measured", f"on {SLOW:g} of a core for each process", "with a core for each process"]
    return "\n".join([table(head, rows), "", *ratios])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    install([])
    text = report([(workload, measure(workload, 3 if arguments.quick else arguments.rounds)) for workload in WORKLOADS])
    print(text)
    if not arguments.quick:
        document = DOCUMENT.read_text(encoding="utf-8")
        start = document.index(MARKS[0]) + len(MARKS[0])
        end = document.index(MARKS[1], start)
        DOCUMENT.write_text(document[:start] + text + "\n" + document[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
