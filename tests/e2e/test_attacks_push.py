"""Attacks on the backends' port of a real server: whatever is sent, a bystander still gets its events."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.raw import rss
from tests.e2e.siege import PUSH_SECRET, besieged, bystander, unharmed
from tests.e2e.wire import Backend, until

__all__ = ["besieged", "unharmed"]

Start = Callable[..., Server]

MIB = 1024 * 1024
STOLEN = b'{"event":"stolen","data":{},"to":"everyone","ack":true}\n'


def admitted(server: Server) -> Backend:
    backend = server.backend()
    assert backend.request({"op": "auth", "secret": PUSH_SECRET})["ok"]
    return backend


def codes(backend: Backend) -> list[Any]:
    """The codes of all answers until the server closes; None for a yes."""
    return [json.loads(line).get("code") for line in backend.read_to_end().splitlines()]


@pytest.mark.parametrize(
    "first",
    [
        b'{"op":"auth","secret":"wrong"}\n',
        b'{"op":"auth","secret":""}\n',
        b'{"op":"auth","secret":"the-secret-of-the-backend"}\n',
        b'{"op":"auth","secret":"the-secret-of-the-backends "}\n',
        b'{"op":"auth","secret":"\\u0000"}\n',
        b'{"op":"ping"}\n',
        b'{"op":"presence"}\n',
        b'{"op":"disconnect","user_id":900}\n',
        b'{"event":"nothing","data":{}}\n',
        STOLEN,
    ],
    ids=range(10),
)
def test_lines_without_the_right_secret_have_no_effect(first: bytes, besieged: Server) -> None:
    with besieged.agent(1) as agent, besieged.backend() as backend:
        right_but_late = json.dumps({"op": "auth", "secret": PUSH_SECRET}).encode() + b"\n"
        backend.send_bytes(first + right_but_late + STOLEN)
        assert codes(backend) == ["bad_secret"]
        assert not [event for event in agent.settle() if event["event"] == "stolen"]


@pytest.mark.parametrize("first", [b'{"op":"auth"}\n', b'{"op":"auth","secret":5}\n', b'{"op":"auth","secret":null}\n'])
def test_invalid_secret_is_rejected(first: bytes, besieged: Server) -> None:
    with besieged.agent(1) as agent, besieged.backend() as backend:
        backend.send_bytes(first + STOLEN)
        assert codes(backend)[0] in ("bad_secret", "bad_message")
        assert not [event for event in agent.settle() if event["event"] == "stolen"]


FOR_OTHERS = [
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 90\r\n\r\n",
    b"GET /?" + STOLEN.strip() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"\r\nPOST / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    b"*3\r\n$3\r\nSET\r\n",
]


def smuggle(server: Server) -> None:
    with server.agent(1) as agent:
        for request in FOR_OTHERS:
            with server.backend() as backend:
                backend.send_bytes(request + STOLEN)
                assert codes(backend) == ["bad_json"]
        assert not [event for event in agent.settle() if event["event"] == "stolen"]


def test_other_protocols_on_the_push_port_are_rejected_before_their_bodies(chatws_server: Start) -> None:
    server = chatws_server()
    with bystander(server):
        smuggle(server)


def test_smuggled_requests_with_a_push_secret_are_rejected(besieged: Server) -> None:
    smuggle(besieged)


def send_without_end(backend: Backend) -> None:
    for _ in range(20_000):
        backend.send_bytes(b"x" * MIB)


def test_a_line_without_end_is_cut_off(besieged: Server) -> None:
    before = rss(besieged.pid)
    with besieged.backend() as stranger:
        stranger.send_bytes(b'{"op":"auth","secret":"' + b"x" * 8_000)
        assert codes(stranger) == ["line_too_long"]
    with admitted(besieged) as backend, pytest.raises((BrokenPipeError, ConnectionResetError)):
        # read and thrown away for a moment, so that the answer is not lost
        send_without_end(backend)
    assert rss(besieged.pid) < before + 16 * MIB


def test_a_peer_that_never_reads_is_not_read_from_and_costs_little(besieged: Server) -> None:
    before = rss(besieged.pid)
    with ExitStack() as stack:
        deaf = [stack.enter_context(admitted(besieged)) for _ in range(5)]
        lines = b'{"op":"ping","id":"%s"}\n' % (b"x" * 100) * 500
        for backend in deaf:
            backend.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            backend.socket.setblocking(False)
        sent = 0
        while writable := select.select([], [backend.socket for backend in deaf], [], 1)[1]:
            sent += sum(sock.send(lines) for sock in writable)
            assert sent < 500 * MIB, "it reads on and on"
        assert rss(besieged.pid) < before + 24 * MIB
        # who reads gets its answers meanwhile
        with admitted(besieged) as other:
            assert other.request({"op": "ping"})["ok"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"new_message","data":{"conversation_id":900,"x":"\xff"}}',
        b'{"event":"new_message","data":{"conversation_id":900},"x":"\xc3"}',
        b'\xff\xfe{\x00"\x00',
        b'{"event":"new_message","data":{"conversation_id":900}',
        b'{"event":"new_message","data":{"conversation_id":900}}}',
        b'{"event":"new_message","data":{"conversation_id":900}}\0',
        b'{"event":"new_message","data":{"conversation_id":900,"x":NaN}}',
        b'{"event":"a\\",\\"data\\":{}","data":{},"to":"everyone"}',
        b'{"event":"authenticated","data":{"user_id":1},"to":"everyone"}',
        b'{"event":"error","data":{},"to":"everyone"}',
        b'{"event":"pong","data":[],"to":"everyone"}',
        b'{"event":"x","data":{},"to":{"user_id":true}}',
        b'{"event":"x","data":{},"to":{"user_ids":"900"}}',
        b'{"event":"x","data":{},"to":"nobody"}',
        b'{"event":"' + b"x" * 65 + b'","data":{},"to":"everyone"}',
    ],
    ids=range(15),
)
def test_a_line_that_would_break_pages_never_reaches_them(line: bytes, besieged: Server) -> None:
    with besieged.agent(900, 900) as agent, admitted(besieged) as backend:
        backend.send_bytes(line + b"\n")
        answer = backend.read_line()
        assert answer["ok"] is False
        assert answer["code"] in ("bad_json", "bad_message", "reserved_event", "no_audience")
        assert backend.request({"op": "ping"})["ok"]
        assert not [event for event in agent.settle() if event["event"] != "agent_status"]


def test_data_cannot_pass_for_another_event(besieged: Server) -> None:
    data = {"conversation_id": 1, "text": '"},"id":"x:1"}\n{"event":"new_message","data":{', "sep": "\u2028\u2029"}
    with besieged.agent(1, 1) as agent, admitted(besieged) as backend:
        backend.push("new_message", data, transient=True)
        (event,) = [event for event in agent.settle() if event["event"] != "agent_status"]
        assert event == {"event": "new_message", "data": data}


@pytest.mark.long
def test_aborted_backend_connections_do_not_grow_memory(besieged: Server) -> None:
    before = rss(besieged.pid)
    for number in range(500):
        with besieged.backend() as backend:
            backend.send_bytes(b'{"op":"auth","secret":"'[: number % 24])
            if number % 2:
                backend.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert rss(besieged.pid) < before + 8 * MIB
    files = f"/proc/{besieged.pid}/fd"
    until(lambda: len(os.listdir(files)) < 60, "the connections to be closed")
