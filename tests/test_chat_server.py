"""The chat over fake connections and a Clock: everything but sockets."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import NODES, Audience, Event, NewEvent, Retention
from chatws.chat import server as chat_server
from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.history import History
from chatws.chat.interfaces import Identity
from chatws.chat.recovery import REPLAY_CHUNK
from chatws.chat.server import ChatServer
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode, Unavailable
from chatws.ids import Id
from chatws.server import frames
from tests.fakes import FakeConnection, PendingChecks, send_all


class ChatTestCase(SynchronousTestCase):
    #: Whether `enter` also reads every connection's `agent_status` event.
    ignores_presence = True

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.chat = self.make_chat()

    def tearDown(self) -> None:
        for connection in tuple(self.chat.connections):
            self.chat.on_close(connection)
        self.clock.advance(10)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make_chat(self, **options: Any) -> ChatServer:
        return ChatServer(
            reactor=self.clock, wall_clock=self.clock.seconds, send_all=send_all, auth_deadline=10.0, **options
        )

    def connect(self, user_id: Id | None = None, *conversations: Id, **auth: Any) -> FakeConnection:
        connection = FakeConnection()
        self.chat.on_open(connection)
        if user_id is not None:
            self.send(connection, type="auth", user_id=user_id, **auth)
        for conversation_id in conversations:
            self.send(connection, type="subscribe", conversation_id=conversation_id)
        self.clock.advance(0)
        return connection

    def enter(self, user_id: Id, *conversations: Id) -> FakeConnection:
        """Return a connection whose replies have been read."""
        connection = self.connect(user_id, *conversations)
        for listener in (connection, *(self.chat.connections if self.ignores_presence else ())):
            listener.take()
        return connection

    def send(self, connection: FakeConnection, **message: Any) -> None:
        self.chat.on_message(connection, json.dumps(message))

    def push(self, name: str, data: Any, **options: Any) -> Event:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        [event] = self.successResultOf(self.chat.publish([self.chat.audiences.new_event(name, raw, **options)]))
        return event

    def patched_frames(self) -> list[bytes]:
        """Return the list of payloads from which frames are made from now on."""
        made: list[bytes] = []

        def noted(payloads: list[bytes]) -> list[bytes]:
            made.extend(payloads)
            return frames.text_frames(payloads)

        self.patch(chat_server, "text_frames", noted)
        return made

    def leave(self, connection: FakeConnection) -> None:
        self.chat.on_close(connection)

    def assert_error(self, connection: FakeConnection, code: str) -> None:
        [reply] = connection.take()
        self.assertEqual((reply["event"], reply["data"]["code"]), ("error", code))


class AuthTests(ChatTestCase):
    def test_auth_and_subscribe_sent_together_are_answered_in_order_with_positions(self) -> None:
        connection = self.connect(123, 456)
        authenticated, subscribed = connection.take()
        self.assertEqual(authenticated["event"], "authenticated")
        self.assertEqual(authenticated["data"]["user_id"], 123)
        self.assertNotIn("recovered", authenticated["data"])
        self.assertEqual(authenticated["data"]["last_event_id"], f"{self.chat.broker.epoch}:0")
        self.assertEqual(subscribed["data"]["conversation_id"], 456)

    def test_connection_without_auth_in_time_is_closed(self) -> None:
        silent, known = self.connect(), self.enter(1)
        self.clock.advance(10)
        self.assertEqual((silent.closed or (0, ""))[0], 4408)
        self.assertIsNone(known.closed)

    def test_auth_that_is_a_bad_message_after_the_deadline_closes_the_connection(self) -> None:
        for error, expected in (
            (ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing"), 4408),
            (AuthenticationFailed("no"), 4901),
            (Unavailable("no answer in time"), 4503),
        ):
            checks = PendingChecks()
            self.chat = self.make_chat(authenticator=checks)
            connection = self.connect()
            self.send(connection, type="auth", token="x")
            self.send(connection, type="auth", token="y")
            self.clock.advance(10)
            self.assertIsNone(connection.closed)
            checks.pending[0][1].errback(error)
            self.assertEqual((connection.closed or (0, ""))[0], expected)

    def test_auth_that_is_accepted_after_the_deadline_keeps_the_connection_open(self) -> None:
        checks = PendingChecks()
        self.chat = self.make_chat(authenticator=checks)
        connection = self.connect()
        self.send(connection, type="auth", token="x")
        self.clock.advance(10)
        checks.pending[0][1].callback(Identity(1, "token"))
        self.assertIsNone(connection.closed)

    def test_auth_without_a_user_is_a_bad_message_and_can_be_repeated(self) -> None:
        connection = self.connect()
        self.send(connection, type="auth")
        self.assert_error(connection, "bad_message")
        self.send(connection, type="auth", user_id=1)
        self.assertEqual(connection.take()[0]["event"], "authenticated")

    def test_connection_above_the_users_limit_is_closed_with_4909(self) -> None:
        self.chat.subscriptions.max_connections_per_user = 2
        first, second, third = self.connect(1), self.connect("1"), self.connect(1)
        self.assertEqual((third.closed or (0, ""))[0], 4909)
        self.leave(third)
        self.assertIsNone(first.closed or second.closed)
        self.assertEqual(self.chat.online(), [1])

    def test_binary_message_is_unsupported_and_keeps_the_connection_open(self) -> None:
        connection = self.enter(1)
        self.chat.on_binary(connection, b"\x00")
        self.assert_error(connection, "unsupported")
        self.assertIsNone(connection.closed)

    def test_internal_error_closes_one_connection_without_details(self) -> None:
        connection, other = self.enter(1), self.enter(2)
        self.chat.on_error(connection, ZeroDivisionError("secret detail"))
        self.assertEqual(connection.closed, (4500, "internal error"))
        self.assertIsNone(other.closed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class PublishingTests(ChatTestCase):
    def test_data_passes_through_byte_for_byte_and_the_frame_is_built_once(self) -> None:
        data = b'{"conversation_id": 456,  "message":{"z":1.10,"a":1e2,"id":12345678901234567890}}'
        listeners = [self.enter(user_id, 456) for user_id in range(5)]
        made = self.patched_frames()
        event = self.push("new_message", data)
        self.assertEqual(len(made), 1)
        expected = '{"event":"new_message","data":' + data.decode() + f',"id":"{self.chat.broker.epoch}:1"}}'
        self.assertEqual([each.payloads for each in listeners], [[expected]] * 5)
        self.assertEqual(event.delivered, 5)

    def test_the_default_audiences_are_those_of_the_table(self) -> None:
        subscriber, other, stranger = self.enter(1, 456), self.enter(2), self.connect()
        for name in ("new_message", "message_read", "message_status_updated"):
            self.push(name, {"conversation_id": 456})
            self.assertEqual([event["event"] for event in subscriber.take()], [name])
        self.assertEqual(other.take(), [])
        for name in ("conversation_updated", "new_conversation", "agent_status"):
            self.push(name, {"conversation_id": 456})
            self.assertEqual([event["event"] for event in (*subscriber.take(), *other.take())], [name, name])
        self.assertEqual(stranger.take(), [])

    def test_typing_from_a_backend_excludes_its_user_and_has_no_id(self) -> None:
        typist, other = self.enter(1, 456), self.enter(2, 456)
        self.push("typing", {"conversation_id": "456", "user_id": "1", "is_typing": True})
        self.assertEqual(typist.take(), [])
        [event] = other.take()
        self.assertNotIn("id", event)

    def test_named_audience_gets_the_event_once_for_each_connection(self) -> None:
        five, six, seven = self.enter(5), self.enter(6), self.enter(7)
        self.push("order_paid", {"a": 1}, to=("user:5", "user:6", "user:5"))
        self.assertEqual([len(each.take()) for each in (five, six, seven)], [1, 1, 0])
        self.push("order_paid", {"a": 1}, to=("*",), except_user_id=6)
        self.assertEqual([len(each.take()) for each in (five, six, seven)], [1, 0, 1])

    def test_unknown_event_needs_an_audience_or_an_entry_in_the_table(self) -> None:
        new_event = self.chat.audiences.new_event
        self.assertEqual(self.assertRaises(ClientError, new_event, "order_paid", b"{}").code, "no_audience")
        self.assertEqual(self.assertRaises(ClientError, new_event, "new_message", b"{}").code, "bad_message")
        table = AudienceTable({"order_paid": Kind.USER, "new_message": Kind.EVERYONE})
        self.assertEqual(table.new_event("order_paid", b'{"user_id":"7"}').audience.channels, ("user:7",))
        self.assertEqual(table.new_event("new_message", b"{}").audience.channels, ("*",))

    def test_batch_keeps_its_order_for_each_connection_in_one_write(self) -> None:
        both, single = self.enter(1, 456, 457), self.enter(2, 456)
        both.writes = single.writes = 0
        new_event = self.chat.audiences.new_event
        order = [456, 457, 456, 456, 457]
        self.chat.publish(
            [new_event("new_message", b'{"conversation_id":%d,"n":%d}' % (to, n)) for n, to in enumerate(order)]
        )
        self.assertEqual([event["data"]["n"] for event in both.take()], [0, 1, 2, 3, 4])
        self.assertEqual([event["data"]["n"] for event in single.take()], [0, 2, 3])
        self.assertEqual((both.writes, single.writes), (1, 1))


class TypingTests(ChatTestCase):
    def test_typing_reaches_the_others_and_none_of_the_users_own_connections(self) -> None:
        tab, other_tab, colleague = self.enter(1, 456), self.enter(1, 456), self.enter(2, 456)
        self.send(tab, type="typing", conversation_id=456)
        self.assertEqual((tab.take(), other_tab.take()), ([], []))
        expected = {"event": "typing", "data": {"conversation_id": 456, "user_id": 1, "is_typing": True}}
        self.assertEqual(colleague.take(), [expected])

    def test_connection_that_closes_while_typing_stops_typing(self) -> None:
        tab, colleague = self.enter(1, 456), self.enter(2, 456)
        self.send(tab, type="typing", conversation_id=456)
        colleague.take()
        self.leave(tab)
        self.assertEqual([event["data"]["is_typing"] for event in colleague.take()], [False])


class PresenceTests(ChatTestCase):
    ignores_presence = False

    def statuses(self, connection: FakeConnection) -> list[tuple[Id, str]]:
        events = [event for event in connection.take() if event["event"] == "agent_status"]
        return [(event["data"]["agent_id"], event["data"]["status"]) for event in events]

    def test_agent_is_online_from_the_first_connection_until_the_grace_after_the_last(self) -> None:
        watcher = self.enter(1)
        first = self.enter(2)
        second = self.enter(2)
        self.assertEqual(self.statuses(watcher), [(2, "online")])
        self.leave(first)
        self.clock.advance(10)
        self.assertEqual(self.statuses(watcher), [])
        self.leave(second)
        self.clock.advance(2.9)
        self.assertEqual(self.statuses(watcher), [])
        self.clock.advance(0.2)
        self.clock.advance(0)
        self.assertEqual(self.statuses(watcher), [(2, "offline")])

    def test_agent_status_without_an_audience_is_not_sent_and_presence_is_still_answered(self) -> None:
        self.chat.audiences = AudienceTable({"agent_status": Kind.NONE})
        watcher, colleague = self.enter(1), self.enter(2)
        self.assertEqual(self.statuses(watcher), [])
        self.send(watcher, type="presence")
        self.assertEqual(watcher.take(), [{"event": "presence", "data": {"online": [1, 2]}}])
        self.leave(colleague)
        self.clock.advance(3.2)
        self.clock.advance(0)
        self.assertEqual(self.statuses(watcher), [])
        self.send(watcher, type="presence")
        self.assertEqual(watcher.take(), [{"event": "presence", "data": {"online": [1]}}])

    def test_reload_within_the_grace_is_not_announced(self) -> None:
        watcher, tab = self.enter(1), self.enter(2)
        watcher.take()
        self.leave(tab)
        self.clock.advance(2)
        self.enter(2)
        self.clock.advance(10)
        self.assertEqual(self.statuses(watcher), [])

    def test_agents_own_connections_get_no_status_of_it(self) -> None:
        tab = self.enter(2)
        self.clock.advance(1)
        self.assertEqual(self.statuses(tab), [])

    def test_many_agents_are_announced_in_one_write_without_each_agents_own_status(self) -> None:
        watcher = self.enter(1)
        crowd = [FakeConnection() for _ in range(20)]
        for number, connection in enumerate(crowd):
            self.chat.on_open(connection)
            self.send(connection, type="auth", user_id=100 + number)
        watcher.writes = 0
        self.clock.advance(1)
        self.assertEqual(self.statuses(watcher), [(100 + number, "online") for number in range(20)])
        self.assertEqual(watcher.writes, 1)
        for number, connection in enumerate(crowd):
            others = [(100 + other, "online") for other in range(20) if other != number]
            self.assertEqual(self.statuses(connection), others)

    def test_presence_lists_the_ids_sorted(self) -> None:
        connection = self.enter(10)
        for user_id in ("zoe", 9, "2", "ana"):
            self.enter(user_id)
        connection.take()
        self.send(connection, type="presence")
        self.assertEqual(connection.take(), [{"event": "presence", "data": {"online": [2, 9, 10, "ana", "zoe"]}}])


class PresenceOverRestartTests(ChatTestCase):
    """With a history that outlives the process."""

    def make_chat(self, **options: Any) -> ChatServer:
        if not hasattr(self, "directory"):
            self.directory = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, self.directory)
        broker = open_broker(
            f"sqlite:///{self.directory}/log.db", Retention(), reactor=self.clock, now=self.clock.seconds
        )
        chat = super().make_chat(broker=broker, **options)
        self.successResultOf(Deferred.fromCoroutine(chat.start()))
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(chat.stop())))
        return chat

    def restart(self) -> None:
        connections = tuple(self.chat.connections)
        self.successResultOf(Deferred.fromCoroutine(self.chat.stop()))
        for connection in connections:
            self.chat.on_close(connection)
        self.chat.freeze_presence()
        self.chat = self.make_chat()

    def statuses(self, connection: FakeConnection) -> list[tuple[Id, str]]:
        events = [event for event in connection.take() if event["event"] == "agent_status"]
        return [(event["data"]["agent_id"], event["data"]["status"]) for event in events]

    def test_agents_disconnected_by_a_shutdown_stay_online_however_long_it_takes(self) -> None:
        leaving = self.connect(1)
        connection = FakeConnection()
        self.chat.on_open(connection)
        self.send(connection, type="auth", user_id=2)  # and nothing is announced before the end begins
        self.chat.freeze_presence()
        self.leave(leaving)
        self.clock.advance(60)
        self.restart()
        self.assertEqual(self.chat.online(), [1, 2])

    def test_agents_that_reconnect_after_a_restart_are_not_announced_and_others_go_offline_once(self) -> None:
        for user_id in (1, 2, "ana"):
            self.connect(user_id)
        self.clock.advance(1)
        self.restart()
        self.assertEqual(self.chat.online(), [1, 2, "ana"])
        watcher = self.connect(1)
        self.clock.advance(2)
        self.connect("ana")
        self.clock.advance(1)
        self.assertEqual(self.statuses(watcher), [])
        self.clock.advance(10)
        self.clock.advance(0)
        self.assertEqual(self.statuses(watcher), [(2, "offline")])
        self.restart()
        self.assertEqual(self.chat.online(), [1, "ana"])


class BackendOperationTests(ChatTestCase):
    def test_disconnect_closes_all_connections_with_4000_or_4903(self) -> None:
        tabs, other = [self.enter(5), self.enter(5)], self.enter(6)
        self.assertEqual(self.successResultOf(self.chat.disconnect(5, "logged out")), 2)
        self.assertEqual([tab.closed for tab in tabs], [(4000, "logged out")] * 2)
        self.assertIsNone(other.closed)
        self.chat.disconnect(6, "", ban=True)
        self.assertEqual((other.closed or (0, ""))[0], 4903)
        self.push("conversation_updated", {"conversation_id": 1})
        self.assertEqual([each.take() for each in (*tabs, other)], [[], [], []])

    def test_unsubscribe_ends_the_subscription_and_notifies_the_client(self) -> None:
        connection = self.enter(5, 456)
        self.assertEqual(self.successResultOf(self.chat.unsubscribe(5, 456)), 1)
        self.assertEqual(connection.take(), [{"event": "unsubscribed", "data": {"conversation_id": 456}}])
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)


class PendingCheckTests(ChatTestCase):
    def make_chat(self, **options: Any) -> ChatServer:
        self.checks = PendingChecks()
        return super().make_chat(authenticator=self.checks, authorizer=self.checks, **options)

    def complete(self, result: Any) -> None:
        _, check = self.checks.pending.pop(0)
        if isinstance(result, Exception):
            check.errback(result)
        else:
            check.callback(result)

    def test_messages_wait_for_the_check_and_ping_does_not(self) -> None:
        connection = self.connect(5, 456)
        self.send(connection, type="ping")
        self.assertEqual(connection.take(), [{"type": "pong"}])
        self.complete(Identity(5, "token"))
        self.assertEqual([event["event"] for event in connection.take()], ["authenticated"])
        self.complete(True)
        self.assertEqual([event["event"] for event in connection.take()], ["subscribed"])

    def test_failed_auth_is_answered_and_closed_with_4901(self) -> None:
        connection = self.connect(5)
        self.complete(AuthenticationFailed("the token has expired"))
        self.assert_error(connection, "auth_failed")
        self.assertEqual((connection.closed or (0, ""))[0], 4901)

    def test_internal_error_in_a_check_is_unavailable_and_grants_nothing(self) -> None:
        connection = self.connect(5, 456)
        self.complete(Identity(5, "token"))
        connection.take()
        self.complete(ZeroDivisionError())
        self.assert_error(connection, "unavailable")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)

    def test_auth_result_after_the_connection_closed_has_no_effect(self) -> None:
        connection = self.connect(5)
        self.leave(connection)
        self.complete(Identity(5, "token"))
        self.assertEqual(self.chat.online(), [])

    def test_command_from_another_node_rejects_a_pending_auth_of_an_equal_id(self) -> None:
        connection = self.connect(5)
        command = NewEvent("disconnect", Audience((NODES,)), b'{"user_id":"5","ban":true}', transient=True)
        self.successResultOf(self.chat.publish([command]))
        self.complete(Identity(5, "token"))
        self.assertEqual((connection.closed or (0, ""))[0], 4903)

    def test_disconnect_rejects_a_pending_auth(self) -> None:
        connection = self.connect(5)
        self.chat.disconnect(5, "banned", ban=True)
        self.complete(Identity(5, "token"))
        self.assertEqual(connection.closed, (4903, "banned"))
        self.assertEqual(self.chat.online(), [])

    def test_unsubscribe_rejects_a_pending_check(self) -> None:
        connection = self.connect(5, 456)
        self.complete(Identity(5, "token"))
        connection.take()
        self.chat.unsubscribe(5, 456)
        self.assert_error(connection, "forbidden")
        self.assertEqual(self.checks.forgotten, [(5, 456)], "the cached permission is dropped")
        self.complete(True)
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)

    def test_expired_token_closes_the_connection_unless_it_was_renewed(self) -> None:
        renewed, idle = self.connect(5), self.connect(6)
        expiry = self.clock.seconds() + 60
        self.complete(Identity(5, "token", expires_at=expiry))
        self.complete(Identity(6, "token", expires_at=expiry))
        self.clock.advance(50)
        self.send(renewed, type="auth", token="a fresh one")
        self.complete(Identity(5, "token", expires_at=expiry + 60))
        self.clock.advance(11)
        self.assertEqual((idle.closed or (0, ""))[0], 4000)
        self.assertIsNone(renewed.closed)
        self.clock.advance(60)
        self.assertEqual((renewed.closed or (0, ""))[0], 4000)

    def test_unavailable_database_is_answered_and_closed_with_4503(self) -> None:
        connection = self.connect(5)
        self.complete(Unavailable("the database does not answer"))
        self.assert_error(connection, "unavailable")
        self.assertEqual((connection.closed or (0, ""))[0], 4503)


class RecoveryTests(ChatTestCase):
    def position(self, offset: int) -> str:
        return f"{self.chat.broker.epoch}:{offset}"

    def test_missed_events_follow_the_reply_and_precede_live_ones(self) -> None:
        self.enter(5, 456)
        for number in range(3):
            self.push("new_message", {"conversation_id": 456, "n": number})
            self.push("new_message", {"conversation_id": 457, "n": number})
            self.push("conversation_updated", {"conversation_id": 456, "n": number})
            self.push("secret", {"n": number}, to=("user:6",))
        back = self.connect(5, last_event_id=self.position(4))
        self.send(back, type="subscribe", conversation_id=456, last_event_id=self.position(4))
        self.push("new_message", {"conversation_id": 456, "n": 3})
        authenticated, *rest = back.take()
        self.assertEqual(authenticated["data"]["recovered"], True)
        self.assertEqual(authenticated["data"]["replayed"], 2)
        self.assertEqual([(event["event"], event["data"].get("n")) for event in rest], [
            ("conversation_updated", 1),
            ("conversation_updated", 2),
            ("subscribed", None),
            ("new_message", 1),
            ("new_message", 2),
            ("new_message", 3),
        ])  # fmt: skip

    def test_future_position_of_a_history_that_is_not_shared_is_not_waited_for(self) -> None:
        [reply] = self.connect(5, last_event_id=self.position(9)).take()
        self.assertIs(reply["data"]["recovered"], False)

    def test_event_that_excluded_the_user_is_not_recovered(self) -> None:
        self.push("note", {"n": 1}, to=("*",), except_user_id=5)
        self.push("note", {"n": 2}, to=("*",))
        back = self.connect(5, last_event_id=self.position(0))
        self.assertEqual([event["data"].get("n") for event in back.take()], [None, 2])

    def test_position_that_cannot_be_proved_complete_is_not_recovered(self) -> None:
        self.chat = self.make_chat(history=History(Retention(events=2)))
        for _ in range(4):
            self.push("conversation_updated", {"conversation_id": 1})
        for position, recovered in (
            (self.position(4), True),
            (self.position(2), True),
            (self.position(1), False),
            (self.position(5), False),
            ("another:2", False),
            ("", False),
            ("nonsense", False),
            (self.position(2) + "x", False),
        ):
            [reply, *events] = self.connect(9, last_event_id=position).take()
            self.assertEqual((position, reply["data"]["recovered"]), (position, recovered))
            if not recovered:
                self.assertEqual(events, [])

    def test_long_replay_is_complete_and_in_order(self) -> None:
        count = REPLAY_CHUNK * 3 + 7
        for number in range(count):
            self.push("conversation_updated", {"conversation_id": 1, "n": number})
        connection = self.connect(5, last_event_id=self.position(0))
        self.clock.advance(0)
        reply, *events = connection.take()
        self.assertEqual(reply["data"]["replayed"], count)
        self.assertEqual([event["data"]["n"] for event in events], list(range(count)))

    def test_long_replay_does_not_begin_after_the_subscription_was_ended(self) -> None:
        for number in range(REPLAY_CHUNK * 2):
            self.push("new_message", {"conversation_id": 456, "n": number})
        back = self.connect(5)
        chunks: list[Iterator[bytes]] = []
        self.patch(back, "stream", chunks.append)
        self.send(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        self.chat.unsubscribe(5, 456)
        self.assertEqual(list(chunks[0]), [])

    def test_long_replay_ends_with_the_subscription(self) -> None:
        for number in range(REPLAY_CHUNK * 3):
            self.push("new_message", {"conversation_id": 456, "n": number})
        back = self.connect(5)
        chunks: list[Iterator[bytes]] = []
        self.patch(back, "stream", chunks.append)
        self.send(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        self.assertIsNone(next(chunks[0]))
        self.clock.advance(0)
        back.send_frames(next(chunks[0]) or b"")
        self.chat.unsubscribe(5, 456)
        self.send(back, type="subscribe", conversation_id=456)
        self.assertEqual(list(chunks[0]), [])
        numbers = [event["data"]["n"] for event in back.take() if event["event"] == "new_message"]
        self.assertEqual(numbers, list(range(REPLAY_CHUNK)))

    def test_recovery_after_a_lost_permission_is_forbidden(self) -> None:
        checks = PendingChecks()
        self.chat = self.make_chat(authorizer=checks)
        self.push("new_message", {"conversation_id": 456})
        back = self.connect(5)
        self.send(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        back.take()
        checks.pending[0][1].callback(False)
        self.assert_error(back, "forbidden")
