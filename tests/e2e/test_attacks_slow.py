"""Readers who do not read, among five hundred who do: the process's memory, and what the others get."""

from __future__ import annotations

import json
import select
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import Raw, rss
from tests.e2e.wire import DEADLINE, until
from tests.server_wire import split_frames

Start = Callable[..., Server]

MIB = 1024 * 1024
GOOD, SLOW = 500, 32
CONVERSATION = 1
#: Each of so many bytes for everybody, and after each so many for each slow one alone, which nobody else shares.
EVENTS, SIZE, OWN_EVENTS = 24, 65_536, 3
#: glibc's malloc maps what is longer than this on its own, and gives it back when it is freed (mallopt(3)). Otherwise
#: the heap stays as high as the last small object in it: nothing leaks, but the resident size does not show it.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "131072"}


class Reader:
    """Takes what comes, and notes the numbers of the events."""

    def __init__(self, page: Raw) -> None:
        self.page = page
        self.numbers: list[int] = []

    def take(self) -> None:
        data = self.page.receive()
        assert not self.page.at_eof, "one who reads was cut off"
        frames, self.page.buffer = split_frames(self.page.buffer + data)
        for first, payload in frames:
            assert first == 0x81, payload[:100]
            if payload.startswith(b'{"event":"new_message"'):
                self.numbers.append(json.loads(payload)["data"]["number"])


@pytest.mark.long
def test_slow_readers_among_five_hundred_are_ended_and_their_memory_is_freed(chatws_server: Start) -> None:
    server = chatws_server("--message-rate", "0", "--subscription-rate", "0", "--ping-interval", "0", **MALLOC)
    with ExitStack() as stack:
        good = {}
        for number in range(GOOD):
            page = stack.enter_context(Raw(server.port)).upgrade().enter(f"good {number}", CONVERSATION)
            good[page.socket.fileno()] = Reader(page)
        slow = [
            stack.enter_context(Raw(server.port, receive_buffer=4096)).upgrade().enter(f"slow {number}", CONVERSATION)
            for number in range(SLOW)
        ]
        backend = stack.enter_context(server.backend())
        epoll = stack.enter_context(select.epoll())
        for descriptor in good:
            epoll.register(descriptor, select.EPOLLIN)

        def serve_until(condition: Callable[[], bool]) -> None:
            end = time.monotonic() + 3 * DEADLINE
            while not condition():
                assert time.monotonic() < end, "the others are not served"
                for descriptor, _ in epoll.poll(0.05):
                    good[descriptor].take()

        serve_until(lambda: not epoll.poll(0.2))
        before = highest = rss(server.pid)
        for number in range(EVENTS):
            data = {"conversation_id": CONVERSATION, "number": number, "content": "x" * SIZE}
            backend.push("new_message", data, transient=True)
            for _ in range(OWN_EVENTS):
                for reader in range(SLOW):
                    own = {"content": "x" * SIZE}
                    backend.send({"event": "own", "data": own, "to": {"user_id": f"slow {reader}"}, "transient": True})
            serve_until(lambda expected=number + 1: all(len(reader.numbers) == expected for reader in good.values()))
            highest = max(highest, rss(server.pid))
        assert all(reader.numbers == list(range(EVENTS)) for reader in good.values())
        # a slow one is ended with 1 MiB waiting for it, three quarters of that its own: without a limit it would be
        # EVENTS * OWN_EVENTS * SIZE = 4.5 MiB each
        assert before + SLOW * MIB / 4 < highest < before + SLOW * MIB * 3 / 2, (before, highest)
        until(lambda: rss(server.pid) < before + SLOW * MIB / 4, "the memory to be freed")
        print(
            f"resident: {before / MIB:.0f} MiB before, {highest / MIB:.0f} at most, {rss(server.pid) / MIB:.0f} after"
        )
        # one that reads again within the seconds of a closing handshake would find 4001; these are past that, or not
        for page in slow:
            page.read_to_end()
        assert backend.push("new_message", {"conversation_id": CONVERSATION, "number": -1})["delivered"] == GOOD
        serve_until(lambda: all(reader.numbers[-1] == -1 for reader in good.values()))
