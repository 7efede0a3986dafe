"""A server under churn, faults and load for an hour: `make soak`, or `python -m tests.e2e.soak --seconds 600`.

Pages connect, subscribe and end in every way. A backend pushes. Each minute the server is frozen for a second, or its
configuration is reloaded. Every ten seconds the memory, the open files and the latency of acknowledgements are recorded
in `test-artifacts/soak.csv` and `soak.svg`. The run fails if one of them is not flat.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.e2e.conftest import Server, run_server

__all__ = ["Sample", "growth", "run", "write_chart"]

ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
#: Events are kept for a short time, so that the history is full, and the memory flat, soon after the start.
ARGUMENTS = ("--history-events", "1000", "--max-connections-per-user", "0", "--presence-grace", "1")
#: What each series may grow between the second and the last quarter of a run: a share, and an amount.
ALLOWED = {"memory_mib": (0.05, 2.0), "open_files": (0.0, 10.0), "ack_p99_ms": (1.0, 50.0)}


class Sample(NamedTuple):
    """What is recorded at one time."""

    seconds: float
    memory_mib: float
    open_files: float
    ack_p99_ms: float


class Soak:
    """One run.

    :param pages: pages that are connected at the same time.
    :param rate: pushes a second.
    """

    def __init__(self, server: Server, *, pages: int, rate: float, seed: int) -> None:
        self._server = server
        self._pages = pages
        self._rate = rate
        self._random = random.Random(seed)
        self._acknowledged: list[float] = []
        self.samples: list[Sample] = []
        self.ended = 0

    async def run(self, seconds: float, interval: float) -> None:
        """Run for so many seconds, with a sample after each `interval`."""
        work = [self._page(number) for number in range(self._pages)] + [self._push(), self._disturb()]
        tasks = [asyncio.create_task(each) for each in work]
        process = psutil.Process(self._server.pid)
        began = time.monotonic()
        try:
            while time.monotonic() - began < seconds:
                await asyncio.wait(tasks, timeout=interval, return_when=asyncio.FIRST_EXCEPTION)
                for task in tasks:
                    if task.done():
                        await task
                latencies, self._acknowledged = sorted(self._acknowledged), []
                p99 = latencies[len(latencies) * 99 // 100] * 1000 if latencies else 0.0
                memory = process.memory_info().rss / 2**20
                self.samples.append(Sample(time.monotonic() - began, memory, process.num_fds(), p99))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _page(self, number: int) -> None:
        ends: list[Callable[[Any], Any]] = [
            lambda socket: socket.close(),
            lambda socket: socket.transport.abort(),
            lambda socket: socket.send("{"),
            lambda socket: socket.send(b"binary"),
            lambda socket: socket.send("x" * 100_000),
        ]
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                async with connect(self._server.ws_url, compression=None, proxy=None, open_timeout=60) as socket:
                    await socket.send(json.dumps({"type": "auth", "user_id": number}))
                    await socket.send(json.dumps({"type": "subscribe", "conversation_id": number % 10}))
                    for _ in range(self._random.randrange(2, 40)):
                        await asyncio.wait_for(socket.recv(), 60)
                    end = self._random.choice(ends)(socket)
                    if end is not None:
                        await end
                    self.ended += 1
            await asyncio.sleep(self._random.random() / 10)

    async def _push(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.push_port)
        try:
            while True:
                data = {"conversation_id": self._random.randrange(10), "message": {"content": "x" * 200}}
                line = {"event": "new_message", "data": data, "ack": True}
                began = time.monotonic()
                writer.write(json.dumps(line).encode() + b"\n")
                answer = json.loads(await reader.readline())
                assert answer["ok"], answer
                self._acknowledged.append(time.monotonic() - began)
                await asyncio.sleep(1 / self._rate)
        finally:
            writer.close()

    async def _disturb(self) -> None:
        process = self._server.process
        assert process is not None
        while True:
            await asyncio.sleep(60)
            if self._random.random() < 0.5:
                process.send_signal(signal.SIGHUP)
            else:
                process.send_signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(1)
                finally:
                    process.send_signal(signal.SIGCONT)


def growth(samples: Sequence[Sample]) -> list[str]:
    """The series that grew by more than `ALLOWED` from the second to the last quarter of the run, as sentences."""
    quarter = len(samples) // 4
    problems = []
    for name, (share, amount) in ALLOWED.items():
        values = [getattr(sample, name) for sample in samples]
        before, after = (statistics.median(part) for part in (values[quarter : 2 * quarter], values[-quarter:]))
        if after > before * (1 + share) + amount:
            problems.append(f"{name} grew from {before:.1f} to {after:.1f}")
    return problems


def write_chart(samples: Sequence[Sample], path: Path) -> None:
    """Write a chart with one panel for each series."""
    width, height = 900, 160
    parts = []
    end = max(sample.seconds for sample in samples)
    for row, name in enumerate(ALLOWED):
        values = [getattr(sample, name) for sample in samples]
        top, bottom = max(values) * 1.1 or 1.0, (row + 1) * height
        points = " ".join(
            f"{sample.seconds / end * (width - 20) + 10:.1f},{bottom - value / top * (height - 30):.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        label = f"{name}: {min(values):.1f} to {max(values):.1f}"
        parts.append(f'<text x="10" y="{row * height + 18}" font-family="sans-serif" font-size="14">{label}</text>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(ALLOWED) * height + 10}">'
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""]))


def run(seconds: float, interval: float, directory: Path, *, pages: int = 50, rate: float = 20.0) -> list[Sample]:
    """Run, and write `soak.csv` and `soak.svg` to `directory`."""
    seed = random.randrange(2**32)
    with tempfile.TemporaryDirectory() as place:
        broker = ("--broker", f"sqlite:///{place}/log.db")
        with run_server(Path(place), *broker, *ARGUMENTS) as server:
            soak = Soak(server, pages=pages, rate=rate, seed=seed)
            asyncio.run(soak.run(seconds, interval))
    directory.mkdir(exist_ok=True)
    with (directory / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([Sample._fields, *soak.samples])
    write_chart(soak.samples, directory / "soak.svg")
    print(f"{soak.ended} connections ended, {len(soak.samples)} samples, seed {seed}")
    return soak.samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of the run (default 3600)")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two samples (default 10)")
    arguments = parser.parse_args()
    if arguments.seconds < 12 * arguments.interval:
        parser.error("a run has at least twelve samples")
    problems = growth(run(arguments.seconds, arguments.interval, ARTIFACTS))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
