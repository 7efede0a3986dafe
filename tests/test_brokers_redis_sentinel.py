"""Redis with replicas: failovers by Sentinel, and acknowledgements that wait for replicas. And Redis over TLS."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hiredis
import pytest
import pytest_twisted

from chatws.errors import ConfigError, Unavailable
from tests.certificates import self_signed
from tests.contracts.test_broker_contract import Recorder, new_event
from tests.contracts.test_shared_broker_contract import until, until_notified
from tests.e2e.wire import until as poll_until
from tests.redis import RedisServer
from tests.requirements import needs
from tests.test_brokers_redis import TIMEOUT, Nodes, nodes, publish_when_possible, server

__all__ = ["nodes", "server"]

pytestmark = needs("redis-server")

Make = Callable[..., RedisServer]

#: Seconds that a failover may take: a Sentinel that could not run for two seconds does nothing for the next thirty.
TILTED = 60.0
#: Seconds that Redis may take to answer, where half of them are waited for replicas: the rest is for a busy machine.
FOR_REPLICAS = 4.0


def follow(master: RedisServer, replica: RedisServer) -> None:
    """Make it a replica, and wait until it is one."""
    replica.run("REPLICAOF", "127.0.0.1", master.port)
    poll_until(lambda: b"master_link_status:up" in replica.run("INFO", "replication"), "the replica to be one")


class Cluster:
    """A master, a replica, and a Sentinel that decides alone; another one is known by an address where nobody is."""

    def __init__(self, make: Make) -> None:
        self.master, self.replica = (make("--repl-diskless-sync-delay", "0") for _ in range(2))
        follow(self.master, self.replica)
        self.sentinel = make(sentinel=True)
        self.sentinel.run("SENTINEL", "MONITOR", "main", "127.0.0.1", self.master.port, 1)
        self.give_up_after(60_000)
        self.sentinel.run("SENTINEL", "SET", "main", "failover-timeout", "3000")

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.sentinel.port}/main"

    def give_up_after(self, milliseconds: int) -> None:
        """A master that has not answered for so long is down."""
        self.sentinel.run("SENTINEL", "SET", "main", "down-after-milliseconds", milliseconds)

    def knows_its_replica(self) -> bool:
        return len(self.sentinel.run("SENTINEL", "REPLICAS", "main")) == 1

    def has_caught_up(self) -> bool:
        """Whether the replica has everything that the master has."""
        offsets = []
        for one, name in ((self.master, b"master_repl_offset"), (self.replica, b"slave_repl_offset")):
            lines = one.run("INFO", "replication").splitlines()
            offsets += [line.partition(b":")[2] for line in lines if line.startswith(name + b":")]
        return len(offsets) == 2 and len(set(offsets)) == 1

    def fails_over(self) -> bool:
        """Whether the Sentinel has begun to put the replica in the master's place."""
        try:
            return bool(self.sentinel.run("SENTINEL", "FAILOVER", "main") == b"OK")
        except hiredis.ReplyError as error:
            if "NOGOODSLAVE" not in str(error):
                raise
            return False

    def names(self, server: RedisServer) -> bool:
        """Whether the Sentinel names that one as the master."""
        return int(self.sentinel.run("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1]) == server.port


@pytest_twisted.ensureDeferred
async def test_nodes_follow_the_master_that_sentinel_names_and_lose_nothing(server: Make, nodes: Nodes) -> None:
    cluster = Cluster(server)
    await until(cluster.knows_its_replica, "the Sentinel to find the replica")
    opened = [await nodes.open(f"{cluster.url}?replicas=1", timeout=FOR_REPLICAS) for _ in range(2)]
    [broker, recorder], [_, heard] = opened
    for number in range(5):
        await publish_when_possible(broker, f"a{number}", key=f"a{number}")
    await until_notified(heard, 5)
    cluster.give_up_after(400)
    cluster.master.kill()
    with pytest.raises(Unavailable):
        await broker.publish([new_event("refused")])
    await until(lambda: cluster.names(cluster.replica), "the failover", TILTED)
    cluster.give_up_after(60_000)
    # without a replica nothing is acknowledged; the stored event is told nevertheless, and its key is known
    await until(lambda: all(redis._sessions.is_ready for redis, _ in opened), "the nodes to be there")  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="1 replicas"):
        await broker.publish([new_event("b", key="b")])
    follow(cluster.replica, server("--repl-diskless-sync-delay", "0"))
    event = await publish_when_possible(broker, "b", key="b")
    assert (event.offset, event.duplicate) == (6, True)
    await publish_when_possible(broker, "c", key="c")
    await until_notified(heard, 7)
    assert recorder.names == heard.names == [f"a{number}" for number in range(5)] + ["b", "c"]
    assert recorder.epochs == heard.epochs == []
    again = await publish_when_possible(broker, "a4", key="a4")
    assert (again.offset, again.duplicate) == (5, True)


@pytest_twisted.ensureDeferred
async def test_an_idle_node_leaves_a_master_that_has_been_replaced_though_it_answers(
    server: Make, nodes: Nodes
) -> None:
    cluster = Cluster(server)
    await until(cluster.knows_its_replica, "the Sentinel to find the replica")
    broker, recorder = await nodes.open(cluster.url, timeout=TIMEOUT)
    await publish_when_possible(broker, "a", key="a")
    await until(lambda: cluster.replica.run("XLEN", "{chatws}:2:history") == 1, "the replica to have it")
    await until(cluster.fails_over, "the Sentinel to know enough")

    def is_with_the_new_one() -> bool:
        session = broker._sessions.session  # type: ignore[attr-defined]
        return session is not None and session.address == ("127.0.0.1", cluster.replica.port)

    await until(is_with_the_new_one, "the node to move", TILTED)
    assert (await publish_when_possible(broker, "b", key="b")).offset == 2
    assert cluster.replica.run("XLEN", "{chatws}:2:history") == 2
    assert recorder.names == ["a", "b"]
    assert recorder.epochs == []


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_planned_failover_with_paused_writes_loses_nothing_and_reloads_no_page(
    server: Make, nodes: Nodes
) -> None:
    """The commands of docs/operations.md#planned-failover."""
    cluster = Cluster(server)
    await until(cluster.knows_its_replica, "the Sentinel to find the replica")
    [broker, recorder], [other, heard] = [await nodes.open(cluster.url, timeout=TIMEOUT) for _ in range(2)]
    for number in range(5):
        await publish_when_possible(broker, f"a{number}", key=f"a{number}")
    cluster.master.run("CLIENT", "PAUSE", 2 * int(TILTED * 1000), "WRITE")
    refused = [one.publish([new_event(f"b{number}", key=f"b{number}")]) for number, one in enumerate((broker, other))]
    await until(cluster.has_caught_up, "the replica to have everything")
    await until(cluster.fails_over, "the Sentinel to know enough")
    await until(lambda: cluster.names(cluster.replica), "the failover", TILTED)
    for publishing in refused:  # a backend repeats an event that was not acknowledged, with its key
        with suppress(Unavailable):
            await publishing
    for number, one in enumerate((broker, other)):
        await publish_when_possible(one, f"b{number}", key=f"b{number}")
    await publish_when_possible(other, "c", key="c")
    for one in (recorder, heard):
        await until_notified(one, 8)
        assert sorted(one.names) == [*(f"a{number}" for number in range(5)), "b0", "b1", "c"]
        assert one.epochs == []
    assert recorder.names == heard.names


@pytest_twisted.ensureDeferred
async def test_a_lagging_replica_that_takes_over_begins_a_new_epoch(server: Make, nodes: Nodes) -> None:
    master, replica = server("--repl-diskless-sync-delay", "0"), server()
    follow(master, replica)
    sentinel = server(sentinel=True)
    sentinel.run("SENTINEL", "MONITOR", "main", "127.0.0.1", master.port, 1)
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
    [broker, recorder], [_, heard] = [await nodes.open(url, timeout=TIMEOUT) for _ in range(2)]
    await publish_when_possible(broker, "a", key="a")
    await until(lambda: replica.run("XLEN", "{chatws}:2:history") == 1, "the replica to have it")
    epoch = broker.epoch
    replica.run("REPLICAOF", "NO", "ONE")  # it hears no more of what the master takes
    await publish_when_possible(broker, "lost", key="lost")
    await until_notified(heard, 2)
    sentinel.run("SENTINEL", "REMOVE", "main")
    sentinel.run("SENTINEL", "MONITOR", "main", "127.0.0.1", replica.port, 1)
    for listener in (recorder, heard):
        await until(lambda listener=listener: listener.epochs, "a new epoch")  # type: ignore[misc]
    assert recorder.epochs == heard.epochs == [broker.epoch] != [epoch]
    assert (await publish_when_possible(broker, "b", key="b")).offset == 1
    await until(lambda: "b" in heard.names, "the event")
    assert heard.names == ["a", "lost", "b"]


@pytest_twisted.ensureDeferred
async def test_an_event_without_its_replica_is_delivered_and_not_acknowledged(server: Make, nodes: Nodes) -> None:
    master = server()
    broker, recorder = await nodes.open(f"{master.url}?replicas=1", timeout=FOR_REPLICAS)
    with pytest.raises(Unavailable, match="1 replicas did not take it in time"):
        await broker.publish([new_event("a")])
    assert recorder.names == ["a"]


@pytest_twisted.ensureDeferred
async def test_a_duplicate_is_acknowledged_when_the_replicas_have_the_first(server: Make, nodes: Nodes) -> None:
    master, replica = server("--repl-diskless-sync-delay", "0"), server()
    follow(master, replica)
    redis, _ = await nodes.open(f"{master.url}?replicas=1", timeout=FOR_REPLICAS)
    other, _ = await nodes.open(f"{master.url}?replicas=1", timeout=FOR_REPLICAS)
    replica.silence()
    with pytest.raises(Unavailable, match="1 replicas"):
        await redis.publish([new_event("a", key="k")])
    with pytest.raises(Unavailable, match="1 replicas"):
        await other.publish([new_event("a", key="k")])
    replica.resume()
    assert (await publish_when_possible(other, "a", key="k")).duplicate


@pytest_twisted.ensureDeferred
async def test_a_start_on_a_replica_or_without_sentinel_is_one_line(server: Make, nodes: Nodes) -> None:
    master, replica = server("--repl-diskless-sync-delay", "0"), server()
    follow(master, replica)
    with pytest.raises(ConfigError, match="it is a slave"):
        await nodes.make(replica.url, timeout=TIMEOUT).start(Recorder())
    sentinel = server(sentinel=True)
    with pytest.raises(
        ConfigError, match="no Sentinel names a master for 'unknown': the Sentinel does not know this name"
    ):
        await nodes.make(f"redis+sentinel://127.0.0.1:{sentinel.port}/unknown", timeout=TIMEOUT).start(Recorder())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a certificate for 127.0.0.1, `cert.pem`, its own authority, and its key, `key.pem`."""
    place = tmp_path_factory.mktemp("certificate")
    made = self_signed()
    (place / "cert.pem").write_bytes(made.certificate)
    (place / "key.pem").write_bytes(made.key)
    return place


@pytest_twisted.ensureDeferred
async def test_tls_is_spoken_and_the_certificate_is_looked_at(server: Make, nodes: Nodes, certificate: Path) -> None:
    from tests.e2e.process import free_port

    port = free_port()
    server(
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificate / "cert.pem"), "--tls-key-file", str(certificate / "key.pem")),
    )
    broker, recorder = await nodes.open(f"rediss://127.0.0.1:{port}?ca={certificate}/cert.pem")
    await broker.publish([new_event("a", b'"' + b"x" * 200_000 + b'"')])
    assert recorder.names == ["a"]
    with pytest.raises(ConfigError, match="certificate"):
        await nodes.make(f"rediss://127.0.0.1:{port}", timeout=TIMEOUT).start(Recorder())
    with pytest.raises(ConfigError, match="option ca cannot be read"):
        await nodes.make(f"rediss://127.0.0.1:{port}?ca={certificate}/missing.pem").start(Recorder())
