"""Test the demo's backend: its HTTP API, its data, and the events that it publishes."""

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

from chatws.demo.api import PAGE, root
from chatws.demo.backend import TYPING_SECONDS, DemoBackend
from chatws.demo.seed import AGENTS, CONVERSATIONS, NEWCOMERS
from chatws.demo.service import DemoService
from chatws.errors import ConfigError
from tests.log_lines import logged_at

#: 2026-11-23T12:00:00Z
NOON = 1795435200.0

MESSAGE = {"agent_id": 1, "content": "Olá"}


class RecordingPush:
    """Record every notification. Accept it at once, or leave it pending if `hold` is set."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = []
        self.held: list[Deferred[Any]] = []
        self.hold = False
        self.closed = False
        self.failure: Exception | None = None

    def publish(
        self, event: str, data: Any, *, to: Any = None, except_user_id: Any = None, key: str | None = None
    ) -> Deferred[Any]:
        # encode as JSON, so that data that cannot be sent fails here
        self.published.append({"event": event, "data": json.loads(json.dumps(data)), "to": to, "key": key})
        assert except_user_id is None
        if self.failure is not None:
            return fail(self.failure)
        if self.hold:
            pending: Deferred[Any] = Deferred()
            self.held.append(pending)
            return pending
        return succeed(None)

    def close(self) -> Deferred[Any]:
        self.closed = True
        return succeed(None)

    @property
    def events(self) -> list[str]:
        return [notification["event"] for notification in self.published]

    def take(self) -> list[dict[str, Any]]:
        notifications, self.published = self.published, []
        return notifications


class SynchronousPool:
    """Run transactions like adbapi's ConnectionPool, without a thread."""

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
        self.pools: list[SynchronousPool] = []

        def make_pool(arguments: dict[str, Any]) -> SynchronousPool:
            self.pools.append(SynchronousPool(arguments))
            return self.pools[-1]

        self.backend = DemoBackend(
            self.push, self.path, reactor=self.clock, make_pool=make_pool, wall_clock=self.clock.seconds
        )
        self.backend.start()
        self.treq = StubTreq(root(self.backend))

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
        result = self.body(response)
        assert response.code == status, (response.code, result)
        return result

    def refused(self, status: int, code: str, method: str, path: str, body: Any = None) -> str:
        result = self.get(path, status) if method == "GET" else self.post(path, body, status)
        assert result["error"]["code"] == code, result
        assert self.push.published == []
        message: str = result["error"]["message"]
        return message

    def conversation(self, number: int, agent: int = 1) -> Any:
        listed = self.get(f"/api/conversations?agent_id={agent}")["conversations"]
        return next(conversation for conversation in listed if conversation["id"] == number)


class Page(DemoCase):
    def test_page_and_files_are_served_at_their_paths(self) -> None:
        page = self.request("GET", "/")
        assert page.code == 200
        assert page.headers.getRawHeaders("content-type") == ["text/html; charset=utf-8"]
        text = self.successResultOf(self.treq.text_content(page))
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css")):
            assert f"/demo/{name}" in text
            file = self.request("GET", f"/demo/{name}")
            assert (file.code, file.headers.getRawHeaders("content-type")) == (200, [f"{kind}; charset=utf-8"])

    def test_scripts_and_styles_of_the_page_are_served(self) -> None:
        named = set()
        for path in PAGE.iterdir():
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r'"(/demo/[^"]+)"', text))
            named |= {f"/demo/{path}" for path in re.findall(r'from "\./([^"]+)"', text)}
        assert "/demo/app.js" in named
        for path in named:
            assert self.request("GET", path).code == 200, path

    def test_page_has_a_policy_against_foreign_sources(self) -> None:
        headers = self.request("GET", "/").headers
        assert "default-src 'self'" in headers.getRawHeaders("content-security-policy")[0]
        assert headers.getRawHeaders("x-content-type-options") == ["nosniff"]

    def test_unchanged_file_returns_304(self) -> None:
        first = self.request("GET", "/demo/app.js")
        etag = first.headers.getRawHeaders("etag")[0]
        again = self.request("GET", "/demo/app.js", headers={"If-None-Match": etag})
        assert (again.code, self.successResultOf(self.treq.content(again))) == (304, b"")

    def test_page_with_another_method_returns_405(self) -> None:
        assert self.request("HEAD", "/").code == 200
        assert self.request("POST", "/", data=b"x").code == 405

    def test_path_outside_the_page_directory_returns_404(self) -> None:
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
    def test_agents_requested_include_the_instance_name(self) -> None:
        result = self.get("/api/agents")
        assert [agent["name"] for agent in result["agents"]] == [name for name, _ in AGENTS.values()]
        assert set(result["agents"][0]) == {"id", "name", "team"}
        assert result["instance"]

    def test_empty_database_is_filled_with_conversations(self) -> None:
        listed = self.get("/api/conversations?agent_id=1")["conversations"]
        assert len(listed) == len(CONVERSATIONS)
        assert {conversation["status"] for conversation in listed} == {"open", "closed"}
        assert [conversation["updated_at"] for conversation in listed] == sorted(
            (conversation["updated_at"] for conversation in listed), reverse=True
        )
        marina = next(conversation for conversation in listed if conversation["contact_name"] == "Marina Costa")
        assert marina["last_message"]["content"].startswith("Amanhã de manhã")
        assert marina["updated_at"] == marina["last_message"]["created_at"] == "2026-11-23T11:57:00.000Z"
        assert marina["assigned_to"] == 1

    def test_unread_counts_differ_by_agent(self) -> None:
        assert [self.conversation(1, agent)["unread"] for agent in (1, 2)] == [1, 0]
        assert [self.conversation(3, agent)["unread"] for agent in (1, 2)] == [2, 2]

    def test_list_without_an_agent_has_no_unread_field(self) -> None:
        assert "unread" not in self.get("/api/conversations")["conversations"][0]

    def test_conversation_requested_includes_messages_and_read_marks(self) -> None:
        result = self.get("/api/conversations/1/messages")
        ids = [message["id"] for message in result["messages"]]
        assert ids == sorted(ids)
        assert len(ids) == 5
        assert result["messages"][0]["sender_type"] == "customer"
        assert result["messages"][1]["sender_id"] == 1
        assert result["reads"]["2"] == ids[-1]
        assert result["reads"]["1"] == ids[-2]
        assert result["conversation"]["id"] == 1

    def test_long_conversation_includes_only_the_latest_messages(self) -> None:
        for number in range(210):
            self.post("/api/conversations/1/messages", {"agent_id": 1, "content": str(number)}, 201)
        contents = [message["content"] for message in self.get("/api/conversations/1/messages")["messages"]]
        assert contents == [str(number) for number in range(10, 210)]

    def test_head_request_has_no_body(self) -> None:
        response = self.request("HEAD", "/api/agents")
        assert response.code == 200
        assert self.successResultOf(self.treq.content(response)) == b""


class Sending(DemoCase):
    def test_message_sent_is_stored_and_published(self) -> None:
        result = self.post(
            "/api/conversations/2/messages", {"agent_id": 2, "content": " Olá! ☕ ", "client_id": "c1"}, 201
        )
        message = result["message"]
        assert message == {
            "id": message["id"],
            "conversation_id": 2,
            "sender_type": "agent",
            "sender_id": 2,
            "content": "Olá! ☕",
            "created_at": "2026-11-23T12:00:00.000Z",
            "client_id": "c1",
        }
        notification, listed = self.push.take()
        assert notification["event"] == "new_message"
        assert notification["data"] == {"conversation_id": 2, "message": message}
        assert listed["event"] == "conversation_updated"
        assert listed["data"]["conversation_id"] == 2
        conversation = listed["data"]["conversation"]
        assert conversation["last_message"] == message
        assert conversation["unread_counts"] == {"1": 1, "2": 0, "3": 1, "4": 2}
        assert notification["to"] is None is listed["to"]
        assert self.get("/api/conversations/2/messages")["messages"][-1] == message

    def test_message_sent_twice_is_stored_once_and_published_with_the_same_key(self) -> None:
        body = {"agent_id": 1, "content": "once", "client_id": "c7"}
        first = self.post("/api/conversations/1/messages", body, 201)
        second = self.post("/api/conversations/1/messages", body, 200)
        assert first["message"] == second["message"]
        keys = [notification["key"] for notification in self.push.take() if notification["event"] == "new_message"]
        assert len(keys) == 2
        assert keys[0] == keys[1]
        assert keys[0] is not None

    def test_keys_of_two_databases_differ(self) -> None:
        other = DemoBackend(self.push, "", reactor=self.clock, make_pool=SynchronousPool, wall_clock=self.clock.seconds)
        other.start()
        for backend in (self.backend, other):
            self.successResultOf(Deferred.fromCoroutine(backend.send(1, 1, "x", None)))
        self.successResultOf(Deferred.fromCoroutine(other.stop()))
        first, second = (entry for entry in self.push.published if entry["event"] == "new_message")
        assert first["data"]["message"]["id"] == second["data"]["message"]["id"]
        assert first["key"] != second["key"]

    def test_message_to_a_closed_conversation_is_rejected(self) -> None:
        self.refused(
            409, "conversation_closed", "POST", "/api/conversations/7/messages", {"agent_id": 1, "content": "x"}
        )

    def test_long_message_is_shortened_only_in_lists(self) -> None:
        result = self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "a" * 4000}, 201)
        assert len(result["message"]["content"]) == 4000
        assert len(result["conversation"]["last_message"]["content"]) == 140

    def test_failed_notification_does_not_fail_the_request(self) -> None:
        self.push.failure = ConnectionRefusedError("nobody there")
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "kept"}, 201)
        assert self.get("/api/conversations/1/messages")["messages"][-1]["content"] == "kept"

    def test_response_is_sent_before_the_notification_is_accepted(self) -> None:
        self.push.hold = True
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "quick"}, 201)
        assert len(self.push.held) == 2
        for waiting in self.push.held:
            waiting.callback(None)

    def test_stop_waits_for_pending_notifications_until_its_timeout(self) -> None:
        self.push.hold = True
        self.post("/api/conversations/1/messages", {"agent_id": 1, "content": "late"}, 201)
        stopping = Deferred.fromCoroutine(self.backend.stop())
        self.assertNoResult(stopping)
        self.push.held[0].callback(None)
        self.assertNoResult(stopping)
        self.clock.advance(2.0)
        self.successResultOf(stopping)


class Changing(DemoCase):
    def test_assignment_adds_a_note_and_is_published(self) -> None:
        result = self.post("/api/conversations/3/assign", {"agent_id": 2, "by": 1})
        assert result["conversation"]["assigned_to"] == 2
        notification, listed = self.push.take()
        note = notification["data"]["message"]
        assert (note["sender_type"], note["content"], note["sender_id"], note["about_id"]) == ("note", "assigned", 1, 2)
        assert listed["event"] == "conversation_updated"
        assert listed["data"]["conversation"]["assigned_to"] == 2

    def test_note_does_not_change_unread_counts_last_message_and_order(self) -> None:
        before = self.conversation(5)
        self.clock.advance(60)
        self.post("/api/conversations/5/assign", {"agent_id": None})
        after = self.conversation(5)
        assert after["assigned_to"] is None
        for name in ("unread", "last_message", "updated_at"):
            assert after[name] == before[name]

    def test_equal_assignment_and_status_publish_nothing(self) -> None:
        self.post("/api/conversations/1/assign", {"agent_id": 1})
        self.post("/api/conversations/1/reopen")
        self.post("/api/conversations/7/close", {"by": 2})
        assert self.push.published == []

    def test_close_and_reopen_are_published(self) -> None:
        assert self.post("/api/conversations/1/close", {"by": 1})["conversation"]["status"] == "closed"
        assert self.post("/api/conversations/1/reopen", {"by": 2})["conversation"]["status"] == "open"
        assert self.push.events == ["new_message", "conversation_updated"] * 2
        assert [notification["data"]["message"]["content"] for notification in self.push.published[::2]] == [
            "closed",
            "reopened",
        ]
        assert [notification["data"]["conversation"]["status"] for notification in self.push.published[1::2]] == [
            "closed",
            "open",
        ]

    def test_read_mark_is_published_to_the_conversation_and_the_agent(self) -> None:
        last = self.get("/api/conversations/1/messages")["messages"][-1]["id"]
        result = self.post("/api/conversations/1/read", {"agent_id": 1})
        assert result["conversation"]["unread_counts"]["1"] == 0
        read, own = self.push.take()
        assert read["event"] == "message_read"
        assert read["data"] == {"conversation_id": 1, "message_id": last, "user_id": 1}
        assert read["to"] is None
        assert own["event"] == "conversation_updated"
        assert own["to"] == {"user_id": 1}
        assert own["data"]["conversation"]["unread_counts"]["1"] == 0

    def test_each_change_increments_the_version(self) -> None:
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
        published = [
            notification["data"]["conversation"]["version"]
            for notification in self.push.take()
            if "conversation" in notification["data"]
        ]
        assert published == versions[1:]

    def test_read_mark_never_moves_back(self) -> None:
        ids = [message["id"] for message in self.get("/api/conversations/3/messages")["messages"]]
        for message_id in (ids[0], ids[1], ids[0], ids[1], 10**15):
            self.post("/api/conversations/3/read", {"agent_id": 1, "message_id": message_id})
        read = [
            notification["data"]["message_id"]
            for notification in self.push.published
            if notification["event"] == "message_read"
        ]
        assert read == ids
        assert self.conversation(3)["unread"] == 0

    def test_own_message_counts_as_read(self) -> None:
        self.post("/api/conversations/3/messages", {"agent_id": 2, "content": "Bom dia!"}, 201)
        assert self.conversation(3, 2)["unread"] == 0
        assert self.conversation(3, 1)["unread"] == 3


class Customers(DemoCase):
    def test_customer_with_conversation_and_content_writes_these(self) -> None:
        result = self.post("/api/customer", {"conversation_id": 4, "content": "Any news?"}, 201)
        assert result["message"]["sender_type"] == "customer"
        assert result["message"]["content"] == "Any news?"
        assert result["conversation"]["id"] == 4
        assert self.push.events == ["new_message", "conversation_updated"]
        assert self.conversation(4, 1)["unread"] == 2

    def test_customer_without_content_writes_different_texts(self) -> None:
        lines = [self.post("/api/customer", {"conversation_id": 1}, 201)["message"]["content"] for _ in range(5)]
        assert len(set(lines)) == 5
        assert lines[0].startswith("Pode ser no nome da Dona Célia")

    def test_new_contact_publishes_new_conversation(self) -> None:
        result = self.post("/api/customer", {"new": True}, 201)
        conversation = result["conversation"]
        assert conversation["contact_name"] == NEWCOMERS[0][0].name
        assert conversation["status"] == "open"
        created, notification = self.push.take()
        assert created["event"] == "new_conversation"
        assert created["data"]["conversation"] == conversation
        assert conversation["unread_counts"] == {"1": 1, "2": 1, "3": 1, "4": 1}
        assert notification["event"] == "new_message"
        again = self.post("/api/customer", {"new": True}, 201)["conversation"]
        assert again["contact_name"] == NEWCOMERS[1][0].name

    def test_customer_without_conversation_is_chosen_in_turns(self) -> None:
        self.post("/api/conversations/6/messages", {"agent_id": 4, "content": "Sim!"}, 201)
        chosen = [self.post("/api/customer", None, 201) for _ in range(3)]
        assert [response["conversation"]["id"] for response in chosen] == [6, 5, len(CONVERSATIONS) + 1]

    def test_customer_without_open_conversations_is_a_new_contact(self) -> None:
        for conversation in self.get("/api/conversations")["conversations"]:
            self.post(f"/api/conversations/{conversation['id']}/close")
        result = self.post("/api/customer", None, 201)
        assert result["conversation"]["id"] == len(CONVERSATIONS) + 1

    def test_closed_conversation_is_reopened_by_its_customer(self) -> None:
        result = self.post("/api/customer", {"conversation_id": 7}, 201)
        assert result["conversation"]["status"] == "open"
        assert self.push.published[-1]["data"]["conversation"]["status"] == "open"

    def test_customer_with_typing_publishes_typing_first(self) -> None:
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

    def test_stop_while_a_customer_types_ends_the_typing(self) -> None:
        waiting = self.treq.post("http://shop.example/api/customer", json={"conversation_id": 1, "typing": True})
        self.successResultOf(Deferred.fromCoroutine(self.backend.stop()))
        self.treq.flush()
        assert self.successResultOf(waiting).code in (201, 503)
        assert self.clock.getDelayedCalls() == []


class RefusalTests(DemoCase):
    def test_unknown_resource_returns_404(self) -> None:
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

    def test_wrong_method_returns_405_with_the_allowed_ones(self) -> None:
        self.refused(405, "method_not_allowed", "GET", "/api/customer")
        self.refused(405, "method_not_allowed", "POST", "/api/agents")
        response = self.request("DELETE", "/api/conversations/1/messages")
        assert response.code == 405
        assert response.headers.getRawHeaders("allow") == ["GET, POST"]

    def test_invalid_field_returns_400_with_its_name(self) -> None:
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

    def test_body_that_is_not_a_json_object_returns_400(self) -> None:
        path = "/api/conversations/1/messages"
        deep = b'{"agent_id":1,"content":"x","more":' + b"[" * 10_000
        for raw in (b"{", b"\xff", b'{"agent_id":1,"content":"\\ud800"}', deep, b"NaN"):
            self.refused(400, "bad_json", "POST", path, raw)
        for raw in (b"[]", b"null", b'"x"'):
            self.refused(400, "bad_request", "POST", path, raw)

    def test_too_large_body_returns_413(self) -> None:
        body = {"agent_id": 1, "content": "x", "more": "a" * 40_000}
        self.refused(413, "too_large", "POST", "/api/conversations/1/messages", body)

    def test_form_of_another_site_returns_415(self) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            response = self.request("POST", "/api/customer", data=b"{}", headers={"Content-Type": kind})
            assert response.code == 415
        assert self.push.published == []

    def test_control_characters_in_a_message_are_removed(self) -> None:
        body = {"agent_id": 1, "content": "a\u0000b\u001b[31m\tc\nd"}
        assert self.post("/api/conversations/1/messages", body, 201)["message"]["content"] == "ab[31m\tc\nd"

    def test_internal_error_returns_500_without_details(self) -> None:
        self.pools[-1].connection.execute("DROP TABLE reads")
        assert self.get("/api/conversations/1/messages", 500)["error"]["code"] == "internal_error"
        assert len(self.flushLoggedErrors(sqlite3.OperationalError)) == 1

    def test_api_before_the_start_returns_503(self) -> None:
        asleep = DemoBackend(
            self.push, "", reactor=self.clock, make_pool=SynchronousPool, wall_clock=self.clock.seconds
        )
        response = self.successResultOf(StubTreq(root(asleep)).get("http://shop.example/api/agents"))
        assert response.code == 503


class DiskErrors(DemoCase):
    """The disk is full, read-only, or another process holds a lock: the same request may succeed later."""

    def unavailable(self, reason: str) -> None:
        with logged_at() as warnings:
            for _ in range(3):
                message = self.refused(503, "unavailable", "POST", "/api/conversations/1/messages", MESSAGE)
                assert message == f"the demo's database is unavailable ({reason}), try again"
        assert warnings == [f"the demo's database is unavailable: {reason}"]

    def test_full_disk_returns_503_until_there_is_space(self) -> None:
        database = self.pools[0].connection
        database.execute("PRAGMA max_page_count = 1")  # SQLite takes the current size, if that is more
        long = {"agent_id": 1, "content": "x" * 4000}
        send = {"data": json.dumps(long).encode(), "headers": {"Content-Type": "application/json"}}
        while self.request("POST", "/api/conversations/1/messages", **send).code == 201:
            self.push.take()  # it fitted into the last pages
        message = self.refused(503, "unavailable", "POST", "/api/conversations/1/messages", long)
        assert "database or disk is full" in message
        assert len(self.get("/api/agents")["agents"]) == len(AGENTS)
        database.execute("PRAGMA max_page_count = 1000000")
        self.post("/api/conversations/1/messages", long, 201)

    def test_database_that_is_read_only_returns_503(self) -> None:
        self.pools[0].connection.execute("PRAGMA query_only = 1")
        self.unavailable("attempt to write a readonly database")

    def test_database_locked_by_another_process_returns_503(self) -> None:
        other = self.backend._open_connection
        assert other is not None
        other.execute("BEGIN IMMEDIATE")
        self.pools[0].connection.execute("PRAGMA busy_timeout = 0")
        self.unavailable("database table is locked")
        other.rollback()
        self.post("/api/conversations/1/messages", MESSAGE, 201)

    def test_wrong_statement_returns_500(self) -> None:
        self.pools[0].connection.execute("ALTER TABLE messages RENAME TO other")
        self.refused(500, "internal_error", "POST", "/api/conversations/1/messages", MESSAGE)
        assert self.flushLoggedErrors(sqlite3.OperationalError)


class Persistence(SynchronousTestCase):
    def test_database_after_a_restart_is_complete_and_not_filled_again(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "demo.sqlite")
            instances = []
            for turn in range(3):
                backend = DemoBackend(RecordingPush(), path, reactor=Clock(), make_pool=SynchronousPool)
                backend.start()
                instances.append(backend.instance)
                self.successResultOf(Deferred.fromCoroutine(backend.send(1, 1, f"turn {turn}", None)))
                _, messages, _ = self.successResultOf(Deferred.fromCoroutine(backend.messages(1)))
                assert [message["content"] for message in messages[5:]] == [f"turn {n}" for n in range(turn + 1)]
                listed = self.successResultOf(Deferred.fromCoroutine(backend.conversations(1)))
                assert len(listed) == len(CONVERSATIONS)
                self.successResultOf(Deferred.fromCoroutine(backend.stop()))
            assert len(set(instances)) == 1

    def test_database_that_cannot_be_opened_raises_config_error(self) -> None:
        for path in ("/nonexistent/demo.sqlite", "/dev/null/x", str(Path(__file__))):
            backend = DemoBackend(RecordingPush(), path, reactor=Clock(), make_pool=SynchronousPool)
            with pytest.raises(ConfigError, match="demo's database"):
                backend.start()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("path", ["", "demo.sqlite"])
async def test_service_stopped_ends_its_thread(path: str, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    push = RecordingPush()
    service = DemoService(push, str(tmp_path / path) if path else "", reactor=reactor)
    service.startService()
    change = await service.backend.send(1, 1, "hello", None)
    _, messages, _ = await service.backend.messages(1)
    assert messages[-1]["id"] == change.message["id"]
    with pytest.raises(Exception, match="conversation 99 does not exist"):
        await service.backend.messages(99)
    assert push.events == ["new_message", "conversation_updated"]
    await service.stopService()
    assert push.closed
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= threads
    await service.stopService()
