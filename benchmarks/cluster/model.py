"""Calculate clusters of up to a million connections from measured costs: nodes, memory, engine, and the first limit.

    python benchmarks/cluster/model.py
    python benchmarks/cluster/model.py --set connections=200000 --set agent_share=0.5 --set message_seconds=20

This is a calculation, not a run. The costs come from benchmarks/results.json, benchmarks/storms.json and
benchmarks/cluster/results.json, the load from `Workload`, and the capacity of the machines from `Limits`. `--set`
changes fields of both. A process has a cost for each batch of events and for each event in it. Two measured phases,
with small and with large batches, determine both. Events that arrive during a node's append form the next batch, so
there are fewer batches than events under load. The engine's cost for n nodes is on the straight line through one, two
and three nodes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import linear_regression
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
BENCHMARKS = HERE.parent


@dataclass(frozen=True)
class Workload:
    """The load of the connections: customers with an open chat window, and the agents who answer them."""

    connections: int = 1_000_000
    agent_share: float = 0.1  # share of the connections that are agents' tabs
    tabs: float = 2  # of an agent
    conversations: float = 3  # that an agent has at once
    message_seconds: float = 60  # between two messages in a conversation, from either side
    kept_events: float = 3  # for a conversation's subscribers, of a message: new_message, …_status_updated, …_read
    typing_events: float = 2  # of a message: started, stopped
    updates: float = 1  # conversation_updated, of a message
    agent_seconds: float = 4 * 3600  # that an agent stays online
    customer_seconds: float = 600  # that a customer's page stays open

    @property
    def agents(self) -> float:
        return self.connections * self.agent_share / self.tabs

    @property
    def messages(self) -> float:
        """Messages per second."""
        return self.agents * self.conversations / self.message_seconds

    @property
    def arrivals(self) -> float:
        """New connections per second."""
        customers = self.connections * (1 - self.agent_share)
        return customers / self.customer_seconds + self.agents * self.tabs / self.agent_seconds

    @property
    def presence_changes(self) -> float:
        """Users who come online or go offline, per second. Customers with a `user_id` count as agents too."""
        users_customers = self.connections * (1 - self.agent_share)
        return 2 * (users_customers / self.customer_seconds + self.agents / self.agent_seconds)


@dataclass(frozen=True)
class Settings:
    """Who gets presence and updates.

    :ivar agent_status: whether presence is announced to all connections.
    :ivar updates_to_everyone: whether all connections get `conversation_updated`, or only the conversation's agent.
    """

    title: str
    agent_status: bool
    updates_to_everyone: bool


SETTINGS = (
    Settings("the defaults", agent_status=True, updates_to_everyone=True),
    Settings("`agent_status` off", agent_status=False, updates_to_everyone=True),
    Settings("… and `conversation_updated` to its agent", agent_status=False, updates_to_everyone=False),
)


@dataclass(frozen=True)
class Limits:
    """The capacity of the machines.

    A node is a process with its own core, and so is the engine: Redis runs in one thread, and appends to PostgreSQL run
    one after the other.
    """

    cpu: float = 0.5  # of a core, to leave capacity for bursts and for the loss of a node
    gigabits: float = 10  # the engine's network interface
    network: float = 0.5  # share of it
    node_gib: float = 8  # memory of a node
    node_connections: float = 50_000  # of one process; up to 19,000 were measured
    reconnect_seconds: float = 60  # for all clients to reconnect after a restart of all nodes
    nodes: int = 100
    ping_seconds: float = 30  # chatws' --ping-interval


@dataclass(frozen=True)
class Cost:
    """Processor time of one process.

    :ivar idle: share of a core without load.
    :ivar batch_us: µs for each batch of events, of any size.
    :ivar event_us: µs for each event in it.
    """

    idle: float
    batch_us: float
    event_us: float

    def share(self, batches: float, events: float) -> float:
        """Share of a core for these batches and events per second."""
        return self.idle + (batches * self.batch_us + events * self.event_us) / 1e6


@dataclass(frozen=True)
class EngineCosts:
    """The costs with one engine.

    :ivar publisher: a node that gets events from backends and delivers them to no client.
    :ivar reader: a node that reads events without recipients. None if there is only one node.
    :ivar engine: the engine, by the number of nodes.
    :ivar append_s: seconds that an append takes. Events that arrive meanwhile form the next batch.
    :ivar in_turn: whether the appends of all nodes wait for each other, so that more nodes make no more appends.
    :ivar sent: bytes that the engine sends for an event, by the number of nodes.
    :ivar received: bytes that the engine receives for an event, by the number of nodes.
    :ivar node_kib: memory of a node with its history and few connections.
    """

    title: str
    publisher: Cost
    reader: Cost | None
    engine: dict[int, Cost]
    append_s: float
    in_turn: bool
    sent: dict[int, float]
    received: dict[int, float]
    node_kib: float

    def batches(self, events: float, nodes: int) -> float:
        """Batches per second for these events per second."""
        return min(events, (1 if self.in_turn else nodes) / self.append_s)


@dataclass(frozen=True)
class Costs:
    """The costs of the server.

    :ivar delivery_us: to deliver one event to one connection.
    :ivar connect_us: to connect, authenticate and subscribe.
    :ivar reconnect_us: the same, and to recover `recovered` events.
    :ivar ping_us: for a ping and its answer.
    :ivar idle_kib: memory of chatws for an idle connection.
    :ivar socket_kib: memory of the kernel for it.
    """

    delivery_us: float
    connect_us: float
    reconnect_us: float
    recovered: int
    ping_us: float
    idle_kib: float
    socket_kib: float
    engines: dict[str, EngineCosts]


def read_costs(directory: Path = BENCHMARKS) -> Costs:
    """Read the measured costs."""
    single = json.loads((directory / "results.json").read_text())["medians"]
    storms = json.loads((directory / "storms.json").read_text())
    cluster = json.loads((directory / "cluster" / "results.json").read_text())
    storm = storms["phases"][-1]
    return Costs(
        delivery_us=single["room1"]["chatws"]["cpu_us"],
        connect_us=single["inbox"]["chatws"]["connect_us"],
        reconnect_us=storm["server_cpu_s"] / storm["recovered"] * 1e6,
        recovered=storms["recover"],
        ping_us=cluster["staying"]["ping_us"],
        idle_kib=single["inbox"]["chatws"]["idle_kib"],
        socket_kib=cluster["staying"]["socket_kib"],
        engines=_engine_costs(cluster),
    )


def _engine_costs(document: dict[str, Any]) -> dict[str, EngineCosts]:
    costs = {}
    for name in ("memory", "sqlite", "redis", "postgresql"):
        by_nodes = {
            document["clusters"][key]["nodes"]: medians
            for key, medians in document["medians"].items()
            if key.rpartition("-")[0] == name
        }
        if not by_nodes:
            continue
        most = by_nodes[max(by_nodes)]
        nodes = max(by_nodes)
        reader = _cost(most, f"node{nodes}") if nodes > 1 else None
        publisher = _cost(most, "node1")
        if reader is not None:
            # each but the last node publishes its part, and reads what the others publish
            others = nodes - 2
            publisher = Cost(
                publisher.idle,
                max(0.0, publisher.batch_us * (nodes - 1) - reader.batch_us * others),
                max(0.0, publisher.event_us * (nodes - 1) - reader.event_us * others),
            )
        shared = "engine" in most["idle_cpu"]
        costs[name] = EngineCosts(
            title=document["clusters"][f"{name}-1"]["title"].removeprefix("chatws, "),
            publisher=publisher,
            reader=reader,
            engine={count: _cost(medians, "engine") for count, medians in by_nodes.items()} if shared else {},
            append_s=most["quiet"]["same"]["p50_ms"] / 1000,
            in_turn=name != "redis",
            sent={count: _bytes(medians, "sent") for count, medians in by_nodes.items()} if shared else {},
            received={count: _bytes(medians, "received") for count, medians in by_nodes.items()} if shared else {},
            node_kib=max(medians["resident_kib"]["node1"] for medians in by_nodes.values()),
        )
    return costs


def _cost(medians: dict[str, Any], process: str) -> Cost:
    """The cost of a batch and of an event, from a phase with small batches and one with large batches."""
    idle = medians["idle_cpu"][process]
    small, large = medians["small"], medians["flood"]
    # without a count: each event is a batch, and in the large phase the batch costs nothing
    few, many = small.get("batches", 1.0), large.get("batches", 0.0)
    figures, other = (phase["cpu_us"][process] - idle / phase["per_s"] * 1e6 for phase in (small, large))
    batch = max(0.0, (figures - other) / (few - many)) if few > many else 0.0
    return Cost(idle, batch, max(0.0, other - batch * many))


def _bytes(medians: dict[str, Any], which: str) -> float:
    return float(medians["small"]["engine_bytes"][which])


def for_nodes(measured: dict[int, float], nodes: int) -> float:
    """The value at `nodes` on the straight line through the measurements with one, two and three nodes."""
    if nodes in measured or len(measured) < 2:
        return measured.get(nodes, next(iter(measured.values())))
    slope, intercept = linear_regression(list(measured), list(measured.values()))
    # a falling line is noise, because nothing becomes cheaper with more nodes
    return intercept + slope * nodes if slope > 0 else max(measured.values())


@dataclass(frozen=True)
class Load:
    """The work of one cluster per second.

    :ivar events: through the broker.
    :ivar deliveries: to browsers.
    """

    events: float
    to_conversations: float
    updates_to_all: float
    presence_to_all: float

    @property
    def deliveries(self) -> float:
        return self.to_conversations + self.updates_to_all + self.presence_to_all


def load(work: Workload, settings: Settings) -> Load:
    """The load of `work` with these settings."""
    recipients = 1 + work.tabs  # the customer and the agent's tabs
    conversation = work.messages * (work.kept_events * recipients + work.typing_events * recipients / 2)
    updates = work.messages * work.updates
    # presence updates between the nodes go through the broker in any case
    presence = work.presence_changes * (2 if settings.agent_status else 1)
    return Load(
        events=work.messages * (work.kept_events + work.typing_events + work.updates) + presence,
        to_conversations=conversation + (0 if settings.updates_to_everyone else updates * work.tabs),
        updates_to_all=updates * work.connections if settings.updates_to_everyone else 0.0,
        presence_to_all=work.presence_changes * work.connections if settings.agent_status else 0.0,
    )


@dataclass(frozen=True)
class Need:
    """A resource that a cluster needs, and its limit."""

    what: str
    used: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.used / self.limit


#: The names of needs, as the tables show them.
NODE_CPU, READING, ENGINE_CPU = "a node's processor", "reading events", "the engine's processor"
NETWORK, MEMORY, RETURN = "the engine's network", "a node's memory", "the time to reconnect"
CONNECTIONS = "a node's connections"


def needs(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits, n: int) -> list[Need]:
    """The needs of each of `n` nodes, and of their engine."""
    todo = load(work, settings)
    share = todo.events / n
    reading = 0.0
    batches = engine.batches(todo.events, n)
    own = engine.publisher.share(batches / n, share)
    if engine.reader is not None and n > 1:
        reading = engine.reader.share(batches, todo.events)
        own += engine.reader.share(batches * (n - 1) / n, todo.events * (n - 1) / n) - engine.reader.idle
    deliveries = todo.deliveries / n * costs.delivery_us
    idle = work.connections / n / limits.ping_seconds * costs.ping_us
    arriving = work.arrivals / n * costs.connect_us
    memory = engine.node_kib + work.connections / n * (costs.idle_kib + costs.socket_kib)
    result = [
        Need(READING, reading, limits.cpu),
        Need(NODE_CPU, own + (deliveries + idle + arriving) / 1e6, limits.cpu),
        Need(CONNECTIONS, work.connections / n, limits.node_connections),
        Need(MEMORY, memory / 2**20, limits.node_gib),
        Need(RETURN, work.connections / n * costs.reconnect_us / 1e6, limits.reconnect_seconds),
    ]
    if engine.engine:
        by_nodes = {count: cost.share(batches, todo.events) for count, cost in engine.engine.items()}
        traffic = max(for_nodes(engine.sent, n), for_nodes(engine.received, n)) * todo.events
        result.append(Need(ENGINE_CPU, for_nodes(by_nodes, n), limits.cpu))
        result.append(Need(NETWORK, traffic * 8 / 1e9, limits.gigabits * limits.network))
    return result


#: Needs that more nodes do not reduce, and needs that they divide.
COMMON = (READING, ENGINE_CPU, NETWORK)
DIVIDED = (CONNECTIONS, MEMORY, RETURN)


@dataclass(frozen=True)
class Plan:
    """A cluster for a workload.

    :ivar fits: whether every need is within its limit.
    :ivar nodes: the fewest nodes that fit. If none fit, the fewest without the needs in `COMMON`, or else the number of
        nodes with the least overload.
    """

    fits: bool
    nodes: int
    needs: list[Need]

    @property
    def tightest(self) -> Need:
        """The need that is nearest to its limit, or furthest beyond it."""
        return max(self.needs, key=lambda need: need.ratio)

    @property
    def breaks(self) -> str:
        """The first limit. Reading, if it is most of the work of a node's processor."""
        first = self.tightest.what
        return READING if first == NODE_CPU and self.used(READING) > self.tightest.used / 2 else first

    def used(self, what: str) -> float:
        return next((need.used for need in self.needs if need.what == what), 0.0)


def plan(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits) -> Plan:
    """The smallest cluster."""
    best: Plan | None = None
    enough = False  # whether the needs in DIVIDED fit
    for n in range(1, (1 if engine.reader is None else limits.nodes) + 1):
        all_needs = needs(work, settings, engine, costs, limits, n)
        candidate = Plan(all(need.ratio <= 1 for need in all_needs), n, all_needs)
        if candidate.fits or all(need.ratio <= 1 for need in all_needs if need.what not in COMMON):
            return candidate
        divided = all(need.ratio <= 1 for need in all_needs if need.what in DIVIDED)
        if best is None or not enough or (divided and candidate.tightest.ratio < best.tightest.ratio):
            best, enough = candidate, divided
    assert best is not None
    return best


def largest(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits) -> tuple[int, Plan]:
    """The most connections of one cluster, and the plan for 5 % more, which does not fit."""

    def planned(connections: int) -> Plan:
        return plan(replace(work, connections=connections), settings, engine, costs, limits)

    low, high = 1, 2
    while planned(high).fits and high < 2**40:
        low, high = high, high * 2
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        low, high = (middle, high) if planned(middle).fits else (low, middle)
    return low, planned(max(high, round(low * 1.05)))


def sharded(
    work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits
) -> tuple[int, Plan] | None:
    """Independent clusters that divide the connections, with the fewest processes.

    :returns: the number of clusters, and the plan of one. None if not even the smallest fits.
    """
    best: tuple[int, Plan] | None = None
    fewest = 0
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    for shards in sorted({round(step * 10**power) for power in range(5) for step in steps}):
        if shards > work.connections:
            break
        candidate = plan(replace(work, connections=-(-work.connections // shards)), settings, engine, costs, limits)
        processes = shards * (candidate.nodes + bool(engine.engine))
        if candidate.fits and (best is None or processes < fewest):
            best, fewest = (shards, candidate), processes
    return best


T = TypeVar("T", Workload, Limits)


def changed(values: T, assignments: Sequence[str]) -> T:
    """Apply those assignments (`name=value`) that are fields of `values`."""
    kinds: dict[str, Callable[[str], Any]] = {
        field.name: int if field.type == "int" else float for field in fields(values)
    }
    pairs = [assignment.partition("=") for assignment in assignments]
    return replace(values, **{name: kinds[name](value) for name, _, value in pairs if name in kinds})


def main() -> None:
    from scaling import model_sections

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    parser.add_argument("--benchmarks", type=Path, default=BENCHMARKS, help="directory of the results")
    arguments = parser.parse_args()
    known = {field.name for kind in (Workload, Limits) for field in fields(kind)}
    for assignment in arguments.assignments:
        if assignment.partition("=")[0] not in known:
            parser.error(f"--set {assignment}: one of {', '.join(sorted(known))}")
    work, limits = changed(Workload(), arguments.assignments), changed(Limits(), arguments.assignments)
    for text in model_sections(read_costs(arguments.benchmarks), work, limits).values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
