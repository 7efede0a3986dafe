"""A recovery far larger than any buffer: it stalls nobody, and is not taken for a slow reader's backlog."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.conftest import Server

COUNT = 10_000
#: Bytes of each event's data, so that all of them are several times the send buffer.
SIZE = 400


@pytest.mark.long
def test_ten_thousand_events_are_recovered_while_others_are_served(chatws_server: Callable[..., Server]) -> None:
    server = chatws_server("--send-buffer", "262144")
    bystander = server.agent(1, 7)
    with server.browser() as first:
        position = first.auth(2)["last_event_id"]
    padding = "x" * SIZE
    with server.backend() as backend:
        for start in range(0, COUNT, 1000):
            numbers = range(start, start + 1000)
            backend.send(
                *[{"event": "new_message", "data": {"conversation_id": 456, "n": n, "pad": padding}} for n in numbers]
            )
        assert backend.request({"op": "ping"})["ok"]
        with server.browser() as back:
            back.auth(2)
            answer = back.subscribe(456, last_event_id=position)
            assert (answer["recovered"], answer["replayed"]) == (True, COUNT)
            # it reads nothing now; the replay waits for it, and everybody else is served
            for number in range(20):
                backend.push("new_message", {"conversation_id": 7, "n": number})
                bystander.expect("new_message", n=number)
            # what is live comes behind what was missed
            backend.push("new_message", {"conversation_id": 456, "n": COUNT})
            seen = [back.expect("new_message")["data"]["n"] for _ in range(COUNT + 1)]
    assert seen == list(range(COUNT + 1))
