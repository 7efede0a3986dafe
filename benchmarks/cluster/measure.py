"""Measure latency, throughput and cost of clusters under the same load, one after the other.

    make bench-cluster                              everything, and the report: twelve minutes at most
    python benchmarks/cluster/measure.py --quick    a first impression: shorter phases, one repetition
    python benchmarks/cluster/measure.py --only redis-3 socketio-3

Each cluster is started from an empty state: the engine, then its nodes, all on the loopback. Nothing is pinned to a
core: the engine, up to three nodes and the load client (benchmarks/cluster/flow.c) share the machine. The phases:

    idle     nothing happens
    quiet    200 events a second pushed to node 1; a browser on each node
    busy     six backends, spread over all nodes, each with up to 64 lines unanswered; a browser on each node
    small    four backends on each node but the last, each waiting for every answer; no browser, so that the
             last node only reads events
    flood    the same, each backend with up to 64 lines unanswered

Results go to benchmarks/cluster/results.json, and from there into docs/scaling.md (benchmarks/cluster/report.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from engines import (
    DEADLINE,
    ENGINES,
    POSTGRES_SETTINGS,
    REDIS_SETTINGS,
    Engine,
    Postgres,
    Running,
    disk_sync_ms,
    free_ports,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from entrants import BUILD, PAD, PEERS  # noqa: E402
from running import environment_without_settings  # noqa: E402
from scaling import QUIET  # noqa: E402

NODE_PEERS = ("socket.io", "@socket.io/redis-adapter", "@socket.io/redis-streams-adapter", "redis")
FLOW = BUILD / "flow"
LINE = f'{{"event":"new_message","data":{{"conversation_id":1,"ts":%T,"seq":%S,"content":"{PAD}"}},"ack":true}}'
IDLE_SECONDS = 1.0
#: Versions of the engines that have been started.
ENGINE_VERSIONS: dict[str, str] = {}
#: For the cost of an idle connection: number of connections, and seconds between pings.
STAYING = 8_000
PING_INTERVAL = 2


@dataclass(frozen=True)
class Phase:
    """A phase of the load.

    :ivar rate: events per second. 0: as many as possible.
    :ivar window: unanswered lines of a backend.
    :ivar backends: number of backends.
    :ivar where: nodes of the backends: "first", "all" together, or "each" but the last.
    :ivar browsers: browsers of each node.
    """

    seconds: float
    rate: int
    window: int
    backends: int
    where: str
    browsers: int = 1


PHASES = {
    "warm": Phase(0.6, 0, 64, 6, "all"),  # not counted: for just-in-time compilers
    "quiet": Phase(3, 200, 64, 1, "first"),
    "busy": Phase(2.5, 0, 64, 6, "all"),
    "small": Phase(1.5, 0, 1, 4, "each", 0),
    "flood": Phase(1.5, 0, 64, 4, "each", 0),
}
#: Phases for the calculation (benchmarks/cluster/model.py), measured only on the clusters that it uses.
FOR_THE_MODEL = ("small", "flood")


@dataclass(frozen=True)
class Cluster:
    """A cluster.

    :ivar engine: the shared engine. Empty if the history is the node's own.
    :ivar workers: processes that share the ports of one node, under a supervisor with the history.
    :ivar in_model: whether the calculation uses it.
    """

    title: str
    engine: str
    nodes: int
    kind: str = "chatws"
    options: tuple[str, ...] = ()
    workers: int = 1
    in_model: bool = True


def _clusters() -> dict[str, Cluster]:
    results = {
        "memory-1": Cluster("chatws, memory", "", 1),
        "sqlite-1": Cluster("chatws, sqlite", "", 1, options=("--broker=sqlite:///log.db",)),
        "sqlite-durable-1": Cluster(
            "chatws, sqlite, synchronous=full",
            "",
            1,
            options=("--broker=sqlite:///log.db", "--sqlite-synchronous=full"),
            in_model=False,
        ),
    }
    for broker, option in (("memory", "memory"), ("sqlite", "sqlite:///log.db")):
        results[f"workers-{broker}-2"] = Cluster(
            f"chatws, 2 workers, {broker}",
            "",
            1,
            options=("--workers=2", f"--broker={option}"),
            workers=2,
            in_model=False,
        )
    for engine, title in (("redis", "Redis"), ("postgresql", "PostgreSQL")):
        for nodes in (1, 2, 3):
            results[f"{engine}-{nodes}"] = Cluster(f"chatws, {title}", engine, nodes)
    for nodes in (1, 2, 3):
        results[f"socketio-{nodes}"] = Cluster("Socket.IO, Redis adapter", "redis", nodes, "redis", in_model=False)
    results["socketio-streams-2"] = Cluster("Socket.IO, Redis Streams adapter", "redis", 2, "streams", in_model=False)
    return results


CLUSTERS = _clusters()


def install() -> None:
    """Build the load client and install Socket.IO."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source = HERE / "flow.c"
    if not FLOW.exists() or FLOW.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["cc", "-O2", "-Wall", "-o", str(FLOW), str(source), "-lm"], check=True)
    place = PEERS / "cluster"
    if not all((place / "node_modules" / name).exists() for name in NODE_PEERS):
        place.mkdir(exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(place), *NODE_PEERS], check=True)
    shutil.copy(HERE / "socketio_node.mjs", place)  # Node searches modules beside the script


class Node:
    """A process that browsers and backends connect to, or a supervisor with several."""

    def __init__(self, cluster: Cluster, url: str, options: tuple[str, ...] = ()) -> None:
        self.port, self.push = free_ports(2)
        if cluster.kind == "chatws":
            twistd = str(Path(sys.executable).with_name("twistd"))
            command = [twistd, "-n", "--pidfile=", "chatws", f"--port={self.port}", f"--push-port={self.push}"]
            command += [*cluster.options, *options, *([f"--broker={url}"] if url else [])]
        else:
            command = ["node", str(PEERS / "cluster" / "socketio_node.mjs"), str(self.port), str(self.push), url]
            command.append(cluster.kind)
        self.running = Running(command, [], env=dict(environment_without_settings(), NODE_ENV="production"))

    def await_ready(self, workers: int = 1) -> None:
        """Wait until it accepts connections and has its workers."""
        self.running.await_ports([self.port, self.push])
        deadline = time.monotonic() + DEADLINE
        while workers > 1 and len(self.running.parts()) <= workers:
            if time.monotonic() > deadline:
                raise RuntimeError(f"fewer than {workers} workers")
            time.sleep(0.05)


@contextlib.contextmanager
def started(cluster: Cluster) -> Iterator[tuple[list[Node], Engine | None]]:
    """Start the engine and its nodes, and stop them after the block."""
    with contextlib.ExitStack() as stack:
        engine = ENGINES[cluster.engine]() if cluster.engine else None
        url = ""
        if engine is not None:
            stack.callback(engine.end)
            ENGINE_VERSIONS[cluster.engine] = engine.version
            url = engine.url
            if isinstance(engine, Postgres):
                upgrade = [str(Path(sys.executable).with_name("chatws")), "db", "upgrade", "--broker", url]
                subprocess.run(upgrade, check=True, capture_output=True, env=environment_without_settings())
        nodes = []
        for _ in range(cluster.nodes):
            node = Node(cluster, url)
            stack.callback(node.running.end)
            nodes.append(node)
        for node in nodes:
            node.await_ready(cluster.workers)
        yield nodes, engine


class Flow:
    """The load client, once its listeners have subscribed."""

    def __init__(self, kind: str, places: str, seconds: float, rate: int = 0, window: int = 1) -> None:
        if kind == "chatws":
            path, hellos = "/ws", ['{"type":"auth","user_id":%u}', '{"type":"subscribe","conversation_id":1}']
        else:
            path = "/socket.io/?EIO=4&transport=websocket"
            hellos = ["40", '42["subscribe",{"conversation_id":1}]']
        self._process = subprocess.Popen(
            [str(FLOW), *map(str, (seconds, rate, window)), path, places, *hellos, "--", LINE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"the load client: {self._process.stderr.read()[-300:]}")
        results: dict[str, Any] = json.loads(line)
        return results

    def run(self) -> dict[str, Any]:
        """Start the phase, and wait for the results."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seen = self._read()
        self.end()
        return seen

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _places(nodes: list[Node], phase: Phase, workers: int) -> str:
    """Arguments of flow: each node's ports, and its numbers of listeners and backends."""
    words = []
    for index, node in enumerate(nodes):
        if phase.where == "all":
            backends = phase.backends // len(nodes)
        elif phase.where == "each":
            backends = phase.backends if index < max(1, len(nodes) - 1) else 0
        else:
            backends = phase.backends if index == 0 else 0
        listeners = phase.browsers * workers
        words.append(f"{node.port}:{node.push}:{listeners}:{backends}")
    return ",".join(words)


def _processes(cluster: Cluster, nodes: list[Node], engine: Engine | None) -> dict[str, Any]:
    """Processes by name: node1 … and engine, which is the supervisor of workers."""
    if cluster.workers > 1:
        supervisor, *workers = nodes[0].running.parts()
        if len(workers) != cluster.workers:
            raise RuntimeError(f"{len(workers)} children instead of {cluster.workers} workers")
        return {f"node{index + 1}": worker for index, worker in enumerate(workers)} | {"engine": supervisor}
    processes: dict[str, Any] = {f"node{index + 1}": node.running for index, node in enumerate(nodes)}
    return processes if engine is None else processes | {"engine": engine}


def _await_quiet(processes: dict[str, Any]) -> None:
    """Wait until the processes are idle, for up to five seconds."""
    for _ in range(17):
        before = sum(process.cpu() for process in processes.values())
        time.sleep(0.3)
        if sum(process.cpu() for process in processes.values()) - before < 0.01:
            break


def measure(cluster: Cluster, scale: float = 1.0) -> dict[str, Any]:
    """Run one cluster through all phases.

    :param scale: length of the phases, as a share of the full length.
    :returns: by phase the client's results, and `cpu_us` per event by process; `idle_cpu`, shares of a core;
        `resident_kib`; per event what the engine received, sent and stored, in bytes, and how many batches it took.
    :raises RuntimeError: something failed, was lost or came twice.
    """
    results: dict[str, Any] = {}
    with started(cluster) as (nodes, engine):
        processes = _processes(cluster, nodes, engine)
        _await_quiet(processes)
        before = {name: process.cpu() for name, process in processes.items()}
        time.sleep(IDLE_SECONDS)
        results["idle_cpu"] = {
            name: (process.cpu() - before[name]) / IDLE_SECONDS for name, process in processes.items()
        }
        for name, phase in PHASES.items():
            if name in FOR_THE_MODEL and not cluster.in_model:
                continue
            flow = Flow(
                cluster.kind, _places(nodes, phase, cluster.workers), phase.seconds * scale, phase.rate, phase.window
            )
            try:
                traffic = engine.traffic() if engine is not None else (0, 0)
                stored = engine.stored() if engine is not None else 0
                batches = engine.batches() if engine is not None else 0
                logged = engine.logged() if isinstance(engine, Postgres) else 0
                before = {key: process.cpu() for key, process in processes.items()}
                seen = flow.run()
                after = {key: process.cpu() for key, process in processes.items()}
            finally:
                flow.end()
            events = seen["events"]
            if seen["lost"] or seen["repeated"] or seen["errors"] or seen["acked"] != events:
                raise RuntimeError(f"{name}: {seen}")
            seen["cpu_us"] = {key: (after[key] - before[key]) / events * 1e6 for key in processes}
            if engine is not None:
                received, sent = (new - old for new, old in zip(engine.traffic(), traffic, strict=True))
                seen["batches"] = (engine.batches() - batches) / events
                seen["engine_bytes"] = {"received": received / events, "sent": sent / events}
                seen["engine_bytes"]["stored"] = (engine.stored() - stored) / events
                if isinstance(engine, Postgres):
                    seen["engine_bytes"]["logged"] = (engine.logged() - logged) / events
            if name != "warm":
                results[name] = seen
        results["resident_kib"] = {name: process.resident_kib() for name, process in processes.items()}
    return results


def _slab_kib() -> int:
    """Memory of the kernel in KiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Slab:"):
            return int(line.split()[1])
    raise RuntimeError("no Slab in /proc/meminfo")


def staying() -> dict[str, float]:
    """Measure the cost of idle connections.

    :returns: `ping_us`, processor time of one ping and its answer; `socket_kib`, the kernel's memory for one end of a
        connection, the server's and the client's taken to be alike; `connections`.
    """
    count = min(STAYING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    node = Node(CLUSTERS["memory-1"], "", (f"--ping-interval={PING_INTERVAL}", "--max-connections-per-user=0"))
    try:
        node.await_ready()
        slab = _slab_kib()
        flow = Flow("chatws", f"{node.port}:{node.push}:{count}:0", 2.5 * PING_INTERVAL)
        try:
            full = _slab_kib()
            _await_quiet({"node": node.running})
            before = node.running.cpu()
            seen = flow.run()
            used = node.running.cpu() - before
        finally:
            flow.end()
    finally:
        node.running.end()
    time.sleep(0.5)
    # other programs may free memory meanwhile, so use the larger of the growth and the decrease
    kernel = full - min(slab, _slab_kib())
    if seen["errors"] > count / 100 or not seen["pings"]:  # a busy machine may lose a few to their time-outs
        raise RuntimeError(f"staying: {seen}")
    return {"ping_us": used / seen["pings"] * 1e6, "socket_kib": kernel / count / 2, "connections": count}


def versions() -> dict[str, str]:
    """The versions of everything that was measured."""
    results = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    for name in ("chatws", "Twisted", "txpostgres", "psycopg2-binary", "txredisapi"):
        with contextlib.suppress(PackageNotFoundError):
            results[name] = version(name)
    for name in NODE_PEERS:
        package = PEERS / "cluster" / "node_modules" / name / "package.json"
        results["node-redis" if name == "redis" else name] = json.loads(package.read_text())["version"]
    results["node"] = subprocess.check_output(["node", "--version"], text=True).strip().removeprefix("v")
    return results


def middle(runs: list[Any]) -> Any:
    """The medians of the same values of all runs."""
    first = runs[0]
    if isinstance(first, dict):
        return {key: middle([run[key] for run in runs]) for key in first}
    return None if first is None else statistics.median(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CLUSTERS, default=list(CLUSTERS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=12, help="start no repetition that would take longer")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--add", action="store_true", help="keep the results of other clusters in the output file")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    install()
    scale = 0.4 if arguments.quick else 1.0
    busy_before = psutil.cpu_percent(2) / 100
    if busy_before > QUIET:
        print(f"something else uses {busy_before * 100:.0f} % of this machine: the figures show it", file=sys.stderr)
    began = time.monotonic()
    failed = False
    runs: dict[str, list[dict[str, Any]]] = {}
    stays: list[dict[str, float]] = []
    for number in range(1 if arguments.quick else arguments.repeat):
        elapsed = time.monotonic() - began
        if number and elapsed * (number + 1) / number > arguments.minutes * 60:
            print(f"{number} repetitions took {elapsed / 60:.1f} minutes: enough", file=sys.stderr)
            break
        stays.append(staying())
        for name in arguments.only:
            try:
                figures = measure(CLUSTERS[name], scale)
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failed = True
                print(f"{number + 1} {name:18} failed: {error}", file=sys.stderr)
                continue
            runs.setdefault(name, []).append(figures)
            quiet, busy = figures["quiet"], figures["busy"]
            near, far = quiet["same"], quiet["other"] or {"p50_ms": 0, "p99_ms": 0}
            print(
                f"{number + 1} {name:18} same {near['p50_ms']:5.2f}/{near['p99_ms']:5.2f} ms  "
                f"other {far['p50_ms']:5.2f}/{far['p99_ms']:5.2f} ms  {busy['per_s']:7.0f}/s  "
                + "  ".join(f"{key} {cost:.0f}" for key, cost in busy["cpu_us"].items())
                + f" us  client {busy['client_cpu'] * 100:.0f} %",
                file=sys.stderr,
            )
    if arguments.add and arguments.output.exists():
        old = json.loads(arguments.output.read_text())
        runs = old["runs"] | runs
        busy_before = max(busy_before, old.get("busy_before", 1.0))
        ENGINE_VERSIONS.update({name: old["versions"][name] for name in ENGINES if name in old["versions"]})
    document = {
        "versions": versions() | ENGINE_VERSIONS,
        "busy_before": busy_before,
        "cores": len(os.sched_getaffinity(0)),
        "settings": {"redis": shlex.join(REDIS_SETTINGS), "postgresql": " ".join(POSTGRES_SETTINGS)},
        "disk_sync_ms": disk_sync_ms(),
        "phases": {name: vars(phase) for name, phase in PHASES.items()},
        "clusters": {
            name: {"title": figures.title, "engine": figures.engine, "nodes": figures.nodes, "workers": figures.workers}
            for name, figures in CLUSTERS.items()
        },
        "staying": middle(stays),
        "medians": {name: middle(runs[name]) for name in CLUSTERS if name in runs},
        "runs": {name: runs[name] for name in CLUSTERS if name in runs},
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{(time.monotonic() - began) / 60:.1f} minutes", file=sys.stderr)
    if failed:
        sys.exit("not everything could be measured")


if __name__ == "__main__":
    main()
