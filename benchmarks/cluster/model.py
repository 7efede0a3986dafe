"""From what was measured to a million connections: nodes, memory, what the engine bears, and what breaks first.

    python benchmarks/cluster/model.py
    python benchmarks/cluster/model.py --set connections=200000 --set agent_share=0.5 --set message_seconds=20

A calculation, not a run. The costs come from benchmarks/results.json, benchmarks/storms.json and
benchmarks/cluster/results.json; the load from `Workload`, and what the machines may give from `Limits`, all of which
`--set` changes. A process pays for each batch of events that goes through the log and for each event in it; both follow
from two measured phases, one with small batches and one with large ones. An append takes a while, and what a node is
given meanwhile makes the next batch; so there are fewer batches than events where there is much to do. What the engine
spends for n nodes is the straight line through one, two and three of them.
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
    """What the connections do: customers with a chat window open, and the agents who answer them."""

    connections: int = 1_000_000
    agent_share: float = 0.1  # the part of the connections that are agents' tabs
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
        """A second."""
        return self.agents * self.conversations / self.message_seconds

    @property
    def arrivals(self) -> float:
        """Connections a second."""
        customers = self.connections * (1 - self.agent_share)
        return customers / self.customer_seconds + self.agents * self.tabs / self.agent_seconds

    @property
    def presence_changes(self) -> float:
        """Users who come online or go offline, a second: to chatws a customer with a `user_id` is an agent too."""
        users_customers = self.connections * (1 - self.agent_share)
        return 2 * (users_customers / self.customer_seconds + self.agents / self.agent_seconds)


@dataclass(frozen=True)
class Settings:
    """:ivar agent_status: whether everybody is told who comes and goes. :ivar updates_to_everyone: whether everybody
    gets `conversation_updated`, or only the agent whose conversation it is."""

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
    """What may be used of the machines. A node is a process on a core of its own, and so is the engine: Redis runs in
    one thread, and who publishes into PostgreSQL's log waits in line for its offset."""

    cpu: float = 0.5  # of a core, so that bursts and the loss of a node have room
    gigabits: float = 10  # the engine's network interface
    network: float = 0.5  # the part of it
    node_gib: float = 8  # memory of a node
    node_connections: float = 50_000  # that one process is trusted with; up to 19,000 were measured
    reconnect_seconds: float = 60  # in which all must be back after everything was restarted
    nodes: int = 100
    ping_seconds: float = 30  # chatws' --ping-interval


@dataclass(frozen=True)
class Cost:
    """Processor time of one process.

    :ivar idle: the share of a core when nothing happens. :ivar batch_us: for each batch of events that goes through the
        log, however small. :ivar event_us: for each event in it.
    """

    idle: float
    batch_us: float
    event_us: float

    def share(self, batches: float, events: float) -> float:
        """Of a core, for so many a second."""
        return self.idle + (batches * self.batch_us + events * self.event_us) / 1e6


@dataclass(frozen=True)
class EngineCosts:
    """
    :ivar publisher: a node that takes events from backends, and delivers them to nobody.
    :ivar reader: a node that reads events which concern nobody there; None where there is only one node.
    :ivar engine: the engine, by the number of nodes.
    :ivar append_s: how long an append takes; what comes meanwhile goes with the next one. :ivar in_turn: whether the
        nodes' appends wait for each other, so that there are no more of them when there are more nodes.
    :ivar sent: bytes that the engine sends for an event, by the number of nodes.
    :ivar received: the same for what it receives.
    :ivar node_kib: memory of a node with its log and hardly any connections.
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
        """In how many batches `events` go through the log, a second."""
        return min(events, (1 if self.in_turn else nodes) / self.append_s)


@dataclass(frozen=True)
class Costs:
    """:ivar delivery_us: to one connection, one event at a time. :ivar reconnect_us: to come back and recover what was
    missed. The rest speaks for itself; each is the server's."""

    delivery_us: float
    connect_us: float
    reconnect_us: float
    recovered: int
    ping_us: float
    idle_kib: float
    socket_kib: float
    engines: dict[str, EngineCosts]


def read_costs(directory: Path = BENCHMARKS) -> Costs:
    """What has been measured."""
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
    found = {}
    for name in ("memory", "sqlite", "redis", "postgresql"):
        by_nodes = {
            document["clusters"][key]["nodes"]: one
            for key, one in document["medians"].items()
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
        found[name] = EngineCosts(
            title=document["clusters"][f"{name}-1"]["title"].removeprefix("chatws, "),
            publisher=publisher,
            reader=reader,
            engine={count: _cost(one, "engine") for count, one in by_nodes.items()} if shared else {},
            append_s=most["quiet"]["same"]["p50_ms"] / 1000,
            in_turn=name != "redis",
            sent={count: _bytes(one, "sent") for count, one in by_nodes.items()} if shared else {},
            received={count: _bytes(one, "received") for count, one in by_nodes.items()} if shared else {},
            node_kib=max(one["resident_kib"]["node1"] for one in by_nodes.values()),
        )
    return found


def _cost(medians: dict[str, Any], process: str) -> Cost:
    """Batch and event, from two phases of which one has smaller batches than the other."""
    idle = medians["idle_cpu"][process]
    small, large = medians["small"], medians["flood"]
    # where nobody counts them: each event by itself, and so many at once that the batch costs nothing
    few, many = small.get("batches", 1.0), large.get("batches", 0.0)
    one, other = (phase["cpu_us"][process] - idle / phase["per_s"] * 1e6 for phase in (small, large))
    batch = max(0.0, (one - other) / (few - many)) if few > many else 0.0
    return Cost(idle, batch, max(0.0, other - batch * many))


def _bytes(medians: dict[str, Any], which: str) -> float:
    return float(medians["small"]["engine_bytes"][which])


def for_nodes(measured: dict[int, float], nodes: int) -> float:
    """The straight line through what was measured with one, two and three nodes, at `nodes`."""
    if nodes in measured or len(measured) < 2:
        return measured.get(nodes, next(iter(measured.values())))
    slope, intercept = linear_regression(list(measured), list(measured.values()))
    # one that falls is noise: nothing becomes cheaper for more nodes
    return intercept + slope * nodes if slope > 0 else max(measured.values())


@dataclass(frozen=True)
class Load:
    """What one cluster has to do, a second. :ivar events: through the log. :ivar deliveries: to browsers."""

    events: float
    to_conversations: float
    updates_to_all: float
    presence_to_all: float

    @property
    def deliveries(self) -> float:
        return self.to_conversations + self.updates_to_all + self.presence_to_all


def load(work: Workload, settings: Settings) -> Load:
    """:returns: what `work` comes to with these settings."""
    recipients = 1 + work.tabs  # the customer and the agent's tabs
    conversation = work.messages * (work.kept_events * recipients + work.typing_events * recipients / 2)
    updates = work.messages * work.updates
    # what the nodes tell each other of who is online goes through the log in any case
    presence = work.presence_changes * (2 if settings.agent_status else 1)
    return Load(
        events=work.messages * (work.kept_events + work.typing_events + work.updates) + presence,
        to_conversations=conversation + (0 if settings.updates_to_everyone else updates * work.tabs),
        updates_to_all=updates * work.connections if settings.updates_to_everyone else 0.0,
        presence_to_all=work.presence_changes * work.connections if settings.agent_status else 0.0,
    )


@dataclass(frozen=True)
class Need:
    """One thing that a cluster of some nodes needs, and how much of it there is."""

    what: str
    used: float
    limit: float

    @property
    def ratio(self) -> float:
        return self.used / self.limit


#: The names of needs, as the tables show them.
NODE_CPU, READING, ENGINE_CPU = "a node's processor", "reading the log", "the engine's processor"
NETWORK, MEMORY, RETURN = "the engine's network", "a node's memory", "the time to come back"
CONNECTIONS = "a node's connections"


def needs(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits, n: int) -> list[Need]:
    """What each of `n` nodes needs, and their engine."""
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
    found = [
        Need(READING, reading, limits.cpu),
        Need(NODE_CPU, own + (deliveries + idle + arriving) / 1e6, limits.cpu),
        Need(CONNECTIONS, work.connections / n, limits.node_connections),
        Need(MEMORY, memory / 2**20, limits.node_gib),
        Need(RETURN, work.connections / n * costs.reconnect_us / 1e6, limits.reconnect_seconds),
    ]
    if engine.engine:
        by_nodes = {count: cost.share(batches, todo.events) for count, cost in engine.engine.items()}
        traffic = max(for_nodes(engine.sent, n), for_nodes(engine.received, n)) * todo.events
        found.append(Need(ENGINE_CPU, for_nodes(by_nodes, n), limits.cpu))
        found.append(Need(NETWORK, traffic * 8 / 1e9, limits.gigabits * limits.network))
    return found


#: What more nodes do not make less; and what they make less without end.
COMMON = (READING, ENGINE_CPU, NETWORK)
DIVIDED = (CONNECTIONS, MEMORY, RETURN)


@dataclass(frozen=True)
class Plan:
    """:ivar fits: whether a cluster can do it. :ivar nodes: the fewest that do. Where it does not fit, the fewest that
    would if only the nodes counted and not what they share; or else the number of them that is least overloaded."""

    fits: bool
    nodes: int
    needs: list[Need]

    @property
    def tightest(self) -> Need:
        """What is nearest to its limit, or furthest beyond."""
        return max(self.needs, key=lambda need: need.ratio)

    @property
    def breaks(self) -> str:
        """What `tightest` is, more precisely: a node's processor may have most of its work from reading."""
        first = self.tightest.what
        return READING if first == NODE_CPU and self.used(READING) > self.tightest.used / 2 else first

    def used(self, what: str) -> float:
        return next((need.used for need in self.needs if need.what == what), 0.0)


def plan(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits) -> Plan:
    """The smallest cluster."""
    best: Plan | None = None
    enough = False  # nodes for what they divide among them
    for n in range(1, (1 if engine.reader is None else limits.nodes) + 1):
        one = needs(work, settings, engine, costs, limits, n)
        found = Plan(all(need.ratio <= 1 for need in one), n, one)
        if found.fits or all(need.ratio <= 1 for need in one if need.what not in COMMON):
            return found
        divided = all(need.ratio <= 1 for need in one if need.what in DIVIDED)
        if best is None or not enough or (divided and found.tightest.ratio < best.tightest.ratio):
            best, enough = found, divided
    assert best is not None
    return best


def largest(work: Workload, settings: Settings, engine: EngineCosts, costs: Costs, limits: Limits) -> tuple[int, Plan]:
    """How many connections one cluster can have, and the plan for a twentieth more, which does not fit."""

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
    """Independent clusters that divide the connections among them, so that the fewest processes do.

    :returns: how many clusters, and the plan of one; None when not even the smallest fits.
    """
    best: tuple[int, Plan] | None = None
    fewest = 0
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    for shards in sorted({round(step * 10**power) for power in range(5) for step in steps}):
        if shards > work.connections:
            break
        one = plan(replace(work, connections=-(-work.connections // shards)), settings, engine, costs, limits)
        processes = shards * (one.nodes + bool(engine.engine))
        if one.fits and (best is None or processes < fewest):
            best, fewest = (shards, one), processes
    return best


T = TypeVar("T", Workload, Limits)


def changed(what: T, assignments: Sequence[str]) -> T:
    """`what`, with those of the `name=value` that are its fields."""
    kinds: dict[str, Callable[[str], Any]] = {
        field.name: int if field.type == "int" else float for field in fields(what)
    }
    pairs = [assignment.partition("=") for assignment in assignments]
    return replace(what, **{name: kinds[name](value) for name, _, value in pairs if name in kinds})


def main() -> None:
    from scaling import model_sections

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="assignments")
    parser.add_argument("--benchmarks", type=Path, default=BENCHMARKS, help="where the results lie")
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
