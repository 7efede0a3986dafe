"""The demo's backend: its HTTP answers, what it stores, and what it tells the push port."""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from treq.testing import StubTreq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.demo.api import PAGE
from chatws.demo.backend import TYPING_SECONDS, DemoBackend
from chatws.demo.seed import AGENTS, CONVERSATIONS, NEWCOMERS
from chatws.demo.service import DemoService
from chatws.errors import OperatorError

#: 2026-11-23T12:00:00Z
NOON = 1795435200.0


class RecordingPush:
    """Takes every notification; accepts it at once, or when `hold` is set, when told to."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []
        self.held: list[Deferred[Any]] = []
        self.hold = False
        self.closed = False
        self.failure: Exception | None = None

    def publish(
        self, event: str, data: Any, *, to: Any = None, except_user_id: Any = None, key: str | None = None
    ) -> Deferred[Any]:
        # through JSON, as on the wire: what cannot be sent fails here
        self.published.append({"event": event, "data": json.loads(json.dumps(data)), "to": to, "key": key})
        assert except_user_id is None
        if self.failure is not None:
            return fail(self.failure)
        if self.hold:
            waiting: Deferred[Any] = Deferred()
            self.held.append(waiting)
            return waiting
        return succeed(None)

    def close(self) -> Deferred[Any]:
        self.closed = True
        return succeed(None)

    @property
    def events(self) -> list[str]:
        return [one["event"] for one in self.published]

    def take(self) -> list[dict[str, Any]]:
        taken, self.published = self.published, []
        return taken


class SynchronousPool:
    """adbapi's ConnectionPool without its thread."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.connection = sqlite3.connect(**arguments)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys = ON")

    def runInteraction(self, interaction: Any, *arguments: Any) -> Deferred[Any]:
        def run() -> Any:
            with self.connection:
                return interaction(self.connection.cursor(), *arguments)

        return maybeDeferred(run)

    def close(self) -> None:
        self.connection.close()


class DemoCase(SynchronousTestCase):
    path = ""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOON)
        self.push = RecordingPush()
        self.backend = DemoBackend(self.push, self.path, reactor=self.clock, make_pool=SynchronousPool)
        self.backend.start()
        self.treq = StubTreq(self.backend.resource())

    def tearDown(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        assert self.clock.getDelayedCalls() == []

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self.successResultOf(self.treq.request(method, f"http://shop.example{path}", **options))

    def body(self, response: Any) -> Any:
        return self.successResultOf(self.treq.json_content(response))

    def get(self, path: str, status: int = 200) -> Any:
        response = self.request("GET", path)
        body = self.body(response)
        assert response.code == status, (response.code, body)
        return body

    def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        response = self.request("POST", path, data=raw, headers={"Content-Type": "application/json"})
        answer = self.body(response)
        assert response.code == status, (response.code, answer)
        return answer

    def refused(self, status: int, code: str, method: str, path: str, body: Any = None) -> str:
        answer = self.get(path, status) if method == "GET" else self.post(path, body, status)
        assert answer["error"]["code"] == code, answer
        assert self.push.published == []
        message: str = answer["error"]["message"]
        return message

    def conversation(self, number: int, agent: int = 1) -> Any:
        listed = self.get(f"/api/conversations?agent_id={agent}")["conversations"]
        return next(one for one in listed if one["id"] == number)


class Page(DemoCase):
    def test_the_page_is_at_the_root_and_its_files_under_demo(self) -> None:
        page = self.request("GET", "/")
        assert page.code == 200
        assert page.headers.getRawHeaders("content-type") == ["text/html; charset=utf-8"]
        text = self.successResultOf(self.treq.text_content(page))
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
            assert f"/demo/{name}" in text
            file = self.request("GET", f"/demo/{name}")
            assert (file.code, file.headers.getRawHeaders("content-type")) == (200, [f"{kind}; charset=utf-8"])

    def test_every_script_and_style_that_the_page_names_is_served(self) -> None:
        named = set()
        for path in PAGE.iterdir():
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r'"(/demo/[^"]+)"', text))
            named |= {f"/demo/{one}" for one in re.findall(r'from "\./([^"]+)"', text)}
        assert "/demo/app.js" in named
        for one in named:
            assert self.request("GET", one).code == 200, one

    def test_the_page_may_load_nothing_from_elsewhere(self) -> None:
        headers = self.request("GET", "/").headers
        assert "default-src 'self'" in headers.getRawHeaders("content-security-policy")[0]
        assert headers.getRawHeaders("x-content-type-options") == ["nosniff"]

    def test_an_unchanged_file_is_not_sent_again(self) -> None:
        first = self.request("GET", "/demo/app.js")
        etag = first.headers.getRawHeaders("etag")[0]
        again = self.request("GET", "/demo/app.js", headers={"If-None-Match": etag})
        assert (again.code, self.successResultOf(self.treq.content(again))) == (304, b"")

    def test_the_page_takes_no_other_methods(self) -> None:
        assert self.request("HEAD", "/").code == 200
        assert self.request("POST", "/", data=b"x").code == 405

    def test_there_is_no_way_out_of_the_pages_directory(self) -> None:
        for path in (
            "/demo/",
            "/demo/../store.py",
            "/demo/%2e%2e/store.py",
            "/demo/app.js/x",
            "/demo/schema.sql",
            "/x",
        ):
            assert self.request("GET", path).code == 404, path


class Reading(DemoCase):
    def test_agents_come_with_the_databases_own_name(self) -> None:
        answer = self.get("/api/agents")
        assert [one["name"] for one in answer["agents"]] == [name for name, _ in AGENTS.values()]
        assert set(answer["agents"][0]) == {"id", "name", "team"}
        assert answer["instance"]

    def test_an_empty_shop_is_filled_with_conversations(self) -> None:
        listed = self.get("/api/conversations?agent_id=1")["conversations"]
        assert len(listed) == len(CONVERSATIONS)
        assert {one["status"] for one in listed} == {"open", "closed"}
        assert [one["updated_at"] for one in listed] == sorted((one["updated_at"] for one in listed), reverse=True)
        marina = next(one for one in listed if one["contact_name"] == "Marina Costa")
        assert marina["last_message"]["content"].startswith("Amanhã de manhã")
        assert marina["updated_at"] == marina["last_message"]["created_at"] == "2026-11-23T11:57:00.000Z"
        assert marina["assigned_to"] == 1

    def test_unread_counts_are_each_agents_own(self) -> None:
        assert [self.conversation(1, agent)["unread"] for agent in (1, 2)] == [1, 0]
        assert [self.conversation(3, agent)["unread"] for agent in (1, 2)] == [2, 2]

    def test_without_an_agent_the_list_says_nothing_of_unread(self) -> None:
        assert "unread" not in self.get("/api/conversations")["conversations"][0]

    def test_a_conversation_comes_with_its_messages_and_who_read_how_far(self) -> None:
        answer = self.get("/api/conversations/1/messages")
        ids = [one["id"] for one in answer["messages"]]
        assert ids == sorted(ids)
        assert len(ids) == 5
        assert answer["messages"][0]["sender_type"] == "customer"
        assert answer["messages"][1]["sender_id"] == 1
        assert answer["reads"]["2"] == ids[-1]
        assert answer["reads"]["1"] == ids[-2]
        assert answer["conversation"]["id"] == 1

    def test_only_the_latest_messages_of_a_long_conversation_come(self) -> None:
        for number in range(210):
            self.post("/api/conversations/1/messages", {"agent_id": 1, "content": str(number)}, 201)
        contents = [one["content"] for one in self.get("/api/conversations/1/messages")["messages"]]
        assert contents == [str(number) for number in range(10, 210)]

    def test_head_is_answered_without_a_body(self) -> None:
        response = self.request("HEAD", "/api/agents")
        assert response.code == 200
        assert self.successResultOf(self.treq.content(response)) == b""


class Sending(DemoCase):
    def test_a_message_is_stored_and_told_to_the_conversation_and_to_every_list(self) -> None:
        answer = self.post(
            "/api/conversations/2/messages", {"agent_id": 2, "content": " Olá! ☕ ", "client_id": "c1"}, 201
        )
        message = answer["message"]
        assert message == {
            "id": message["id"],
            "conversation_id": 2,
            "sender_type": "agent",
            "sender_id": 2,
            "content": "Olá! ☕",
            "created_at": "2026-11-23T12:00:00.000Z",
            "client_id": "c1",
        }
        said, listed = self.push.take()
        assert said["event"] == "new_message"
        assert said["data"] == {"conversation_id": 2, "message": message}
        assert listed["event"] == "conversation_updated"
        assert listed["data"]["conversation_id"] == 2
        conversation = listed["data"]["conversation"]
        assert conversation["last_message"] == message
        assert conversation["unread_counts"] == {"1": 1, "2": 0, "3": 1, "4": 2}
        assert said["to"] is None is listed["to"]
        assert self.get("/api/conversations/2/messages")["messages"][-1] == message

    def test_a_message_sent_twice_is_stored_once_and_told_with_the_same_key(self) -> None:
        body = {"agent_id": 1, "content": "once", "client_id": "c7"}
        first = self.post("/api/conversations/1/messages", body, 201)
        second = self.post("/api/conversations/1/messages", body, 200)
        assert first["message"] == second["message"]
        keys = [one["key"] for one in self.push.take() if one["event"] == "new_message"]
        assert len(keys) == 2
        assert keys[0] == keys[1]
        assert keys[0] is not None

    def test_keys_of_two_databases_never_meet(self) -> None:
        other = DemoBackend(self.push, "", reactor=self.clock, make_pool=SynchronousPool)
        other.start()
        for backend in (self.backend, other):
            self.successResultOf(Deferred.fromCoroutine(backend.send(1, 1, "x", None)))
        self.successResultOf(Deferred.fromCoroutine(other.stop()))
        one, two = (entry for entry in self.push.published if entry["event"] == "new_message")
        assert one["data"]["message"]["id"] == two["data"]["message"]["id"]
        assert one["key"] != two["key"]

    def test_nobody_writes_in_a_closed_conversation(self) -> None:
        self.refused(
            409, "conversation_closed", "POST", "/api/conversations/7/messages", {"agent_id": 1, "content": "x"}
        )

    def test_a_long_message_is_cut_in_lists_only(self) -> None:
        answer = self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "a" * 4000}, 201)
        assert len(answer["message"]["content"]) == 4000
        assert len(answer["conversation"]["last_message"]["content"]) == 140

    def test_a_failed_notification_does_not_fail_the_request(self) -> None:
        self.push.failure = ConnectionRefusedError("nobody there")
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "kept"}, 201)
        assert self.get("/api/conversations/1/messages")["messages"][-1]["content"] == "kept"

    def test_the_request_is_answered_before_the_notification_is_accepted(self) -> None:
        self.push.hold = True
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "quick"}, 201)
        assert len(self.push.held) == 2
        for waiting in self.push.held:
            waiting.callback(None)

    def test_the_end_waits_for_notifications_on_their_way_but_not_for_ever(self) -> None:
        self.push.hold = True
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "late"}, 201)
        stopping = Deferred.fromCoroutine(self.backend.stop())
        self.assertNoResult(stopping)
        self.push.held[0].callback(None)
        self.assertNoResult(stopping)
        self.clock.advance(2.0)
        self.successResultOf(stopping)


class Changing(DemoCase):
    def test_assigning_leaves_a_note_and_tells_every_list(self) -> None:
        answer = self.post("/api/conversations/3/assign", {"agent_id": 2, "by": 1})
        assert answer["conversation"]["assigned_to"] == 2
        said, listed = self.push.take()
        note = said["data"]["message"]
        assert (note["sender_type"], note["content"], note["sender_id"], note["about_id"]) == ("note", "assigned", 1, 2)
        assert listed["event"] == "conversation_updated"
        assert listed["data"]["conversation"]["assigned_to"] == 2

    def test_a_note_is_neither_unread_nor_the_last_message_nor_moves_the_list(self) -> None:
        before = self.conversation(5)
        self.clock.advance(60)
        self.post("/api/conversations/5/assign", {"agent_id": None})
        after = self.conversation(5)
        assert after["assigned_to"] is None
        for name in ("unread", "last_message", "updated_at"):
            assert after[name] == before[name]

    def test_what_is_so_already_is_not_told_again(self) -> None:
        self.post("/api/conversations/1/assign", {"agent_id": 1})
        self.post("/api/conversations/1/reopen")
        self.post("/api/conversations/7/close", {"by": 2})
        assert self.push.published == []

    def test_closing_and_reopening_are_told(self) -> None:
        assert self.post("/api/conversations/1/close", {"by": 1})["conversation"]["status"] == "closed"
        assert self.post("/api/conversations/1/reopen", {"by": 2})["conversation"]["status"] == "open"
        assert self.push.events == ["new_message", "conversation_updated"] * 2
        assert [one["data"]["message"]["content"] for one in self.push.published[::2]] == ["closed", "reopened"]
        assert [one["data"]["conversation"]["status"] for one in self.push.published[1::2]] == ["closed", "open"]

    def test_reading_is_told_to_the_conversation_and_to_the_agents_own_windows(self) -> None:
        last = self.get("/api/conversations/1/messages")["messages"][-1]["id"]
        answer = self.post("/api/conversations/1/read", {"agent_id": 1})
        assert answer["conversation"]["unread_counts"]["1"] == 0
        read, own = self.push.take()
        assert read["event"] == "message_read"
        assert read["data"] == {"conversation_id": 1, "message_id": last, "user_id": 1}
        assert read["to"] is None
        assert own["event"] == "conversation_updated"
        assert own["to"] == {"user_id": 1}
        assert own["data"]["conversation"]["unread_counts"]["1"] == 0

    def test_every_change_gives_the_conversation_a_higher_version(self) -> None:
        versions = [self.conversation(3)["version"]]
        for path, body, status in (
            ("messages", {"agent_id": 1, "content": "x"}, 201),
            ("assign", {"agent_id": 2}, 200),
            ("read", {"agent_id": 4}, 200),
            ("close", {}, 200),
            ("reopen", {}, 200),
        ):
            versions.append(self.post(f"/api/conversations/3/{path}", body, status)["conversation"]["version"])
        assert versions == sorted(set(versions))
        told = [one["data"]["conversation"]["version"] for one in self.push.take() if "conversation" in one["data"]]
        assert told == versions[1:]

    def test_reading_never_goes_back_and_is_told_once(self) -> None:
        ids = [one["id"] for one in self.get("/api/conversations/3/messages")["messages"]]
        for message_id in (ids[0], ids[1], ids[0], ids[1], 10**15):
            self.post("/api/conversations/3/read", {"agent_id": 1, "message_id": message_id})
        read = [one["data"]["message_id"] for one in self.push.published if one["event"] == "message_read"]
        assert read == ids
        assert self.conversation(3)["unread"] == 0

    def test_an_agents_own_message_is_read_by_that_agent(self) -> None:
        self.post("/api/conversations/3/messages", {"agent_id": 2, "content": "Bom dia!"}, 201)
        assert self.conversation(3, 2)["unread"] == 0
        assert self.conversation(3, 1)["unread"] == 3


class Customers(DemoCase):
    def test_a_customer_writes_where_told_what_told(self) -> None:
        answer = self.post("/api/customer", {"conversation_id": 4, "content": "Any news?"}, 201)
        assert answer["message"]["sender_type"] == "customer"
        assert answer["message"]["content"] == "Any news?"
        assert answer["conversation"]["id"] == 4
        assert self.push.events == ["new_message", "conversation_updated"]
        assert self.conversation(4, 1)["unread"] == 2

    def test_a_customer_has_something_else_to_say_each_time(self) -> None:
        lines = [self.post("/api/customer", {"conversation_id": 1}, 201)["message"]["content"] for _ in range(5)]
        assert len(set(lines)) == 5
        assert lines[0].startswith("Pode ser no nome da Dona Célia")

    def test_a_newcomer_opens_a_conversation_for_everyone(self) -> None:
        answer = self.post("/api/customer", {"new": True}, 201)
        conversation = answer["conversation"]
        assert conversation["contact_name"] == NEWCOMERS[0][0].name
        assert conversation["status"] == "open"
        created, said = self.push.take()
        assert created["event"] == "new_conversation"
        assert created["data"]["conversation"] == conversation
        assert conversation["unread_counts"] == {"1": 1, "2": 1, "3": 1, "4": 1}
        assert said["event"] == "new_message"
        again = self.post("/api/customer", {"new": True}, 201)["conversation"]
        assert again["contact_name"] == NEWCOMERS[1][0].name

    def test_left_alone_the_demo_takes_those_answered_those_waiting_and_newcomers_in_turns(self) -> None:
        self.post("/api/conversations/6/messages", {"agent_id": 4, "content": "Sim!"}, 201)
        chosen = [self.post("/api/customer", None, 201) for _ in range(3)]
        assert [one["conversation"]["id"] for one in chosen] == [6, 5, len(CONVERSATIONS) + 1]

    def test_when_nothing_is_open_somebody_new_writes(self) -> None:
        for one in self.get("/api/conversations")["conversations"]:
            self.post(f"/api/conversations/{one['id']}/close")
        answer = self.post("/api/customer", None, 201)
        assert answer["conversation"]["id"] == len(CONVERSATIONS) + 1

    def test_a_closed_conversation_opens_when_its_customer_writes(self) -> None:
        answer = self.post("/api/customer", {"conversation_id": 7}, 201)
        assert answer["conversation"]["status"] == "open"
        assert self.push.published[-1]["data"]["conversation"]["status"] == "open"

    def test_a_customer_may_be_seen_typing_first(self) -> None:
        waiting = self.treq.post("http://shop.example/api/customer", json={"conversation_id": 1, "typing": True})
        self.assertNoResult(waiting)
        (typing,) = self.push.take()
        assert typing["event"] == "typing"
        assert typing["data"] == {"conversation_id": 1, "user_id": "customer-1", "is_typing": True}
        self.clock.advance(TYPING_SECONDS)
        self.treq.flush()
        assert self.successResultOf(waiting).code == 201
        assert self.push.events == ["typing", "new_message", "conversation_updated"]
        assert self.push.published[0]["data"]["is_typing"] is False

    def test_a_customer_caught_typing_by_the_end_leaves_nothing_behind(self) -> None:
        waiting = self.treq.post("http://shop.example/api/customer", json={"conversation_id": 1, "typing": True})
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.treq.flush()
        assert self.successResultOf(waiting).code in (201, 503)
        assert self.clock.getDelayedCalls() == []


class Refusals(DemoCase):
    def test_unknown_things_are_404(self) -> None:
        for method, path, body in (
            ("GET", "/api/", None),
            ("GET", "/api/nothing", None),
            ("GET", "/api/conversations/x/messages", None),
            ("GET", "/api/conversations/99/messages", None),
            ("GET", "/api/conversations?agent_id=9", None),
            ("POST", "/api/conversations/99/messages", {"agent_id": 1, "content": "x"}),
            ("POST", "/api/conversations/1/messages", {"agent_id": 9, "content": "x"}),
            ("POST", "/api/conversations/1/assign", {"agent_id": 9}),
            ("POST", "/api/conversations/1/assign", {"agent_id": 2, "by": 9}),
            ("POST", "/api/conversations/99/close", {}),
            ("POST", "/api/conversations/1/reopen", {"by": 9}),
            ("POST", "/api/conversations/1/read", {"agent_id": 9}),
            ("POST", "/api/customer", {"conversation_id": 99}),
            ("POST", "/api/customer", {"conversation_id": 99, "typing": True}),
        ):
            self.refused(404, "not_found", method, path, body)

    def test_a_wrong_method_is_405_and_names_the_right_one(self) -> None:
        self.refused(405, "method_not_allowed", "GET", "/api/customer")
        self.refused(405, "method_not_allowed", "POST", "/api/agents")
        response = self.request("DELETE", "/api/conversations/1/messages")
        assert response.code == 405
        assert response.headers.getRawHeaders("allow") == ["GET, POST"]

    def test_a_bad_field_is_400_and_named(self) -> None:
        path = "/api/conversations/1/messages"
        for body, name in (
            ({"content": "x"}, "agent_id"),
            ({"agent_id": 1}, "content"),
            ({"agent_id": "1", "content": "x"}, "agent_id"),
            ({"agent_id": True, "content": "x"}, "agent_id"),
            ({"agent_id": 0, "content": "x"}, "agent_id"),
            ({"agent_id": 2**60, "content": "x"}, "agent_id"),
            ({"agent_id": 1, "content": 5}, "content"),
            ({"agent_id": 1, "content": ""}, "content"),
            ({"agent_id": 1, "content": " \n\u0000 "}, "content"),
            ({"agent_id": 1, "content": "a" * 4001}, "content"),
            ({"agent_id": 1, "content": "x", "client_id": ""}, "client_id"),
            ({"agent_id": 1, "content": "x", "client_id": "c" * 65}, "client_id"),
        ):
            assert name in self.refused(400, "bad_request", "POST", path, body), body
        assert "agent_id" in self.refused(400, "bad_request", "POST", "/api/conversations/1/assign", {})
        assert "agent_id" in self.refused(400, "bad_request", "GET", "/api/conversations?agent_id=x")
        assert "new" in self.refused(400, "bad_request", "POST", "/api/customer", {"new": True, "conversation_id": 1})

    def test_what_is_no_json_object_is_400(self) -> None:
        path = "/api/conversations/1/messages"
        deep = b'{"agent_id":1,"content":"x","more":' + b"[" * 10_000
        for raw in (b"{", b"\xff", b'{"agent_id":1,"content":"\\ud800"}', deep, b"NaN"):
            self.refused(400, "bad_json", "POST", path, raw)
        for raw in (b"[]", b"null", b'"x"'):
            self.refused(400, "bad_request", "POST", path, raw)

    def test_too_large_a_body_is_413(self) -> None:
        body = {"agent_id": 1, "content": "x", "more": "a" * 40_000}
        self.refused(413, "too_large", "POST", "/api/conversations/1/messages", body)

    def test_another_sites_form_is_refused(self) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            response = self.request("POST", "/api/customer", data=b"{}", headers={"Content-Type": kind})
            assert response.code == 415
        assert self.push.published == []

    def test_control_characters_are_dropped_from_a_message(self) -> None:
        body = {"agent_id": 1, "content": "a\u0000b\u001b[31m\tc\nd"}
        assert self.post("/api/conversations/1/messages", body, 201)["message"]["content"] == "ab[31m\tc\nd"

    def test_our_own_fault_is_500_without_details(self) -> None:
        self.backend._pool.connection.execute("DROP TABLE reads")  # type: ignore[union-attr]
        assert self.get("/api/conversations/1/messages", 500)["error"]["code"] == "internal_error"
        assert len(self.flushLoggedErrors(sqlite3.OperationalError)) == 1

    def test_before_the_start_the_api_is_unavailable(self) -> None:
        asleep = DemoBackend(self.push, "", reactor=self.clock, make_pool=SynchronousPool)
        response = self.successResultOf(StubTreq(asleep.resource()).get("http://shop.example/api/agents"))
        assert response.code == 503


class Persistence(SynchronousTestCase):
    def test_what_was_stored_is_there_after_a_restart_and_nothing_is_seeded_twice(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "demo.sqlite")
            instances = []
            for turn in range(3):
                backend = DemoBackend(RecordingPush(), path, reactor=Clock(), make_pool=SynchronousPool)
                backend.start()
                instances.append(backend.instance)
                self.successResultOf(Deferred.fromCoroutine(backend.send(1, 1, f"turn {turn}", None)))
                _, messages, _ = self.successResultOf(Deferred.fromCoroutine(backend.messages(1)))
                assert [one["content"] for one in messages[5:]] == [f"turn {n}" for n in range(turn + 1)]
                listed = self.successResultOf(Deferred.fromCoroutine(backend.conversations(1)))
                assert len(listed) == len(CONVERSATIONS)
                self.successResultOf(Deferred.fromCoroutine(backend.stop()))
            assert len(set(instances)) == 1

    def test_a_database_that_cannot_be_opened_is_the_operators_business(self) -> None:
        for path in ("/nonexistent/demo.sqlite", "/dev/null/x", str(Path(__file__))):
            backend = DemoBackend(RecordingPush(), path, reactor=Clock(), make_pool=SynchronousPool)
            with pytest.raises(OperatorError, match="demo's database"):
                backend.start()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["", "demo.sqlite"])
async def test_the_service_runs_on_a_thread_of_its_own_and_ends_it(path: str, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    push = RecordingPush()
    service = DemoService(push, str(tmp_path / path) if path else "", reactor=reactor)
    service.startService()
    change = await service.backend.send(1, 1, "hello", None)
    _, messages, _ = await service.backend.messages(1)
    assert messages[-1]["id"] == change.message["id"]
    with pytest.raises(Exception, match="no conversation 99"):
        await service.backend.messages(99)
    assert push.events == ["new_message", "conversation_updated"]
    await service.stopService()
    assert push.closed
    assert {one for one in threading.enumerate() if one.is_alive()} <= threads
    await service.stopService()
