"""The main job on real input: a real `twistd chatws`, real WebSockets, real lines over TCP (docs/protocol.md)."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import Server
from tests.e2e.wire import Browser
from tests.requirements import needs, needs_io_uring

Start = Callable[..., Server]

MESSAGE = {"conversation_id": 1, "message": {"id": 9, "content": "hi"}}


def error_of(browser: Browser) -> dict[str, Any]:
    """The data of the next `error`."""
    result: dict[str, Any] = browser.expect("error")["data"]
    return result


# --- the two ports --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/ws", "/ws?source=inbox"])
def test_browsers_are_welcome_on_both_paths(path: str, server: Server) -> None:
    with server.browser(path) as browser:
        browser.send({"type": "ping"})
        assert browser.receive() == {"type": "pong"}
        assert browser.texts == ['{"type":"pong"}']


@pytest.mark.parametrize("path", ["/chat", "/ws/", "/WS", "//ws", "/healthz"])
def test_any_other_path_is_refused_before_the_upgrade(path: str, server: Server) -> None:
    with pytest.raises(InvalidStatus) as caught:
        server.browser(path)
    assert caught.value.response.status_code == 404


@pytest.mark.parametrize("size", [8_000, 16_000, 32_000])
def test_long_cookies_of_a_page_or_a_request_are_accepted(size: int, server: Server) -> None:
    """Laravel's cookies together with those of single sign-on exceed the 8 KiB of many servers."""
    cookies = {"Cookie": "laravel_session=" + "x" * size}
    with server.browser(headers=cookies) as browser:
        assert browser.auth(1)["user_id"] == 1
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/healthz", headers=cookies)
    assert connection.getresponse().status == 200
    connection.close()


def get(server: Server, path: str, method: str = "GET") -> tuple[int, http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response, body


def test_ordinary_http_on_the_same_port_is_answered(server: Server) -> None:
    assert get(server, "/healthz")[0] == 200
    assert get(server, "/nothing/here")[0] == 404
    status, response, body = get(server, "/ws")
    assert (status, response.getheader("Upgrade")) == (426, "websocket")
    assert b"WebSocket" in body
    assert get(server, "/ws", "POST")[0] == 405


def test_the_client_library_is_served(server: Server) -> None:
    status, response, body = get(server, "/assets/js/websocket-client.js")
    assert status == 200
    assert "javascript" in (response.getheader("Content-Type") or "")
    assert b"wsClient" in body


def test_server_without_demo_serves_none_of_its_files(server: Server) -> None:
    assert get(server, "/")[0] == 426
    assert get(server, "/api/conversations")[0] == 404


def test_trust_is_logged_once_at_start(server: Server) -> None:
    assert server.log.count("--auth trust accepts any user_id") == 1


# --- the inbox ------------------------------------------------------------------------------------------------------


def test_two_agents_see_each_other_type(server: Server) -> None:
    with server.agent(1, 456) as ana, server.agent(2, 456) as bruno, server.agent(3) as carla:
        ana.send({"type": "typing", "conversation_id": 456, "is_typing": True})
        data = bruno.expect("typing")["data"]
        assert data == {"conversation_id": 456, "user_id": 1, "is_typing": True}
        ana.send({"type": "typing", "conversation_id": "456", "is_typing": False})
        event = bruno.expect("typing")
        assert event["data"]["is_typing"] is False
        assert "id" not in event
        assert not [item for item in ana.settle() + carla.settle() if item["event"] == "typing"]


def test_messages_sent_right_behind_the_auth_are_held_in_order(server: Server) -> None:
    with server.browser() as ana, server.agent(2, 456) as bruno:
        ana.send({"type": "auth", "user_id": 1})
        ana.send({"type": "subscribe", "conversation_id": 456})
        ana.send({"type": "typing", "conversation_id": 456})
        ana.send({"type": "presence"})
        assert ana.expect("authenticated")["data"]["user_id"] == 1
        assert ana.expect("subscribed")["data"]["conversation_id"] == 456
        assert ana.expect("presence")["data"] == {"online": [1, 2]}
        bruno.expect("typing", user_id=1, is_typing=True)


def test_several_tabs_are_one_agent(server: Server) -> None:
    with server.agent(2) as bruno:
        first, second = server.agent(1), server.agent("1")
        bruno.expect("agent_status", agent_id=1, status="online")
        first.close()
        assert not [item for item in bruno.settle() if item.get("event") == "agent_status"]
        bruno.send({"type": "presence"})
        assert bruno.expect("presence")["data"] == {"online": [1, 2]}
        second.drop()
        bruno.expect("agent_status", agent_id=1, status="offline")
        bruno.send({"type": "presence"})
        assert bruno.expect("presence")["data"] == {"online": [2]}


def test_a_page_that_is_reloaded_does_not_go_offline(chatws_server: Start) -> None:
    server = chatws_server("--presence-grace", "60")
    with server.agent(2) as bruno:
        server.agent(1).close()
        bruno.expect("agent_status", agent_id=1, status="online")
        with server.agent(1):
            assert not [item for item in bruno.settle() if item.get("event") == "agent_status"]


def test_a_tab_that_was_typing_and_closes_stops_typing(server: Server) -> None:
    with server.agent(2, 456) as bruno:
        ana = server.agent(1, 456)
        ana.send({"type": "typing", "conversation_id": 456})
        bruno.expect("typing", user_id=1, is_typing=True)
        ana.drop()
        bruno.expect("typing", user_id=1, is_typing=False)


def test_unsubscribe_ends_the_events_of_the_conversation(server: Server) -> None:
    with server.agent(1, 1) as ana, server.backend() as backend:
        ana.send({"type": "unsubscribe", "conversation_id": 1})
        ana.expect("unsubscribed", conversation_id=1)
        assert backend.push("new_message", MESSAGE)["delivered"] == 0
        ana.send({"type": "unsubscribe", "conversation_id": 1})
        ana.expect("unsubscribed", conversation_id=1)


def test_activity_is_recorded_and_never_answered(server: Server) -> None:
    with server.agent(1) as ana:
        ana.send({"type": "activity", "activity_type": "visibility_change"})
        ana.send({"type": "ping", "last_activity": 1764000000000})
        assert ana.receive() == {"type": "pong"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_json"),
        ("[]", "bad_message"),
        ('{"type":"subscribe"}', "bad_message"),
        ('{"type":"subscribe","conversation_id":4.5}', "bad_message"),
        ('{"type":"subscribe","conversation_id":true}', "bad_message"),
        ('{"type":"dance"}', "unknown_type"),
        ('{"type":"auth","user_id":2}', "already_authenticated"),
        ('{"type":"typing","conversation_id":99}', "not_subscribed"),
        (b"{}", "unsupported"),
    ],
)
def test_a_message_that_cannot_be_honoured_is_answered_and_the_connection_stays(
    text: str | bytes, code: str, server: Server
) -> None:
    with server.agent(1, 1) as ana:
        ana.send_text(text)
        assert error_of(ana)["code"] == code
        ana.subscribe(2)


def test_unauthenticated_client_may_only_ping(server: Server) -> None:
    with server.browser() as stranger:
        for kind in ("subscribe", "unsubscribe", "typing"):
            stranger.send({"type": kind, "conversation_id": 1})
            error = error_of(stranger)
            assert error["code"] == "unauthenticated"
            assert error["request"]["type"] == kind
        stranger.send({"type": "presence"})
        assert error_of(stranger)["code"] == "unauthenticated"
        stranger.send({"type": "ping"})
        stranger.expect("pong")


def test_too_many_subscriptions_are_refused(chatws_server: Start) -> None:
    with chatws_server("--max-subscriptions", "2").agent(1, 1, 2, 2) as ana:
        ana.send({"type": "subscribe", "conversation_id": 3})
        assert error_of(ana)["code"] == "too_many_subscriptions"


# --- push API -------------------------------------------------------------------------------------------------------


def test_a_message_pushed_by_a_backend_is_seen_by_the_conversations_subscribers(server: Server) -> None:
    with server.agent(1, 1) as ana, server.agent(2) as bruno, server.backend() as backend:
        answer = backend.push("new_message", MESSAGE)
        assert answer["delivered"] == 1
        event = ana.expect("new_message")
        assert event["data"] == MESSAGE
        assert event["id"] == answer["event_id"]
        assert not [item for item in bruno.settle() if item["event"] == "new_message"]


def test_the_data_reaches_the_browser_as_the_backend_wrote_it(server: Server) -> None:
    data = (
        '{"message":{"z":1.50,"a":1e3,"big":123456789012345678901234567890,"t":"\\u00e9 é \\/"},"conversation_id":"1"}'
    )
    with server.agent(1, 1) as ana, server.backend() as backend:
        backend.send_bytes(f'{{"event":"new_message","data":{data},"ack":true}}\n'.encode())
        event_id = backend.read_line()["event_id"]
        ana.expect("new_message")
        assert ana.texts[-1] == f'{{"event":"new_message","data":{data},"id":"{event_id}"}}'


def test_each_audience_is_reached_and_no_other(server: Server) -> None:
    with (
        server.agent(5, 456) as ana,
        server.agent(6) as bruno,
        server.agent(7) as carla,
        server.browser() as stranger,
        server.backend() as backend,
    ):
        for name, more in (
            ("to_conversation", {"to": {"conversation_id": "456"}}),
            ("to_user", {"to": {"user_id": 6}}),
            ("to_users", {"to": {"user_ids": [5, 7]}}),
            ("to_all", {"to": "everyone"}),
            ("to_others", {"to": "everyone", "except_user_id": 5}),
        ):
            backend.push(name, {}, **more)
        backend.push("conversation_updated", {"conversation_id": 456, "conversation": {}})
        backend.push("new_conversation", {"conversation": {"id": 1}})
        backend.push("agent_status", {"agent_id": 6, "status": "away"})

        def seen(browser: Browser) -> list[str]:
            return [item["event"] for item in browser.settle() if item["event"] != "agent_status"]

        common = ["conversation_updated", "new_conversation"]
        assert seen(ana) == ["to_conversation", "to_users", "to_all", *common]
        assert seen(bruno) == ["to_user", "to_all", "to_others", *common]
        assert seen(carla) == ["to_users", "to_all", "to_others", *common]
        assert {"event": "agent_status", "data": {"agent_id": 6, "status": "away"}} in bruno.received
        assert stranger.settle() == []


def test_a_pushed_typing_event_excludes_the_typing_user(server: Server) -> None:
    with server.agent(1, 1) as ana, server.agent(2, 1) as bruno, server.backend() as backend:
        backend.push("typing", {"conversation_id": 1, "user_id": 1, "is_typing": True})
        bruno.expect("typing", user_id=1)
        assert not [item for item in ana.settle() if item["event"] == "typing"]


def test_pipelined_lines_split_anywhere_are_answered_in_order(server: Server) -> None:
    lines = b"".join(
        json.dumps({"event": "new_message", "data": {**MESSAGE, "n": n}, "id": f"order-{n}", "ack": True}).encode()
        + (b"\r\n" if n % 2 else b"\n")
        for n in range(50)
    )
    with server.agent(1, 1) as ana, server.backend() as backend:
        backend.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(lines), 37):
            backend.send_bytes(lines[start : start + 37])
        assert [backend.read_line()["id"] for _ in range(50)] == [f"order-{n}" for n in range(50)]
        assert [ana.expect("new_message")["data"]["n"] for _ in range(50)] == list(range(50))


def test_bad_lines_are_answered_and_those_behind_them_count(server: Server) -> None:
    with server.agent(1, 1) as ana, server.backend() as backend:
        assert backend.request({"op": "ping"})["ok"]
        for line, code in (
            (b"{", "bad_json"),
            (b'{"event":"new_message","data":{"x":"\xff"}}', "bad_json"),
            (b'{"event":"a b","data":{}}', "bad_message"),
            (b'{"event":"order_paid","data":{}}', "no_audience"),
            (b'{"event":"authenticated","data":{},"to":"everyone"}', "reserved_event"),
            (b'{"event":"new_message","data":{}}', "bad_message"),
            (b'{"op":"dance"}', "unknown_type"),
        ):
            backend.send_bytes(line + b"\n")
            answer = backend.read_line()
            assert (answer["ok"], answer["code"]) == (False, code), line
        backend.push("new_message", MESSAGE)
        ana.expect("new_message")
        assert all("xff" not in text for text in ana.texts)


def test_a_repeated_line_with_one_id_is_delivered_once(server: Server) -> None:
    with server.agent(1, 1) as ana, server.backend() as backend:
        first = backend.push("new_message", MESSAGE, id="order-77-paid")
        second = backend.push("new_message", MESSAGE, id="order-77-paid")
        assert second["duplicate"] is True
        assert second["event_id"] == first["event_id"]
        assert len([item for item in ana.settle() if item["event"] == "new_message"]) == 1


def test_a_line_too_long_is_answered_and_closes_the_connection(chatws_server: Start) -> None:
    server = chatws_server("--max-line-size", "1000")
    with server.backend() as backend:
        backend.send({"op": "ping"})
        backend.send_bytes(b'{"event":"new_message","data":{"conversation_id":1,"x":"' + b"x" * 2000)
        answers = [json.loads(line) for line in backend.read_to_end().splitlines()]
        assert [answer["ok"] for answer in answers] == [True, False]
        assert answers[1]["code"] == "line_too_long"


def test_an_http_request_steered_at_the_push_port_does_not_get_as_far_as_its_body(server: Server) -> None:
    body = b'{"event":"stolen","data":{},"to":"everyone"}\n'
    with server.agent(1) as ana, server.backend() as backend:
        backend.send_bytes(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 46\r\n\r\n" + body)
        answers = backend.read_to_end().splitlines()
        assert [json.loads(line)["code"] for line in answers] == ["bad_json"]
        assert not [item for item in ana.settle() if item["event"] == "stolen"]


def test_the_lines_before_a_half_closed_end_count_and_are_answered(server: Server) -> None:
    with server.agent(1, 1) as ana, server.backend() as backend:
        backend.send({"event": "new_message", "data": MESSAGE, "ack": True}, {"op": "presence"})
        backend.half_close()
        answers = [json.loads(line) for line in backend.read_to_end().splitlines()]
        assert answers[0]["delivered"] == 1
        assert answers[1] == {"ok": True, "online": [1]}
        ana.expect("new_message")


def test_a_backend_can_take_a_conversation_away_and_close_a_user_s_connections(server: Server) -> None:
    with server.agent(5, 456) as ana, server.backend() as backend:
        assert backend.request({"op": "unsubscribe", "user_id": 5, "conversation_id": 456})["ok"]
        assert backend.push("new_message", {**MESSAGE, "conversation_id": 456})["delivered"] == 0
        assert backend.request({"op": "disconnect", "user_id": "5", "reason": "logged out"})["ok"]
        assert ana.expect_close() == (4000, "logged out")
        again = server.agent(5)
        assert backend.request({"op": "disconnect", "user_id": 5, "ban": True})["ok"]
        assert again.expect_close()[0] == 4903


def test_the_push_secret_must_be_the_first_line(chatws_server: Start, tmp_path: Any) -> None:
    secret = tmp_path / "push-secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    server = chatws_server("--push-secret-file", str(secret))
    with server.backend() as backend:
        assert backend.request({"op": "auth", "secret": "s3cret"})["ok"]
        assert backend.push("new_message", MESSAGE)["delivered"] == 0
    for first in ({"op": "auth", "secret": "wrong"}, {"op": "ping"}):
        with server.backend() as backend:
            backend.send(first)
            (answer,) = backend.read_to_end().splitlines()
            assert json.loads(answer)["code"] == "bad_secret"
    assert "s3cret" not in server.log


@needs("netcat-openbsd")
def test_the_line_of_the_readme_shows_the_message_and_prints_the_answer(server: Server) -> None:
    command = (
        r"""printf '{"event":"new_message","data":{"conversation_id":1,"message":{"id":9,"content":"hi"}},"""
        r""""ack":true}\n' """
        f"| nc -N 127.0.0.1 {server.push_port}"
    )
    with server.agent(1, 1) as ana:
        done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=30, check=True)
        answer = json.loads(done.stdout)
        assert (answer["ok"], answer["delivered"]) == (True, 1)
        assert ana.expect("new_message")["data"]["message"]["content"] == "hi"


# --- other addresses ------------------------------------------------------------------------------------------------


def test_a_backend_can_connect_by_a_unix_socket(chatws_server: Start, tmp_path: Any) -> None:
    from tests.e2e.wire import Backend

    path = str(tmp_path / "push.sock")
    server = chatws_server("--push-listen", f"unix:{path}:mode=660")
    with server.agent(1, 1) as ana, Backend(path) as backend:
        assert backend.push("new_message", MESSAGE)["delivered"] == 1
        ana.expect("new_message")


def test_several_addresses_for_browsers_are_one_server(chatws_server: Start, tmp_path: Any) -> None:
    from tests.e2e.process import free_port

    first, second = free_port(), free_port()
    endpoints = [f"tcp:{port}:interface=127.0.0.1" for port in (first, second)]
    server = chatws_server("--listen", endpoints[0], "--listen", endpoints[1])
    with Browser(f"ws://127.0.0.1:{first}/ws") as ana, Browser(f"ws://127.0.0.1:{second}/") as bruno:
        ana.auth(1)
        bruno.auth(2)
        bruno.send({"type": "presence"})
        assert bruno.expect("presence")["data"] == {"online": [1, 2]}
        assert server.process is not None


# --- how events leave -----------------------------------------------------------------------------------------------


@needs_io_uring
@pytest.mark.parametrize(("arguments", "rings"), [((), True), (("--no-io-uring",), False)])
def test_many_get_an_event_with_an_io_uring_and_without(
    arguments: tuple[str, ...], rings: bool, chatws_server: Start
) -> None:
    server = chatws_server(*arguments)
    files = []
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was that of the visit that found it ready
            files.append(os.readlink(path))
    assert ("anon_inode:[io_uring]" in files) == rings
    agents = [server.agent(user, 1) for user in range(1, 31)]
    with server.backend() as backend:
        for text in ("one", "two"):
            backend.push("new_message", {"conversation_id": 1, "message": {"content": text}})
    for agent in agents:
        assert [agent.expect("new_message")["data"]["message"]["content"] for _ in range(2)] == ["one", "two"]
