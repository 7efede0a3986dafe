"""Connections are counted over all workers, by user and by address."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chatws.runtime.connection_counts import ConnectionCounts, CountsFile, SharedCounts


@pytest.fixture
def workers() -> Iterator[list[ConnectionCounts]]:
    """Three workers on one table."""
    file = CountsFile(3)
    tables = [SharedCounts(file.descriptor, file.rows, row, file.secret) for row in range(3)]
    yield [ConnectionCounts(table) for table in tables]
    for table in tables:
        table.close()
    file.close()
    file.close()


def test_each_worker_sees_the_connections_of_all(workers: list[ConnectionCounts]) -> None:
    for number, worker in enumerate(workers):
        for _ in range(number + 1):
            worker.add("user:5")
    assert [worker.total("user:5") for worker in workers] == [6, 6, 6]
    workers[2].remove("user:5")
    assert [worker.total("user:5") for worker in workers] == [5, 5, 5]
    assert [worker.total("user:6") for worker in workers] == [0, 0, 0]


def test_counts_agree_with_a_model(workers: list[ConnectionCounts]) -> None:
    seeded = random.Random(5)
    keys = [f"address:{n}" for n in range(500)]
    open_now: list[tuple[int, str]] = []
    for _ in range(20_000):
        if open_now and seeded.random() < 0.45:
            row, key = open_now.pop(seeded.randrange(len(open_now)))
            workers[row].remove(key)
        else:
            open_now.append((seeded.randrange(3), seeded.choice(keys)))
            workers[open_now[-1][0]].add(open_now[-1][1])
    expected = {key: sum(other == key for _, other in open_now) for key in keys}
    for worker in workers:
        assert {key: worker.total(key) for key in keys} == expected
    for row, key in open_now:
        workers[row].remove(key)
    assert {worker.total(key) for worker in workers for key in keys} == {0}


def test_worker_that_ended_counts_no_longer() -> None:
    file = CountsFile(2)
    first, second = (SharedCounts(file.descriptor, 2, row, file.secret) for row in range(2))
    first.add("user:5", 3)
    second.add("user:5", 1)
    file.clear(0)
    assert (first.others("user:5"), second.others("user:5")) == (1, 0)
    first.close()
    second.close()
    file.close()


def test_table_is_shared_between_processes() -> None:
    file = CountsFile(2)
    program = (
        "import sys; from chatws.runtime.connection_counts import SharedCounts;"
        "SharedCounts(int(sys.argv[1]), 2, 1, bytes.fromhex(sys.argv[2])).add('é', 7)"
    )
    os.set_inheritable(file.descriptor, True)
    arguments = [sys.executable, "-c", program, str(file.descriptor), file.secret.hex()]
    subprocess.run(arguments, check=True, pass_fds=[file.descriptor], env={**os.environ, "PYTHONPATH": os.getcwd()})
    table = SharedCounts(file.descriptor, 2, 0, file.secret)
    assert table.others("é") == 7
    table.close()
    file.close()
