"""Measure the processor time of every server under the same load.

    make bench                                everything, storms and report
    python benchmarks/run.py --quick          a first impression: three rounds
    python benchmarks/run.py --nearest        only chatws, its closest competitors, and the floor

For each workload every server is started, pinned to one core, and gets its connections from its own load client
(benchmarks/load.c), pinned to another. Then they take turns. In each round every server gets one burst of messages,
while the others are stopped (SIGSTOP), because some of them poll. Overdue timers, such as pings to thousands of
connections, run before the burst. Otherwise the pings of many seconds would count for the messages of a fifth of a
second. Other load of the machine affects all servers alike, and many rounds cost little. The first round warms up and
is not counted. The result is the median of the others with their quartiles.

Measured is the processor time of the server's threads during the burst, from the kernel's scheduler
(/proc/PID/task/*/schedstat, ns): their own and the kernel's on their behalf. On a busy core the kernel moves some of
its work to another thread (ksoftirqd), whose time on the server's core is added. Results go to
benchmarks/results.json, and from there into docs/performance.md and docs/images/performance.svg (benchmarks/report.py).

The cost of connecting is measured with a new server for each round, and the servers take turns as well.

Peers (benchmarks/entrants.py) are installed into benchmarks/.peers by pip and npm. Ratchet takes part if `php` is
installed and RATCHET_VENDOR names a vendor directory with cboden/ratchet. PHP then needs an extension that gives React
a loop for more than 1,024 files: ev, uv or event. CHATWS_PYTHON names the Python of another environment that has
chatws, to compare the two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from contacts import contact_hellos
from entrants import (
    BUILD,
    HERE,
    MAIN,
    NEAREST,
    OTHER_PYTHON,
    PAD,
    SERVERS,
    TOGETHER,
    USERS,
    WORKLOADS,
    has_ratchet,
    install,
    takes_part,
    versions,
)
from running import PIN_CLIENT, QUIET_SECONDS, Running

#: Seconds of one server's part of a round. A slower server gets fewer messages.
SLOW_SECONDS = 3.0


class Contestant:
    """A server with its connections, and the client that holds them.

    :ivar connect_us: processor time of the server per connection.
    :ivar idle_kib: its memory per connection.
    """

    def __init__(self, key: str, name: str, options: list[str]) -> None:
        self.key = key
        self.name = name
        self.workload = workload = WORKLOADS[key]
        self.running = Running(name, workload, options)
        self.client: subprocess.Popen[str] | None = None
        self.connect_us = self.idle_kib = 0.0
        self.messages = workload.messages

    def connect(self) -> None:
        """Open the connections, authenticate and subscribe."""
        workload, running = self.workload, self.running
        server = running.server
        group = server.subscribe if workload.per else server.subscribe.replace("%g", "1")
        hellos = [*server.prefix, *(['{"type":"auth","user_id":%u}'] if not server.prefix else []), group]
        conversation = "%g" if workload.per else "1"
        line = f'{{"event":"new_message","data":{{"conversation_id":{conversation},"ts":%T,"content":"{PAD}"}}}}'
        publisher = f"tcp:{running.push}" if server.publisher == "tcp" else "ws"
        environment = dict(os.environ, GATE="1", SPIN="1", MATCH="new_message", SETTLE="1", USERS=str(USERS))
        environment["HELLO_PAUSE"] = "2" if server.prefix else "0.3"
        if workload.per:
            environment["PER"] = str(workload.per)
        if workload.contacts:
            hellos = []
            environment |= contact_hellos(workload, Path(running.directory.name))
        if workload.deflate:
            environment["DEFLATE"] = "1"
        numbers = map(str, (running.port, server.path, workload.connections, 0, workload.window))
        cpu, resident = running.cpu(), running.resident()
        self.client = subprocess.Popen(
            [*PIN_CLIENT, str(BUILD / "load"), "127.0.0.1", *numbers, *hellos, "--", publisher, line],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.client.stdout is not None
        if json.loads(self.client.stdout.readline() or "{}").get("ready", 0) < workload.connections:
            raise RuntimeError("the client could not connect")
        self.connect_us = (running.cpu() - cpu) / workload.connections * 1e6
        self.idle_kib = (running.resident() - resident) / workload.connections

    def burst(self, messages: int) -> dict[str, float]:
        """Publish, and wait until all messages are received.

        :returns: `cpu_us` per delivery or message, its part `user_us` in user mode, and the client's results.
        """
        assert self.client is not None
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        before, own = self.running.cpu(), self.running.user()
        self.client.stdin.write(f"{messages}\n")
        self.client.stdin.flush()
        seen = json.loads(self.client.stdout.readline())
        spent, own = self.running.cpu() - before, self.running.user() - own
        if seen["lost"] or seen["errors"]:
            raise RuntimeError(f"{seen['lost']} frames lost, {seen['errors']} errors")
        deliveries = messages * (self.workload.per or self.workload.connections)
        units = deliveries if self.workload.unit == "delivery" else messages
        return {
            "cpu_us": spent / units * 1e6,
            "user_us": own / units * 1e6,
            "bytes": seen["bytes"] / deliveries,
            **{key: seen[key] for key in ("p50_ms", "p99_ms", "per_s", "wall_s", "client_us_per_frame")},
        }

    def warm_up(self) -> None:
        """Run a burst that does not count, and reduce the number of messages of a slow server."""
        if self.name.startswith("chatws"):
            self.running.await_quiet(QUIET_SECONDS)
        first = self.burst(max(self.workload.messages // 10, self.workload.window))
        seconds = first["wall_s"] * 10
        if seconds > SLOW_SECONDS:
            self.messages = max(int(self.messages * SLOW_SECONDS / seconds), 3 * self.workload.window)
        self.burst(max(self.messages // 2, self.workload.window))

    def end(self) -> None:
        """Stop both."""
        if self.client is not None:
            self.client.kill()
            self.client.wait()
        self.running.end()


def compete(
    entrants: list[tuple[str, str]], rounds: int, options: list[str], repetition: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Start every server with its connections, then let them take turns.

    :param entrants: pairs of a workload and a server.
    :returns: by workload and server, the results of `burst` in each round, with `connect_us` and `idle_kib`.
    """
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    order = random.Random(f"{entrants[0][0]} {repetition}")
    contestants: list[Contestant] = []
    try:
        for key, name in entrants:
            contestants.append(Contestant(key, name, options))
            contestants[-1].running.stop()
        for step in ("connect", "warm_up", *["burst"] * rounds):
            for contestant in list(contestants):
                try:
                    with contestant.running.turn():
                        if step == "burst":
                            measured = contestant.burst(contestant.messages)
                            fixed = {"connect_us": contestant.connect_us, "idle_kib": contestant.idle_kib}
                            results.setdefault(contestant.key, {}).setdefault(contestant.name, []).append(
                                measured | fixed
                            )
                        else:
                            getattr(contestant, step)()
                except (RuntimeError, json.JSONDecodeError, OSError) as error:
                    print(f"{contestant.key:10} {contestant.name:12} failed at {step}: {error}", file=sys.stderr)
                    contestant.end()
                    contestants.remove(contestant)
            last = contestants[-1:]
            order.shuffle(contestants)  # so that no server always follows the same one
            if contestants[:1] == last:
                contestants.append(contestants.pop(0))  # nor itself, with warm processor caches
    finally:
        for contestant in contestants:
            contestant.end()
    return results


def come_in(
    names: list[str], rounds: int, options: list[str], repetition: int
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measure connecting: a new server each time, one after the other."""
    results: dict[str, list[dict[str, float]]] = {}
    order = random.Random(f"connect {repetition}")
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            contestant = Contestant("connect", name, options)
            try:
                contestant.connect()
            except (RuntimeError, json.JSONDecodeError, OSError) as error:
                print(f"connect {name:12} failed: {error}", file=sys.stderr)
            else:
                measured = {
                    "cpu_us": contestant.connect_us,
                    "connect_us": contestant.connect_us,
                    "idle_kib": contestant.idle_kib,
                }
                results.setdefault(name, []).append(measured)
            finally:
                contestant.end()
    return {"connect": results}


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """The medians of some rounds; `cpu_us` with its quartiles."""
    medians = {field: statistics.median(run[field] for run in runs) for field in runs[0]}
    costs = [run["cpu_us"] for run in runs]
    low, _, high = statistics.quantiles(costs, method="inclusive") if len(costs) > 1 else costs * 3
    return medians | {"cpu_us_low": low, "cpu_us_high": high}


def repeat(
    names: list[str],
    keys: list[str],
    number: int,
    arguments: argparse.Namespace,
    results: dict[str, dict[str, list[dict[str, float]]]],
) -> None:
    """Start all servers once for each workload, and add their costs to `results`."""
    rounds = 3 if arguments.quick else arguments.rounds
    competitions = [[key] for key in keys if not any(key in group for group in TOGETHER)]
    competitions += [[key for key in keys if key in group] for group in TOGETHER]
    for together in filter(None, competitions):
        entrants = [(key, name) for key in together for name in names if takes_part(name, key)]
        if together == ["connect"]:
            result = come_in([name for _, name in entrants], rounds // 3 or 1, arguments.chatws_option, number)
        else:
            result = compete(entrants, rounds, arguments.chatws_option, number)
        for key, by_server in result.items():
            for name, runs in by_server.items():
                results.setdefault(key, {}).setdefault(name, []).extend(runs)
                figures = summary(runs)
                print(
                    f"{number + 1} {key:14} {name:14} {figures['cpu_us']:9.2f} us/{WORKLOADS[key].unit}  "
                    f"({figures['cpu_us_low']:.2f} to {figures['cpu_us_high']:.2f})  "
                    f"connect {figures['connect_us']:6.0f} us  "
                    f"idle {figures['idle_kib']:5.1f} KiB  p99 {figures.get('p99_ms', '-')} ms",
                    file=sys.stderr,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=None)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=2, help="repetitions, each with a new start of everything")
    parser.add_argument("--minutes", type=float, default=16, help="start no repetition that would take longer")
    parser.add_argument("--again", type=int, default=4, help="additional starts of chatws and its closest competitors")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nearest", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    parser.add_argument("--add", action="store_true", help="keep the other workloads of the output file")
    parser.add_argument("--chatws-option", action="append", default=[], help="passed on to twistd chatws")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the server, one for its clients")
    names = (
        arguments.only
        or (arguments.nearest and list(NEAREST))
        or [name for name in SERVERS if not name.startswith("ratchet") or has_ratchet()]
    )
    for name, variable in (("ratchet", "RATCHET_VENDOR"), (OTHER_PYTHON, "CHATWS_PYTHON")):
        if not arguments.only and not arguments.nearest and variable not in os.environ:
            print(f"{SERVERS[name].title} is left out: {variable} is not set", file=sys.stderr)
    install(names)
    began = time.monotonic()
    wanted = arguments.workloads or ((*MAIN, "connect") if arguments.nearest else WORKLOADS)
    possible = [key for key in wanted if WORKLOADS[key].connections + 100 <= files]
    if len(possible) < len(wanted):
        print(f"only {files} files may be open: larger workloads are left out", file=sys.stderr)
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    number = 0
    while number < (1 if arguments.quick else arguments.repeat):
        elapsed = time.monotonic() - began
        if number and elapsed * (number + 1) / number > arguments.minutes * 60:
            print(f"{number} repetitions took {elapsed / 60:.0f} minutes: enough", file=sys.stderr)
            break
        repeat(names, possible, number, arguments, results)
        number += 1
    # memory layout varies per process start, so only several starts average it out
    nearest = [name for name in names if name in NEAREST]
    close = [key for key in possible if key in (*MAIN, "connect", *itertools.chain(*TOGETHER))]
    for more in range(0 if arguments.quick else arguments.again):
        repeat(nearest, close, number + more, arguments, results)
    measured = {key: {name: summary(runs) for name, runs in by_server.items()} for key, by_server in results.items()}
    before = json.loads(arguments.output.read_text()) if arguments.add else {"versions": versions()}
    document = {
        "versions": before["versions"],
        "users": USERS,
        "units": {key: workload.unit for key, workload in WORKLOADS.items()},
        "titles": {
            "servers": {name: server.title for name, server in SERVERS.items()},
            "workloads": {key: workload.title for key, workload in WORKLOADS.items()},
        },
        "medians": before.get("medians", {}) | measured,
        "runs": before.get("runs", {}) | results,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
