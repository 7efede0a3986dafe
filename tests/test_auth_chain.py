"""Who decides when there are several ways to say who one is."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth.build import build_activity, build_authenticator, build_authorizer, default_methods
from chatws.auth.chain import Chain
from chatws.auth.stats import AuthStats
from chatws.chat.contracts import Credentials, Identity
from chatws.config import Config
from chatws.errors import AuthenticationFailed, ClientError, OperatorError, Unavailable
from chatws.ids import Id
from chatws.server.component import HttpRequest
from tests.fakes_database import FakeDatabase
from tests.test_auth_ticket import NOW, SECRET, claims, forge

TICKETS = {"secret": (SECRET.decode(),)}
ROW = {"id": 5, "name": "Ana"}


def credentials(user_id: Id | None = None, token: str | None = None, **headers: str) -> Credentials:
    return Credentials(user_id, token, HttpRequest("GET", "/ws", headers=headers), "192.0.2.1")


class ChainCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.database = FakeDatabase()
        self.lines: list[str] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_namespace", "").startswith("chatws"):
                self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.chains: list[Chain] = []

    def tearDown(self) -> None:
        for chain in self.chains:
            chain.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def build(self, with_database: bool = False, **settings: Any) -> Chain:
        database = self.database if with_database else None
        self.chains.append(build_authenticator(Config(**settings), database, self.clock))
        return self.chains[-1]

    def now(self, chain: Chain, given: Credentials) -> Identity:
        found = chain.authenticate(given)
        assert isinstance(found, Identity)
        return found

    def later(self, chain: Chain, given: Credentials) -> Deferred[Identity]:
        found = chain.authenticate(given)
        assert isinstance(found, Deferred)
        return found


class Defaults(ChainCase):
    def test_the_strongest_that_is_configured_is_the_default(self) -> None:
        url = {"auth_url": "http://127.0.0.1/me"}
        database = {"database": "sqlite:///x"}
        self.assertEqual(default_methods(Config()), ("trust",))
        self.assertEqual(default_methods(Config(**database)), ("database",))
        self.assertEqual(default_methods(Config(database_file="x")), ("database",))
        self.assertEqual(default_methods(Config(**database, **url)), ("callback",))
        self.assertEqual(default_methods(Config(**database, **url, **TICKETS)), ("ticket",))
        self.assertEqual(default_methods(Config(secret_file=("x",))), ("ticket",))
        self.assertEqual(default_methods(Config(**TICKETS, auth=("trust", "ticket"))), ("trust", "ticket"))

    def test_what_is_missing_or_wrong_is_said_at_the_start(self) -> None:
        for words, settings in (
            ("needs the secret", {"auth": ("ticket",)}),
            ("--auth-url", {"auth": ("callback",)}),
            ("--auth-url", {"auth_url": "ftp://127.0.0.1/"}),
            ("--auth-url", {"auth_url": "http://u:p@127.0.0.1/"}),
            ("--auth-url", {"auth_url": "http://[/"}),
            ("--auth-url", {"auth_url": "/me"}),
            ("needs a database", {"auth": ("database",)}),
            ("none of", {"auth": ("tickets",)}),
        ):
            error = self.assertRaises(OperatorError, self.build, **settings)
            self.assertIn(words, str(error))
        for name, build in (
            ("user_query", build_authenticator),
            ("conversation_query", build_authorizer),
            ("heartbeat_query", build_activity),
            ("activity_query", build_activity),
        ):
            config = Config(**{name: "SELECT %(no_such)s"})
            error = self.assertRaises(OperatorError, build, config, self.database, self.clock)
            self.assertIn(name, str(error))
        empty = Config(auth=("database",), user_query="")
        self.assertRaises(OperatorError, build_authenticator, empty, self.database, self.clock)


class Order(ChainCase):
    def test_trust_believes_at_once(self) -> None:
        self.assertEqual(self.now(self.build(), credentials(5)), Identity(5, "trust"))

    def test_nobody_is_let_in_without_anything_to_judge(self) -> None:
        for settings, wanted in (
            (TICKETS, "token"),
            ({"auth_url": "http://127.0.0.1/"}, "a Cookie or Authorization header"),
            ({**TICKETS, "auth": ("ticket", "trust")}, "token or user_id"),
        ):
            chain = self.build(**settings)
            error = self.assertRaises(AuthenticationFailed, chain.authenticate, credentials())
            self.assertEqual(error.message, f"auth needs {wanted}")
            self.assertEqual(chain.stats.counts, {("none", "refused"): 1})

    def test_a_message_without_the_name_that_is_all_it_takes_is_no_refusal(self) -> None:
        chain = self.build()
        error = self.assertRaises(ClientError, chain.authenticate, credentials())
        self.assertEqual((error.code, error.message), ("bad_message", "user_id is missing"))

    def test_where_tickets_are_asked_for_a_name_is_not_enough(self) -> None:
        chain = self.build(**TICKETS)
        self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, cookie="session=1"))

    def test_a_token_is_judged_as_a_ticket_and_by_nobody_else(self) -> None:
        chain = self.build(**TICKETS, auth=("ticket", "trust"))
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).method, "ticket")
        self.assertEqual(self.now(chain, credentials(5)).method, "trust")
        for bad in ("", "x", forge(claims(sub="6")), forge(claims(exp=NOW - 99))):
            self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, bad))
        self.assertEqual(
            chain.stats.counts, {("ticket", "accepted"): 1, ("trust", "accepted"): 1, ("ticket", "refused"): 4}
        )

    def test_a_token_means_nothing_where_tickets_are_not_configured(self) -> None:
        self.assertEqual(self.now(self.build(), credentials(5, "whatever")).method, "trust")

    def test_the_order_is_the_operators(self) -> None:
        chain = self.build(**TICKETS, auth=("trust", "ticket"))
        self.assertEqual(self.now(chain, credentials(5, "no ticket")).method, "trust")
        self.assertEqual(self.now(chain, credentials(None, forge(claims()))).method, "ticket")


class WithADatabase(ChainCase):
    def test_the_database_method_looks_for_the_user(self) -> None:
        chain = self.build(True, auth=("database",))
        first, second = self.later(chain, credentials(5)), self.later(chain, credentials(6))
        self.assertEqual([values for _, values, _ in self.database.asked], [{"user_id": 5}, {"user_id": 6}])
        self.database.answer(ROW)
        self.database.answer()
        self.assertEqual(self.successResultOf(first), Identity(5, "database"))
        self.failureResultOf(second, AuthenticationFailed)
        self.assertEqual(chain.stats.counts, {("database", "accepted"): 1, ("database", "refused"): 1})

    def test_a_user_who_was_just_looked_up_need_not_wait(self) -> None:
        chain = self.build(True, auth=("database",))
        self.later(chain, credentials(5))
        self.database.answer(ROW)
        self.assertEqual(self.now(chain, credentials(5)), Identity(5, "database"))
        chain.forget(5)
        self.later(chain, credentials(5))
        self.database.answer(ROW)

    def test_a_ticket_is_for_active_users_only(self) -> None:
        chain = self.build(True, **TICKETS)
        first = self.later(chain, credentials(None, forge(claims())))
        self.database.answer()
        self.failureResultOf(first, AuthenticationFailed)
        second = self.later(chain, credentials(None, forge(claims())))
        self.database.answer(ROW)
        self.assertEqual(self.successResultOf(second).method, "ticket")
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).user_id, 5)
        self.assertEqual(chain.stats.counts, {("ticket", "refused"): 1, ("ticket", "accepted"): 2})

    def test_a_bad_ticket_costs_no_query(self) -> None:
        chain = self.build(True, **TICKETS)
        self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, forge(claims(), secret=b"x" * 32)))
        self.assertEqual(self.database.count, 0)

    def test_no_user_query_asks_nobody(self) -> None:
        chain = self.build(True, **TICKETS, user_query="")
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).user_id, 5)

    def test_trust_asks_nobody(self) -> None:
        self.assertEqual(self.now(self.build(True, auth=("trust",)), credentials(5)).user_id, 5)

    def test_a_database_that_cannot_be_asked_is_no_yes(self) -> None:
        for settings, given in (({"auth": ("database",)}, credentials(5)), (TICKETS, credentials(5, forge(claims())))):
            chain = self.build(True, **settings)
            found = self.later(chain, given)
            self.database.fail(Unavailable("gone"))
            self.failureResultOf(found, Unavailable)
            silent = self.later(chain, given)
            self.clock.advance(5.0)
            self.failureResultOf(silent, Unavailable)
            self.database.asked.clear()
            (count,) = chain.stats.counts.values()
            self.assertEqual(count, 2)
            self.assertEqual(next(iter(chain.stats.counts))[1], "unavailable")


class Legacy(ChainCase):
    def test_each_user_who_enters_without_a_proof_is_named_once(self) -> None:
        chain = self.build(**TICKETS, auth=("ticket", "trust"))
        for _ in range(3):
            for user_id in (5, "x\n\x1b[31m{}"):
                self.now(chain, credentials(user_id))
                self.clock.advance(1.0)
            self.now(chain, credentials(None, forge(claims(sub="9"))))
        self.assertEqual(
            self.lines,
            [
                "user 5 enters without a proof, by --auth trust",
                "user 'x\\n\\x1b[31m{}' enters without a proof, by --auth trust",
            ],
        )
        self.assertEqual(chain.stats.counts["trust", "accepted"], 6)

    def test_many_who_enter_together_are_named_together(self) -> None:
        self.patch(AuthStats, "MAX_IN_A_LINE", 3)
        chain = self.build()
        for user_id in range(1, 6):
            self.now(chain, credentials(user_id))
        self.assertEqual(self.lines, ["user 1 enters without a proof, by --auth trust"])
        self.clock.advance(1.0)
        self.assertEqual(
            self.lines[1:],
            [
                "users 2, 3, 4 enter without a proof, by --auth trust",
                "user 5 enters without a proof, by --auth trust",
            ],
        )
        self.now(chain, credentials("x\n"))
        self.now(chain, credentials("y"))
        chain.stop()
        self.assertEqual(self.lines[3:], ["users 'x\\n', 'y' enter without a proof, by --auth trust"])

    def test_the_names_do_not_grow_without_end(self) -> None:
        self.patch(AuthStats, "MAX_NAMED", 10)
        chain = self.build()
        for user_id in range(50):
            self.now(chain, credentials(user_id))
            self.clock.advance(1.0)
        self.assertEqual(len(self.lines), 11)
        self.assertIn("further ones are not named", self.lines[-1])
        self.assertEqual(chain.stats.counts["trust", "accepted"], 50)
