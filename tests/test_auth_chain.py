"""Who decides when there are several ways to say who one is."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth.auth_stats import AuthStats
from chatws.auth.chain import AuthenticatorChain
from chatws.auth.factory import build_activity, build_authenticator, build_authorizer, default_methods
from chatws.chat.interfaces import Credentials, Identity
from chatws.config.schema import Config
from chatws.errors import AuthenticationFailed, ClientError, ConfigError, Unavailable
from chatws.ids import Id
from chatws.server.component import HttpRequest
from tests.fakes_database import FakeDatabase
from tests.test_auth_token import NOW, SECRET, claims, forge

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
        self.chains: list[AuthenticatorChain] = []

    def tearDown(self) -> None:
        for chain in self.chains:
            chain.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def build(self, with_database: bool = False, **settings: Any) -> AuthenticatorChain:
        database = self.database if with_database else None
        self.chains.append(build_authenticator(Config(**settings), database, self.clock, self.clock))
        return self.chains[-1]

    def now(self, chain: AuthenticatorChain, given: Credentials) -> Identity:
        result = chain.authenticate(given)
        assert isinstance(result, Identity)
        return result

    def later(self, chain: AuthenticatorChain, given: Credentials) -> Deferred[Identity]:
        result = chain.authenticate(given)
        assert isinstance(result, Deferred)
        return result


class Defaults(ChainCase):
    def test_strongest_configured_method_is_the_default(self) -> None:
        url = {"auth_url": "http://127.0.0.1/me"}
        database = {"database": "sqlite:///x"}
        self.assertEqual(default_methods(Config()), ("trust",))
        self.assertEqual(default_methods(Config(**database)), ("database",))
        self.assertEqual(default_methods(Config(database_file="x")), ("database",))
        self.assertEqual(default_methods(Config(**database, **url)), ("callback",))
        self.assertEqual(default_methods(Config(**database, **url, **TICKETS)), ("token",))
        self.assertEqual(default_methods(Config(secret_files=("x",))), ("token",))
        self.assertEqual(default_methods(Config(**TICKETS, auth_methods=("trust", "token"))), ("trust", "token"))

    def test_missing_settings_of_methods_are_errors_at_start(self) -> None:
        for words, settings in (
            ("needs the secret", {"auth_methods": ("token",)}),
            ("--auth-url", {"auth_methods": ("callback",)}),
            ("--auth-url", {"auth_url": "ftp://127.0.0.1/"}),
            ("--auth-url", {"auth_url": "http://u:p@127.0.0.1/"}),
            ("--auth-url", {"auth_url": "http://[/"}),
            ("--auth-url", {"auth_url": "/me"}),
            ("needs a database", {"auth_methods": ("database",)}),
            ("not one of", {"auth_methods": ("tickets",)}),
        ):
            error = self.assertRaises(ConfigError, self.build, **settings)
            self.assertIn(words, str(error))
        for name, build in (
            ("user_query", build_authenticator),
            ("conversation_query", build_authorizer),
            ("heartbeat_query", build_activity),
            ("activity_query", build_activity),
        ):
            config = Config(**{name: "SELECT %(no_such)s"})
            error = self.assertRaises(ConfigError, build, config, self.database, self.clock)
            self.assertIn(name, str(error))
        empty = Config(auth_methods=("database",), user_query="")
        self.assertRaises(ConfigError, build_authenticator, empty, self.database, self.clock)


class Order(ChainCase):
    def test_trust_authenticates_synchronously(self) -> None:
        self.assertEqual(self.now(self.build(), credentials(5)), Identity(5, "trust"))

    def test_missing_credentials_are_auth_failed(self) -> None:
        for settings, wanted in (
            (TICKETS, "token"),
            ({"auth_url": "http://127.0.0.1/"}, "a Cookie or Authorization header"),
            ({**TICKETS, "auth_methods": ("token", "trust")}, "token or user_id"),
        ):
            chain = self.build(**settings)
            error = self.assertRaises(AuthenticationFailed, chain.authenticate, credentials())
            self.assertEqual(error.message, f"auth needs {wanted}")
            self.assertEqual(chain.stats.counts, {("none", "refused"): 1})

    def test_a_missing_user_id_for_trust_is_bad_message(self) -> None:
        chain = self.build()
        error = self.assertRaises(ClientError, chain.authenticate, credentials())
        self.assertEqual((error.code, error.message), ("bad_message", "user_id is missing"))

    def test_a_user_id_without_a_token_is_auth_failed(self) -> None:
        chain = self.build(**TICKETS)
        self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, cookie="session=1"))

    def test_a_token_is_checked_by_the_token_method_alone(self) -> None:
        chain = self.build(**TICKETS, auth_methods=("token", "trust"))
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).method, "token")
        self.assertEqual(self.now(chain, credentials(5)).method, "trust")
        for bad in ("", "x", forge(claims(sub="6")), forge(claims(exp=NOW - 99))):
            self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, bad))
        self.assertEqual(
            chain.stats.counts, {("token", "accepted"): 1, ("trust", "accepted"): 1, ("token", "refused"): 4}
        )

    def test_a_token_without_the_token_method_is_ignored(self) -> None:
        self.assertEqual(self.now(self.build(), credentials(5, "whatever")).method, "trust")

    def test_order_of_methods_is_the_configured_one(self) -> None:
        chain = self.build(**TICKETS, auth_methods=("trust", "token"))
        self.assertEqual(self.now(chain, credentials(5, "no token")).method, "trust")
        self.assertEqual(self.now(chain, credentials(None, forge(claims()))).method, "token")


class WithADatabase(ChainCase):
    def test_the_database_method_looks_for_the_user(self) -> None:
        chain = self.build(True, auth_methods=("database",))
        first, second = self.later(chain, credentials(5)), self.later(chain, credentials(6))
        self.assertEqual([values for _, values, _ in self.database.asked], [{"user_id": 5}, {"user_id": 6}])
        self.database.answer(ROW)
        self.database.answer()
        self.assertEqual(self.successResultOf(first), Identity(5, "database"))
        self.failureResultOf(second, AuthenticationFailed)
        self.assertEqual(chain.stats.counts, {("database", "accepted"): 1, ("database", "refused"): 1})

    def test_a_cached_user_authenticates_at_once(self) -> None:
        chain = self.build(True, auth_methods=("database",))
        self.later(chain, credentials(5))
        self.database.answer(ROW)
        self.assertEqual(self.now(chain, credentials(5)), Identity(5, "database"))
        chain.forget(5)
        self.later(chain, credentials(5))
        self.database.answer(ROW)

    def test_a_token_of_an_inactive_user_is_auth_failed(self) -> None:
        chain = self.build(True, **TICKETS)
        first = self.later(chain, credentials(None, forge(claims())))
        self.database.answer()
        self.failureResultOf(first, AuthenticationFailed)
        second = self.later(chain, credentials(None, forge(claims())))
        self.database.answer(ROW)
        self.assertEqual(self.successResultOf(second).method, "token")
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).user_id, 5)
        self.assertEqual(chain.stats.counts, {("token", "refused"): 1, ("token", "accepted"): 2})

    def test_an_invalid_token_causes_no_query(self) -> None:
        chain = self.build(True, **TICKETS)
        self.assertRaises(AuthenticationFailed, chain.authenticate, credentials(5, forge(claims(), secret=b"x" * 32)))
        self.assertEqual(self.database.count, 0)

    def test_an_empty_user_query_causes_no_query(self) -> None:
        chain = self.build(True, **TICKETS, user_query="")
        self.assertEqual(self.now(chain, credentials(5, forge(claims()))).user_id, 5)

    def test_trust_causes_no_query(self) -> None:
        self.assertEqual(self.now(self.build(True, auth_methods=("trust",)), credentials(5)).user_id, 5)

    def test_an_unavailable_database_grants_nothing(self) -> None:
        for settings, given in (
            ({"auth_methods": ("database",)}, credentials(5)),
            (TICKETS, credentials(5, forge(claims()))),
        ):
            chain = self.build(True, **settings)
            result = self.later(chain, given)
            self.database.fail(Unavailable("gone"))
            self.failureResultOf(result, Unavailable)
            silent = self.later(chain, given)
            self.clock.advance(5.0)
            self.failureResultOf(silent, Unavailable)
            self.database.asked.clear()
            (count,) = chain.stats.counts.values()
            self.assertEqual(count, 2)
            self.assertEqual(next(iter(chain.stats.counts))[1], "unavailable")


class Legacy(ChainCase):
    def test_each_trusted_user_is_logged_once(self) -> None:
        chain = self.build(**TICKETS, auth_methods=("token", "trust"))
        for _ in range(3):
            for user_id in (5, "x\n\x1b[31m{}"):
                self.now(chain, credentials(user_id))
                self.clock.advance(1.0)
            self.now(chain, credentials(None, forge(claims(sub="9"))))
        self.assertEqual(
            self.lines,
            [
                "accepted without verification by --auth trust: 5",
                "accepted without verification by --auth trust: 'x\\n\\x1b[31m{}'",
            ],
        )
        self.assertEqual(chain.stats.counts["trust", "accepted"], 6)

    def test_many_trusted_users_share_log_lines(self) -> None:
        self.patch(AuthStats, "MAX_PER_LINE", 3)
        chain = self.build()
        for user_id in range(1, 6):
            self.now(chain, credentials(user_id))
        self.assertEqual(self.lines, ["accepted without verification by --auth trust: 1"])
        self.clock.advance(1.0)
        self.assertEqual(
            self.lines[1:],
            [
                "accepted without verification by --auth trust: 2, 3, 4",
                "accepted without verification by --auth trust: 5",
            ],
        )
        self.now(chain, credentials("x\n"))
        self.now(chain, credentials("y"))
        chain.stop()
        self.assertEqual(self.lines[3:], ["accepted without verification by --auth trust: 'x\\n', 'y'"])

    def test_logged_user_ids_are_bounded(self) -> None:
        self.patch(AuthStats, "MAX_LOGGED", 10)
        chain = self.build()
        for user_id in range(50):
            self.now(chain, credentials(user_id))
            self.clock.advance(1.0)
        self.assertEqual(len(self.lines), 11)
        self.assertIn("further ones are not logged", self.lines[-1])
        self.assertEqual(chain.stats.counts["trust", "accepted"], 50)
