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

from chatws.brokers import open_broker
from chatws.brokers.contract import NODES, Audience, Bounds, Event
from chatws.chat import chat_server
from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.chat_server import ChatServer
from chatws.chat.contracts import Credentials, Identity
from chatws.chat.history import History
from chatws.chat.recovery import REPLAY_CHUNK
from chatws.errors import AuthenticationFailed, ClientError, Unavailable
from chatws.ids import Id
from chatws.server import frames
from tests.fakes import FakeConnection, send_all


class AskedLater:
    """An authenticator and authorizer whose answers the test gives."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Deferred[Any]]] = []
        self.forgotten: list[tuple[Id, Id | None]] = []

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        return self._ask(credentials.user_id)

    def may_read(self, identity: Identity, conversation_id: Id) -> Deferred[bool]:
        return self._ask((identity.user_id, conversation_id))

    def forget(self, user_id: Id, conversation_id: Id | None = None) -> None:
        self.forgotten.append((user_id, conversation_id))

    def _ask(self, question: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self.asked.append((question, answer))
        return answer


class ChatTestCase(SynchronousTestCase):
    #: whether `enter` also reads, for everybody, that the agent has come online
    ignores_presence = True

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.chat = self.make_chat()

    def tearDown(self) -> None:
        for connection in tuple(self.chat._connections):
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
            self.say(connection, type="auth", user_id=user_id, **auth)
        for conversation_id in conversations:
            self.say(connection, type="subscribe", conversation_id=conversation_id)
        self.clock.advance(0)
        return connection

    def enter(self, user_id: Id, *conversations: Id) -> FakeConnection:
        """A connection whose replies have been read."""
        connection = self.connect(user_id, *conversations)
        for listener in (connection, *(self.chat._connections if self.ignores_presence else ())):
            listener.take()
        return connection

    def say(self, connection: FakeConnection, **message: Any) -> None:
        self.chat.on_message(connection, json.dumps(message))

    def push(self, name: str, data: Any, **options: Any) -> Event:
        raw = data if isinstance(data, bytes) else json.dumps(data).encode()
        [event] = self.successResultOf(self.chat.publish([self.chat.audiences.draft(name, raw, **options)]))
        return event

    def patched_frames(self) -> list[bytes]:
        """The payloads that frames are made of from now on."""
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


class EnteringTests(ChatTestCase):
    def test_auth_and_subscribe_sent_at_once_are_answered_in_order_with_positions(self) -> None:
        connection = self.connect(123, 456)
        authenticated, subscribed = connection.take()
        self.assertEqual(authenticated["event"], "authenticated")
        self.assertEqual(authenticated["data"]["user_id"], 123)
        self.assertNotIn("recovered", authenticated["data"])
        self.assertEqual(authenticated["data"]["last_event_id"], f"{self.chat.broker.epoch}:0")
        self.assertEqual(subscribed["data"]["conversation_id"], 456)

    def test_who_does_not_say_who_it_is_in_time_is_closed(self) -> None:
        silent, known = self.connect(), self.enter(1)
        self.clock.advance(10)
        self.assertEqual((silent.closed or (0, ""))[0], 4408)
        self.assertIsNone(known.closed)

    def test_auth_without_a_user_is_a_bad_message_and_can_be_mended(self) -> None:
        connection = self.connect()
        self.say(connection, type="auth")
        self.assert_error(connection, "bad_message")
        self.say(connection, type="auth", user_id=1)
        self.assertEqual(connection.take()[0]["event"], "authenticated")

    def test_one_connection_too_many_of_a_user_is_refused_for_good(self) -> None:
        self.chat.max_connections_per_user = 2
        first, second, third = self.connect(1), self.connect("1"), self.connect(1)
        self.assertEqual((third.closed or (0, ""))[0], 4909)
        self.leave(third)
        self.assertIsNone(first.closed or second.closed)
        self.assertEqual(self.chat.online(), [1])

    def test_a_binary_message_is_unsupported_and_nothing_more(self) -> None:
        connection = self.enter(1)
        self.chat.on_binary(connection, b"\x00")
        self.assert_error(connection, "unsupported")
        self.assertIsNone(connection.closed)

    def test_a_fault_of_ours_closes_one_connection_without_details(self) -> None:
        connection, other = self.enter(1), self.enter(2)
        self.chat.on_error(connection, ZeroDivisionError("secret detail"))
        self.assertEqual(connection.closed, (4500, "internal error"))
        self.assertIsNone(other.closed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class PublishingTests(ChatTestCase):
    def test_data_passes_through_to_the_byte_and_the_frame_is_built_once(self) -> None:
        data = b'{"conversation_id": 456,  "message":{"z":1.10,"a":1e2,"id":12345678901234567890}}'
        listeners = [self.enter(user_id, 456) for user_id in range(5)]
        made = self.patched_frames()
        event = self.push("new_message", data)
        self.assertEqual(len(made), 1)
        expected = '{"event":"new_message","data":' + data.decode() + f',"id":"{self.chat.broker.epoch}:1"}}'
        self.assertEqual([one.payloads for one in listeners], [[expected]] * 5)
        self.assertEqual(event.delivered, 5)

    def test_the_default_audiences_are_those_of_the_table(self) -> None:
        subscriber, other, stranger = self.enter(1, 456), self.enter(2), self.connect()
        for name in ("new_message", "message_read", "message_status_updated"):
            self.push(name, {"conversation_id": 456})
            self.assertEqual([one["event"] for one in subscriber.take()], [name])
        self.assertEqual(other.take(), [])
        for name in ("conversation_updated", "new_conversation", "agent_status"):
            self.push(name, {"conversation_id": 456})
            self.assertEqual([one["event"] for one in (*subscriber.take(), *other.take())], [name, name])
        self.assertEqual(stranger.take(), [])

    def test_typing_from_a_backend_spares_the_one_who_types_and_has_no_id(self) -> None:
        typist, other = self.enter(1, 456), self.enter(2, 456)
        self.push("typing", {"conversation_id": "456", "user_id": "1", "is_typing": True})
        self.assertEqual(typist.take(), [])
        [event] = other.take()
        self.assertNotIn("id", event)

    def test_a_named_audience_reaches_exactly_it_and_each_connection_once(self) -> None:
        five, six, seven = self.enter(5), self.enter(6), self.enter(7)
        self.push("order_paid", {"a": 1}, to=("user:5", "user:6", "user:5"))
        self.assertEqual([len(one.take()) for one in (five, six, seven)], [1, 1, 0])
        self.push("order_paid", {"a": 1}, to=("*",), except_user_id=6)
        self.assertEqual([len(one.take()) for one in (five, six, seven)], [1, 0, 1])

    def test_an_unknown_event_must_name_its_audience_unless_the_table_was_told(self) -> None:
        draft = self.chat.audiences.draft
        self.assertEqual(self.assertRaises(ClientError, draft, "order_paid", b"{}").code, "no_audience")
        self.assertEqual(self.assertRaises(ClientError, draft, "new_message", b"{}").code, "bad_message")
        table = AudienceTable({"order_paid": Kind.USER, "new_message": Kind.EVERYONE})
        self.assertEqual(table.draft("order_paid", b'{"user_id":"7"}').audience.channels, ("user:7",))
        self.assertEqual(table.draft("new_message", b"{}").audience.channels, ("*",))

    def test_a_batch_keeps_its_order_for_each_connection_and_costs_it_one_write(self) -> None:
        both, one = self.enter(1, 456, 457), self.enter(2, 456)
        both.writes = one.writes = 0
        draft = self.chat.audiences.draft
        order = [456, 457, 456, 456, 457]
        self.chat.publish(
            [draft("new_message", b'{"conversation_id":%d,"n":%d}' % (to, n)) for n, to in enumerate(order)]
        )
        self.assertEqual([event["data"]["n"] for event in both.take()], [0, 1, 2, 3, 4])
        self.assertEqual([event["data"]["n"] for event in one.take()], [0, 2, 3])
        self.assertEqual((both.writes, one.writes), (1, 1))


class TypingTests(ChatTestCase):
    def test_typing_reaches_the_others_and_none_of_the_typists_tabs(self) -> None:
        tab, other_tab, colleague = self.enter(1, 456), self.enter(1, 456), self.enter(2, 456)
        self.say(tab, type="typing", conversation_id=456)
        self.assertEqual((tab.take(), other_tab.take()), ([], []))
        expected = {"event": "typing", "data": {"conversation_id": 456, "user_id": 1, "is_typing": True}}
        self.assertEqual(colleague.take(), [expected])

    def test_a_tab_that_closes_while_typing_has_stopped_typing(self) -> None:
        tab, colleague = self.enter(1, 456), self.enter(2, 456)
        self.say(tab, type="typing", conversation_id=456)
        colleague.take()
        self.leave(tab)
        self.assertEqual([event["data"]["is_typing"] for event in colleague.take()], [False])


class PresenceTests(ChatTestCase):
    ignores_presence = False

    def statuses(self, connection: FakeConnection) -> list[tuple[Id, str]]:
        events = [one for one in connection.take() if one["event"] == "agent_status"]
        return [(one["data"]["agent_id"], one["data"]["status"]) for one in events]

    def test_an_agent_is_online_with_the_first_tab_and_offline_a_grace_after_the_last(self) -> None:
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

    def test_who_comes_and_goes_can_be_kept_from_everybody_and_still_be_asked_for(self) -> None:
        self.chat.audiences = AudienceTable({"agent_status": Kind.NONE})
        watcher, colleague = self.enter(1), self.enter(2)
        self.assertEqual(self.statuses(watcher), [])
        self.say(watcher, type="presence")
        self.assertEqual(watcher.take(), [{"event": "presence", "data": {"online": [1, 2]}}])
        self.leave(colleague)
        self.clock.advance(3.2)
        self.clock.advance(0)
        self.assertEqual(self.statuses(watcher), [])
        self.say(watcher, type="presence")
        self.assertEqual(watcher.take(), [{"event": "presence", "data": {"online": [1]}}])

    def test_a_reload_within_the_grace_is_no_news(self) -> None:
        watcher, tab = self.enter(1), self.enter(2)
        watcher.take()
        self.leave(tab)
        self.clock.advance(2)
        self.enter(2)
        self.clock.advance(10)
        self.assertEqual(self.statuses(watcher), [])

    def test_an_agents_own_tabs_are_not_told_of_it(self) -> None:
        tab = self.enter(2)
        self.clock.advance(1)
        self.assertEqual(self.statuses(tab), [])

    def test_a_crowd_is_announced_in_one_write_that_leaves_out_each_ones_own(self) -> None:
        watcher = self.enter(1)
        crowd = [FakeConnection() for _ in range(20)]
        for number, connection in enumerate(crowd):
            self.chat.on_open(connection)
            self.say(connection, type="auth", user_id=100 + number)
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
        self.say(connection, type="presence")
        self.assertEqual(connection.take(), [{"event": "presence", "data": {"online": [2, 9, 10, "ana", "zoe"]}}])


class PresenceOverRestartTests(ChatTestCase):
    """With a log that outlives the process."""

    def make_chat(self, **options: Any) -> ChatServer:
        if not hasattr(self, "directory"):
            self.directory = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, self.directory)
        broker = open_broker(f"sqlite:///{self.directory}/log.db", Bounds(), reactor=self.clock)
        chat = super().make_chat(broker=broker, **options)
        self.successResultOf(Deferred.fromCoroutine(chat.start()))
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(chat.stop())))
        return chat

    def restart(self) -> None:
        connections = tuple(self.chat._connections)
        self.successResultOf(Deferred.fromCoroutine(self.chat.stop()))
        for connection in connections:
            self.chat.on_close(connection)
        self.chat.hold_presence()
        self.chat = self.make_chat()

    def statuses(self, connection: FakeConnection) -> list[tuple[Id, str]]:
        events = [one for one in connection.take() if one["event"] == "agent_status"]
        return [(one["data"]["agent_id"], one["data"]["status"]) for one in events]

    def test_who_is_sent_away_by_the_server_is_not_noted_offline_however_long_that_takes(self) -> None:
        leaving = self.connect(1)
        connection = FakeConnection()
        self.chat.on_open(connection)
        self.say(connection, type="auth", user_id=2)  # and nothing is announced before the end begins
        self.chat.hold_presence()
        self.leave(leaving)
        self.clock.advance(60)
        self.restart()
        self.assertEqual(self.chat.online(), [1, 2])

    def test_agents_who_come_back_are_no_news_and_one_who_does_not_goes_offline_once(self) -> None:
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
    def test_disconnect_closes_every_tab_and_says_whether_to_come_back(self) -> None:
        tabs, other = [self.enter(5), self.enter(5)], self.enter(6)
        self.assertEqual(self.successResultOf(self.chat.disconnect(5, "logged out")), 2)
        self.assertEqual([tab.closed for tab in tabs], [(4000, "logged out")] * 2)
        self.assertIsNone(other.closed)
        self.chat.disconnect(6, "", ban=True)
        self.assertEqual((other.closed or (0, ""))[0], 4903)
        self.push("conversation_updated", {"conversation_id": 1})
        self.assertEqual([one.take() for one in (*tabs, other)], [[], [], []])

    def test_unsubscribe_takes_the_conversation_away_and_tells_the_page(self) -> None:
        connection = self.enter(5, 456)
        self.assertEqual(self.successResultOf(self.chat.unsubscribe(5, 456)), 1)
        self.assertEqual(connection.take(), [{"event": "unsubscribed", "data": {"conversation_id": 456}}])
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)


class AskedElsewhereTests(ChatTestCase):
    def make_chat(self, **options: Any) -> ChatServer:
        self.oracle = AskedLater()
        return super().make_chat(authenticator=self.oracle, authorizer=self.oracle, **options)

    def answer(self, answer: Any) -> None:
        _, waiting = self.oracle.asked.pop(0)
        if isinstance(answer, Exception):
            waiting.errback(answer)
        else:
            waiting.callback(answer)

    def test_messages_wait_for_the_answer_and_ping_does_not(self) -> None:
        connection = self.connect(5, 456)
        self.say(connection, type="ping")
        self.assertEqual(connection.take(), [{"type": "pong"}])
        self.answer(Identity(5, "ticket"))
        self.assertEqual([one["event"] for one in connection.take()], ["authenticated"])
        self.answer(True)
        self.assertEqual([one["event"] for one in connection.take()], ["subscribed"])

    def test_a_failed_auth_is_told_then_closed_for_good(self) -> None:
        connection = self.connect(5)
        self.answer(AuthenticationFailed("the ticket has expired"))
        self.assert_error(connection, "auth_failed")
        self.assertEqual((connection.closed or (0, ""))[0], 4901)

    def test_a_bug_in_a_look_up_is_unavailable_not_a_yes(self) -> None:
        connection = self.connect(5, 456)
        self.answer(Identity(5, "ticket"))
        connection.take()
        self.answer(ZeroDivisionError())
        self.assert_error(connection, "unavailable")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)

    def test_an_answer_for_one_who_has_gone_changes_nothing(self) -> None:
        connection = self.connect(5)
        self.leave(connection)
        self.answer(Identity(5, "ticket"))
        self.assertEqual(self.chat.online(), [])

    def test_an_order_from_elsewhere_reaches_an_auth_still_in_flight_however_it_spells_the_id(self) -> None:
        connection = self.connect(5)
        self.chat._outlet.deliver([Event(0, "disconnect", Audience((NODES,)), b'{"user_id":"5","ban":true}', 0.0)])
        self.answer(Identity(5, "ticket"))
        self.assertEqual((connection.closed or (0, ""))[0], 4903)

    def test_a_disconnect_reaches_an_auth_still_in_flight(self) -> None:
        connection = self.connect(5)
        self.chat.disconnect(5, "banned", ban=True)
        self.answer(Identity(5, "ticket"))
        self.assertEqual(connection.closed, (4903, "banned"))
        self.assertEqual(self.chat.online(), [])

    def test_an_unsubscribe_reaches_a_check_still_in_flight(self) -> None:
        connection = self.connect(5, 456)
        self.answer(Identity(5, "ticket"))
        connection.take()
        self.chat.unsubscribe(5, 456)
        self.assert_error(connection, "forbidden")
        self.assertEqual(self.oracle.forgotten, [(5, 456)], "nor is an answer kept")
        self.answer(True)
        self.assertEqual(self.push("new_message", {"conversation_id": 456}).delivered, 0)

    def test_a_ticket_that_expires_sends_the_browser_for_another_unless_it_came_in_time(self) -> None:
        renewed, idle = self.connect(5), self.connect(6)
        expiry = self.clock.seconds() + 60
        self.answer(Identity(5, "ticket", expires_at=expiry))
        self.answer(Identity(6, "ticket", expires_at=expiry))
        self.clock.advance(50)
        self.say(renewed, type="auth", token="a fresh one")
        self.answer(Identity(5, "ticket", expires_at=expiry + 60))
        self.clock.advance(11)
        self.assertEqual((idle.closed or (0, ""))[0], 4000)
        self.assertIsNone(renewed.closed)
        self.clock.advance(60)
        self.assertEqual((renewed.closed or (0, ""))[0], 4000)

    def test_the_database_away_is_told_and_closed_to_be_tried_later(self) -> None:
        connection = self.connect(5)
        self.answer(Unavailable("the database does not answer"))
        self.assert_error(connection, "unavailable")
        self.assertEqual((connection.closed or (0, ""))[0], 4503)


class RecoveryTests(ChatTestCase):
    def position(self, offset: int) -> str:
        return f"{self.chat.broker.epoch}:{offset}"

    def test_what_was_missed_comes_after_the_reply_and_before_what_is_live(self) -> None:
        self.enter(5, 456)
        for number in range(3):
            self.push("new_message", {"conversation_id": 456, "n": number})
            self.push("new_message", {"conversation_id": 457, "n": number})
            self.push("conversation_updated", {"conversation_id": 456, "n": number})
            self.push("secret", {"n": number}, to=("user:6",))
        back = self.connect(5, last_event_id=self.position(4))
        self.say(back, type="subscribe", conversation_id=456, last_event_id=self.position(4))
        self.push("new_message", {"conversation_id": 456, "n": 3})
        authenticated, *rest = back.take()
        self.assertEqual(authenticated["data"]["recovered"], True)
        self.assertEqual(authenticated["data"]["replayed"], 2)
        self.assertEqual([(one["event"], one["data"].get("n")) for one in rest], [
            ("conversation_updated", 1),
            ("conversation_updated", 2),
            ("subscribed", None),
            ("new_message", 1),
            ("new_message", 2),
            ("new_message", 3),
        ])  # fmt: skip

    def test_nobody_waits_for_events_that_a_log_of_this_process_alone_has_not_got(self) -> None:
        [reply] = self.connect(5, last_event_id=self.position(9)).take()
        self.assertIs(reply["data"]["recovered"], False)

    def test_an_event_that_left_the_user_out_does_not_come_back_by_recovery(self) -> None:
        self.push("note", {"n": 1}, to=("*",), except_user_id=5)
        self.push("note", {"n": 2}, to=("*",))
        back = self.connect(5, last_event_id=self.position(0))
        self.assertEqual([one["data"].get("n") for one in back.take()], [None, 2])

    def test_what_cannot_be_proved_complete_is_not_recovered(self) -> None:
        self.chat = self.make_chat(history=History(Bounds(events=2), self.clock.seconds))
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

    def test_a_long_replay_is_whole_and_in_order(self) -> None:
        count = REPLAY_CHUNK * 3 + 7
        for number in range(count):
            self.push("conversation_updated", {"conversation_id": 1, "n": number})
        reply, *events = self.connect(5, last_event_id=self.position(0)).take()
        self.assertEqual(reply["data"]["replayed"], count)
        self.assertEqual([one["data"]["n"] for one in events], list(range(count)))

    def test_a_long_replay_does_not_begin_when_the_conversation_was_taken_away(self) -> None:
        for number in range(REPLAY_CHUNK * 2):
            self.push("new_message", {"conversation_id": 456, "n": number})
        back = self.connect(5)
        chunks: list[Iterator[bytes]] = []
        self.patch(back, "stream", chunks.append)
        self.say(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        self.chat.unsubscribe(5, 456)
        self.assertEqual(list(chunks[0]), [])

    def test_a_long_replay_ends_when_the_conversation_is_taken_away(self) -> None:
        for number in range(REPLAY_CHUNK * 3):
            self.push("new_message", {"conversation_id": 456, "n": number})
        back = self.connect(5)
        chunks: list[Iterator[bytes]] = []
        self.patch(back, "stream", chunks.append)
        self.say(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        back.send_frames(next(chunks[0]))
        self.chat.unsubscribe(5, 456)
        self.say(back, type="subscribe", conversation_id=456)
        self.assertEqual(list(chunks[0]), [])
        numbers = [one["data"]["n"] for one in back.take() if one["event"] == "new_message"]
        self.assertEqual(numbers, list(range(REPLAY_CHUNK)))

    def test_a_permission_lost_since_is_not_recovered_from(self) -> None:
        oracle = AskedLater()
        self.chat = self.make_chat(authorizer=oracle)
        self.push("new_message", {"conversation_id": 456})
        back = self.connect(5)
        self.say(back, type="subscribe", conversation_id=456, last_event_id=self.position(0))
        back.take()
        oracle.asked[0][1].callback(False)
        self.assert_error(back, "forbidden")
