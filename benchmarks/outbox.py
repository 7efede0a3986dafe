"""Measures how long an event takes from the commit of its row in the outbox to a page, on a real MariaDB.

python benchmarks/outbox.py [--quick] writes the table of docs/outbox.md. Needs Debian's mariadb-server.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from chatws.outbox.migrations import upgrade_outbox  # noqa: E402
from tests.e2e.process import clean_environment, free_port  # noqa: E402
from tests.e2e.wire import Browser, until  # noqa: E402
from tests.mysql import Mysql  # noqa: E402

PAGE = HERE.parent / "docs" / "outbox.md"
_MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.S)
#: Commits a second under load.
RATE = 200
INSERT = "INSERT INTO chatws_outbox (event, data) VALUES ('new_message', '{{\"conversation_id\":1,\"number\":{}}}')"


class Figures:
    """Seconds: from each commit to the page, and of each insert with its commit."""

    def __init__(self) -> None:
        self.deliveries: list[float] = []
        self.inserts: list[float] = []


@contextmanager
def server(mysql: Mysql) -> Iterator[int]:
    """Run chatws, and give its port."""
    port = free_port()
    options = [
        *("-n", "--pidfile=", "chatws", "--port", str(port)),
        *("--push-port", "0", "--auth", "trust", "--conversation-query", "SELECT 1", "--user-query", "SELECT 1"),
        *("--database", mysql.url, "--outbox"),
    ]
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *options],
            cwd=directory,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


def measure(mysql: Mysql, page: Browser, count: int, pause: float) -> Figures:
    """Commit `count` rows, `pause` seconds apart."""
    figures = Figures()
    committed: dict[int, float] = {}
    done = threading.Event()

    def receive() -> None:
        for _ in range(count):
            message = page.expect("new_message", 60)
            arrived = time.monotonic()
            figures.deliveries.append(arrived - committed[message["data"]["number"]])
        done.set()

    with closing(mysql.connect()) as connection:
        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        for number in range(count):
            began = time.monotonic()
            connection.begin()
            connection.query(INSERT.format(number))
            committed[number] = time.monotonic()  # before the commit: the event may be faster than its response
            connection.commit()
            figures.inserts.append(time.monotonic() - began)
            time.sleep(pause)
        done.wait(120)
    return figures


@contextmanager
def open_transaction(mysql: Mysql, rows: int) -> Iterator[None]:
    """Keep a snapshot open, and `rows` deleted rows in the table, which it prevents the server from removing."""
    with closing(mysql.connect()) as report:
        mysql.run(
            "INSERT INTO chatws_outbox (event, data, error)"
            f" SELECT 'new_message', '{{}}', 'deleted soon' FROM seq_1_to_{rows}"
        )
        report.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        mysql.run("DELETE FROM chatws_outbox WHERE error IS NOT NULL")
        yield
        report.rollback()


def row(title: str, figures: Figures) -> str:
    """Return a line of the table."""
    deliveries, inserts = sorted(figures.deliveries), statistics.median(figures.inserts)
    p99 = deliveries[min(len(deliveries) - 1, int(len(deliveries) * 0.99))]
    median = statistics.median(deliveries)
    return f"| {title} | {1000 * median:.0f} | {1000 * p99:.0f} | {1000 * inserts:.1f} |"


def main(quick: bool) -> str:
    """Measure, and return the table."""
    deleted = 10_000 if quick else 1_000_000
    mysql: Any = Mysql()
    try:
        mysql.clear()
        upgrade_outbox(mysql.url, "")
        quiet, load = (5, 200) if quick else (60, 4000)
        with server(mysql) as port:
            until(lambda: _is_up(port), "the server", 60)
            page = Browser(f"ws://127.0.0.1:{port}/ws")
            page.auth(1)
            page.subscribe(1)
            measure(mysql, page, 1, 0)  # the server holds the outbox
            rows = [
                row("a commit after 2 s without one", measure(mysql, page, quiet, 2.0)),
                row(f"{RATE} commits a second", measure(mysql, page, load, 1 / RATE)),
            ]
            with open_transaction(mysql, deleted):
                title = f"a commit after 2 s, {deleted:,} deleted rows behind an open transaction"
                rows.append(row(title, measure(mysql, page, quiet, 2.0)))
            page.close()
    finally:
        mysql.close()
    return "\n".join(["| load | median, ms | p99, ms | insert and commit, ms |", "| --- | --- | --- | --- |", *rows])


def _is_up(port: int) -> bool:
    try:
        Browser(f"ws://127.0.0.1:{port}/ws").close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    found = main("--quick" in sys.argv)
    print(found)
    if "--quick" not in sys.argv:
        text = PAGE.read_text("utf-8")
        filled, places = _MARKED.subn(lambda match: f"{match[1]}{found}\n{match[2]}", text)
        assert places == 1, "docs/outbox.md has no place for figures: <!-- figures --> … <!-- end -->"
        PAGE.write_text(filled, "utf-8")
