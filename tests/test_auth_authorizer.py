"""Who may read which conversation."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth.authorizer import ConversationAuthorizer
from chatws.auth.factory import build_authorizer
from chatws.auth.refusals import REFUSAL_TTL, TOLERATED_REFUSALS, Refusals
from chatws.chat.interfaces import Identity
from chatws.config.schema import Config
from chatws.errors import Unavailable
from chatws.ids import Id
from tests.fakes_database import FakeDatabase

BY_USER = "SELECT 1 FROM a WHERE conversation_id = %(conversation_id)s AND user_id = %(user_id)s"
ROW = {"id": 1}


class AuthorizerCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database = FakeDatabase()

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def build(self, **settings: Any) -> ConversationAuthorizer:
        return build_authorizer(Config(**settings), self.database, self.clock)

    def ask(self, authorizer: ConversationAuthorizer, user_id: Id, conversation_id: Id) -> Deferred[bool]:
        result = authorizer.may_read(Identity(user_id, "token"), conversation_id)
        assert isinstance(result, Deferred)
        return result

    def test_without_a_database_or_a_query_every_user_may_read(self) -> None:
        without = build_authorizer(Config(), None, self.clock)
        for authorizer in (without, self.build(conversation_query="")):
            self.assertIs(authorizer.may_read(Identity(5, "trust"), 456), True)
            authorizer.forget(5)
        self.assertEqual(self.database.count, 0)

    def test_conversations_of_a_token_limit_and_do_not_grant(self) -> None:
        limited = Identity(5, "token", conversations=frozenset({456, "x"}))
        without = build_authorizer(Config(), None, self.clock)
        self.assertIs(without.may_read(limited, 456), True)
        for other in (457, "y", "0456"):
            self.assertIs(without.may_read(limited, other), False)
            self.assertIs(self.build().may_read(limited, other), False)
        self.assertIs(without.may_read(Identity(5, "token", conversations=frozenset()), 456), False)
        self.assertEqual(self.database.count, 0)
        result = self.build().may_read(limited, 456)
        assert isinstance(result, Deferred)
        self.database.answer()
        self.assertIs(self.successResultOf(result), False)

    def test_a_thousand_checks_of_one_user_delay_another_user_by_one_turn(self) -> None:
        authorizer = self.build(database_pool=2, conversation_query=BY_USER)
        many = [self.ask(authorizer, 5, number) for number in range(1000)]
        other = self.ask(authorizer, 6, 1)
        self.assertEqual(self.database.count, 2)
        for _ in range(4):
            self.database.answer(ROW)
        self.assertIs(self.successResultOf(other), True)
        for _ in range(1000 - 3):
            self.clock.advance(1.0)
            self.database.answer(ROW)
        self.assertEqual([self.successResultOf(item) for item in many], [True] * 1000)

    def test_a_row_is_a_yes(self) -> None:
        authorizer = self.build(conversation_query=BY_USER)
        first, second = self.ask(authorizer, 5, 456), self.ask(authorizer, 6, 456)
        self.assertEqual(
            [values for _, values, _ in self.database.asked],
            [{"user_id": 5, "conversation_id": 456}, {"user_id": 6, "conversation_id": 456}],
        )
        self.database.answer(ROW)
        self.database.answer()
        self.assertIs(self.successResultOf(first), True)
        self.assertIs(self.successResultOf(second), False)
        self.assertIs(authorizer.may_read(Identity(5, "token"), 456), True)

    def test_a_query_without_a_user_runs_once_for_all_users(self) -> None:
        authorizer = self.build()
        waiting = [self.ask(authorizer, user_id, 456) for user_id in range(100)]
        self.assertEqual(self.database.count, 1)
        self.database.answer(ROW)
        self.assertEqual([self.successResultOf(item) for item in waiting], [True] * 100)
        self.assertIs(authorizer.may_read(Identity(1000, "token"), 456), True)

    def test_denials_are_remembered_for_a_second_beyond_twenty(self) -> None:
        authorizer = self.build(conversation_query=BY_USER)
        self.database.rows = []
        for number in range(TOLERATED_REFUSALS):
            self.successResultOf(self.ask(authorizer, 5, number))
        self.database.rows = [ROW]  # the row of conversation 0 is committed
        self.assertIs(self.successResultOf(self.ask(authorizer, 5, 0)), True)
        self.database.rows = []
        self.successResultOf(self.ask(authorizer, 5, 100))
        count = self.database.count
        self.assertIs(authorizer.may_read(Identity(5, "token"), 100), False)
        self.assertEqual(self.database.count, count, "no query")
        self.assertIs(self.successResultOf(self.ask(authorizer, 6, 100)), False, "another user is asked about")
        self.clock.advance(REFUSAL_TTL)
        self.assertIs(self.successResultOf(self.ask(authorizer, 5, 100)), False)
        self.assertEqual(self.database.count, count + 2)

    def test_denials_are_forgotten_with_the_users_permissions(self) -> None:
        authorizer = self.build(conversation_query=BY_USER)
        self.database.rows = []
        for number in range(2 * TOLERATED_REFUSALS):
            self.successResultOf(self.ask(authorizer, 5, number))
        self.assertIs(authorizer.may_read(Identity(5, "token"), 1), False)
        authorizer.forget(5)
        self.database.rows = [ROW]
        self.assertIs(self.successResultOf(self.ask(authorizer, 5, 1)), True)

    def test_denials_take_no_memory_once_they_have_expired(self) -> None:
        refusals = Refusals(self.clock)
        for number in range(1000):
            refusals.add(number % 7, number)
        self.clock.advance(REFUSAL_TTL)
        self.assertNotIn((0, 0), refusals)
        self.assertEqual((refusals._by_user, len(refusals._in_order)), ({}, 0))

    def test_a_failed_lookup_grants_nothing(self) -> None:
        authorizer = self.build()
        result = self.ask(authorizer, 5, 456)
        self.database.fail(Unavailable("gone"))
        self.failureResultOf(result, Unavailable)
        silent = self.ask(authorizer, 5, 456)
        self.clock.advance(5.0)
        self.failureResultOf(silent, Unavailable)

    def test_forget_repeats_only_the_query_of_the_entry(self) -> None:
        for query, asked_anew in ((BY_USER, {(5, 1)}), (Config().conversation_query, {(5, 1), (6, 1)})):
            authorizer = self.build(conversation_query=query)
            self.database.rows = [ROW]
            pairs = [(user_id, conversation_id) for user_id in (5, 6) for conversation_id in (1, 2)]
            for user_id, conversation_id in pairs:
                authorizer.may_read(Identity(user_id, "token"), conversation_id)
            authorizer.forget(5, 1)
            self.database.rows = []
            forgotten = {pair for pair in pairs if authorizer.may_read(Identity(pair[0], "token"), pair[1]) is not True}
            self.assertEqual(forgotten, asked_anew)

    def test_all_of_a_users_conversations_can_be_forgotten(self) -> None:
        authorizer = self.build(conversation_query=BY_USER)
        self.database.rows = [ROW]
        for user_id in (5, 6):
            for conversation_id in (1, 2):
                authorizer.may_read(Identity(user_id, "token"), conversation_id)
        authorizer.forget(5)
        for conversation_id in (1, 2):
            self.assertIs(authorizer.may_read(Identity(6, "token"), conversation_id), True)
            self.assertIsInstance(authorizer.may_read(Identity(5, "token"), conversation_id), Deferred)
