"""The identity of a callback has a lifetime: the server asks again by itself, and no untouched page notices."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from chatws.chat.interfaces import Credentials, Identity
from chatws.chat.session import RENEWAL_RETRY
from chatws.errors import AuthenticationFailed, ClientError, ErrorCode, Forbidden, Unavailable
from tests.fakes import FakeConnection, PendingChecks
from tests.test_chat_server import ChatTestCase

TTL = 3600.0


class Sessions(PendingChecks):
    """The application: it accepts, until the test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Credentials] = []
        self.is_waiting = False
        self.answer: Identity | ClientError = Identity(5, "callback", renew_after=TTL)

    def authenticate(self, credentials: Credentials) -> Deferred[Identity]:
        self.asked.append(credentials)
        result = super().authenticate(credentials)
        if not self.is_waiting:
            self.finish()
        return result

    def finish(self) -> None:
        _, result = self.pending.pop(0)
        if isinstance(self.answer, Identity):
            result.callback(self.answer)
        else:
            result.errback(self.answer)

    def may_read(self, identity: Identity, conversation_id: Any) -> bool:  # type: ignore[override]
        return True


class RenewalTests(ChatTestCase):
    def setUp(self) -> None:
        self.sessions = Sessions()
        super().setUp()

    def make_chat(self, **options: Any) -> Any:
        return super().make_chat(authenticator=self.sessions, authorizer=self.sessions, **options)

    def wait(self, seconds: float) -> None:
        self.clock.pump([10.0] * int(seconds / 10))

    def closed(self, connection: FakeConnection) -> int | None:
        return connection.closed[0] if connection.closed else None

    def test_accepted_renewals_are_repeated_and_invisible(self) -> None:
        page = self.enter(5, 456)
        self.wait(3 * TTL)
        self.assertIn(len(self.sessions.asked), (4, 5))
        self.assertEqual([credentials.user_id for credentials in self.sessions.asked[1:]], [None] * self.renewals())
        self.assertTrue(all(asked.http_request is page.http_request for asked in self.sessions.asked))
        self.assertEqual((page.take(), page.closed), ([], None))
        self.push("new_message", {"conversation_id": 456})
        self.assertEqual(page.take()[0]["event"], "new_message")

    def renewals(self) -> int:
        return int(self.chat.renewals["accepted"])

    def test_identity_without_a_lifetime_is_not_renewed(self) -> None:
        self.sessions.answer = Identity(5, "callback")
        page = self.enter(5)
        self.wait(3 * TTL)
        self.assertEqual((len(self.sessions.asked), page.closed), (1, None))

    def test_rejected_renewal_closes_with_4000_and_drops_what_waits(self) -> None:
        for answer in (AuthenticationFailed("no"), Forbidden("no"), Identity(6, "callback", renew_after=TTL)):
            self.sessions.answer = Identity(5, "callback", renew_after=TTL)
            page = self.enter(5)
            self.sessions.answer = answer
            self.wait(TTL)
            self.assertEqual((self.closed(page), page.dropped_unsent), (4000, True))
            self.chat.on_close(page)
        self.assertEqual(self.chat.renewals, {"accepted": 0, "rejected": 3, "unavailable": 0})

    def test_application_that_does_not_answer_is_asked_again(self) -> None:
        page = self.enter(5)
        self.sessions.answer = Unavailable("no answer")
        self.wait(TTL + 10 * RENEWAL_RETRY)
        asked = len(self.sessions.asked)
        self.assertGreaterEqual(asked, 11)
        self.sessions.answer = Identity(5, "callback", renew_after=TTL)
        self.wait(2 * RENEWAL_RETRY)
        self.assertEqual((len(self.sessions.asked), page.take(), page.closed), (asked + 1, [], None))
        self.sessions.answer = AuthenticationFailed("no")
        self.wait(TTL)
        self.assertEqual(self.closed(page), 4000)

    def test_another_error_of_the_check_is_no_rejection(self) -> None:
        page = self.enter(5)
        self.sessions.answer = ClientError(ErrorCode.BAD_MESSAGE, "user_id is missing")
        self.wait(TTL)
        self.assertIsNone(page.closed)
        self.assertGreaterEqual(self.chat.renewals["unavailable"], 1)

    def test_auth_during_a_renewal_takes_its_place(self) -> None:
        page = self.enter(5)
        self.sessions.is_waiting = True
        self.wait(TTL)
        self.assertEqual(len(self.sessions.pending), 1)
        self.send(page, type="auth", user_id=5)
        self.sessions.pending.reverse()
        self.sessions.finish()
        self.assertEqual(page.take()[0]["event"], "authenticated")
        self.sessions.answer = AuthenticationFailed("no")
        self.sessions.finish()
        self.assertIsNone(page.closed)
        self.assertEqual(self.chat.renewals, {"accepted": 0, "rejected": 0, "unavailable": 0})

    def test_connection_that_closes_during_a_renewal_cancels_it(self) -> None:
        page = self.enter(5)
        self.sessions.is_waiting = True
        self.wait(TTL)
        _, result = self.sessions.pending.pop()
        self.chat.on_close(page)
        self.assertTrue(result.called)

    def test_user_who_is_banned_during_a_renewal_is_not_let_in_by_its_result(self) -> None:
        page = self.enter(5)
        self.sessions.is_waiting = True
        self.wait(TTL)
        self.successResultOf(self.chat.disconnect(5, ban=True))
        self.sessions.finish()
        self.assertEqual(self.closed(page), 4903)

    def test_renewal_with_fewer_conversations_ends_the_others(self) -> None:
        page = self.enter(5, 456, 457)
        self.sessions.answer = Identity(5, "callback", renew_after=TTL, conversations=frozenset({457}))
        self.wait(TTL)
        self.assertEqual(page.take(), [{"event": "unsubscribed", "data": {"conversation_id": 456}}])
        self.push("new_message", {"conversation_id": 456})
        self.assertEqual(page.take(), [])

    def test_renewal_with_other_groups_replaces_them_and_without_groups_keeps_them(self) -> None:
        page = self.enter(5)
        self.successResultOf(self.chat.set_groups(5, ("sales",)))
        page.take()
        self.wait(TTL)
        self.assertEqual(page.take(), [])
        self.push("x", {}, to=("group:sales",))
        self.assertEqual(page.take()[0]["event"], "x")
        self.sessions.answer = Identity(5, "callback", renew_after=TTL, groups=("b2b",))
        self.wait(TTL)
        self.assertEqual(page.take(), [{"event": "groups", "data": {"groups": ["b2b"]}}])

    def test_cancelled_deadlines_do_not_pile_up(self) -> None:
        page = self.enter(5)
        longest = max(call.getTime() for call in self.clock.getDelayedCalls()) - self.clock.seconds()
        self.assertLess(longest, TTL / 10)
        self.assertIsNone(page.closed)
