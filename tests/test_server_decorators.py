"""Ratchet's decorators and its router, over socket pairs; the App over a port."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from chatws import App, EchoServer, HttpServer, IpBlackList, OriginCheck, Router, SessionProvider, WsServer
from chatws.errors import ConfigError
from chatws.server import Admission
from tests.server_wire import BinaryRecorder, Recorder, ServerCase, Wire, frame, head


class DecoratorCase(ServerCase):
    def open(self, peer: str = "192.0.2.7", **fields: str | None) -> Wire:
        """A WebSocket whose handshake is done, whatever the decorator thinks of it."""
        wire = self.wire(peer)
        wire.send(head(**fields))
        status, _, rest = wire.response()
        self.assertEqual(status, 101)
        wire.received = rest
        return wire

    def end(self, wire: Wire) -> None:
        wire.close()


class OriginCheckTests(DecoratorCase):
    def setUp(self) -> None:
        super().setUp()
        self.inner = BinaryRecorder()
        allowed = ["https://shop.example", "https://admin.shop.example"]
        self.serve(
            OriginCheck(self.inner, allowed=["https://Admin.shop.example:443"]), admission={"allowed_origins": allowed}
        )

    def test_a_page_of_an_allowed_origin_is_accepted(self) -> None:
        wire = self.open(Origin="https://admin.shop.example")
        wire.send(frame("hello") + frame(b"\0", 2))
        assert self.inner.events == [("open", 1), ("message", 1, "hello"), ("binary", 1, b"\0")]
        self.end(wire)
        assert self.inner.events[-1] == ("close", 1)

    def test_a_page_of_another_origin_is_closed_before_the_component(self) -> None:
        wire = self.open(Origin="https://shop.example")
        wire.send(frame("hello"))
        assert wire.closed_with()[0] == 4903
        self.end(wire)
        assert self.inner.events == []

    def test_a_client_without_an_origin_is_accepted(self) -> None:
        self.end(self.open(Origin=None))
        assert self.inner.events[0] == ("open", 1)

    def test_an_invalid_allowed_origin_is_an_error(self) -> None:
        with pytest.raises(ConfigError):
            OriginCheck(Recorder(), allowed=["shop.example"])


class IpBlackListTests(DecoratorCase):
    def setUp(self) -> None:
        super().setUp()
        self.inner = Recorder()
        self.blacklist = IpBlackList(self.inner)
        self.serve(self.blacklist)

    def test_blocked_address_is_closed(self) -> None:
        self.blacklist.block("192.0.2.7")
        wire = self.open("192.0.2.7")
        assert wire.closed_with()[0] == 4903
        self.end(wire)
        assert self.inner.events == []

    def test_addresses_that_are_not_blocked_are_accepted(self) -> None:
        self.blacklist.block("192.0.2.7")
        self.end(self.open("192.0.2.8"))
        assert self.inner.events == [("open", 1), ("close", 1)]

    def test_address_behind_a_proxy_is_the_browsers(self) -> None:
        self.blacklist.block("203.0.113.9")
        blocked = self.open("127.0.0.1", X_Forwarded_For="203.0.113.9")
        other = self.open("127.0.0.1", X_Forwarded_For="203.0.113.10")
        assert blocked.closed_with()[0] == 4903
        assert other.frames() == []
        self.end(blocked)
        self.end(other)

    def test_blocking_an_address_closes_its_connections(self) -> None:
        wire = self.open("192.0.2.7")
        self.blacklist.block("::ffff:192.0.2.7")
        assert wire.closed_with()[0] == 4903
        self.end(wire)
        assert self.inner.events == [("open", 1), ("close", 1)]

    def test_unblocked_address_is_accepted(self) -> None:
        self.blacklist.block("192.0.2.7").block("2001:DB8::1").unblock("192.0.2.7").unblock("192.0.2.7")
        assert self.blacklist.blocked == ["2001:db8::1"]
        assert self.blacklist.is_blocked("2001:db8:0::1")
        self.end(self.open("192.0.2.7"))
        assert self.inner.events[0] == ("open", 1)

    def test_an_invalid_address_cannot_be_blocked(self) -> None:
        with pytest.raises(ValueError, match="shop"):
            self.blacklist.block("shop.example")

    def test_a_component_without_on_binary_rejects_binary_messages(self) -> None:
        wire = self.open()
        wire.send(frame(b"\0", 2))
        assert wire.closed_with()[0] == 1003
        self.end(wire)


class SessionProviderTests(DecoratorCase):
    def setUp(self) -> None:
        super().setUp()
        self.inner = BinaryRecorder()
        self.answers: list[Deferred[Any]] = []

    def ask(self, connection: Any) -> Deferred[Any]:
        self.answers.append(Deferred())
        return self.answers[-1]

    def test_the_session_is_loaded_before_on_open(self) -> None:
        self.serve(SessionProvider(self.inner, lambda connection: connection.http_request.cookies["PHPSESSID"]))
        wire = self.open(Cookie="PHPSESSID=abc")
        assert self.inner.connections[0].session_data == "abc"
        assert self.inner.connections[0].client is None, "the component's own"
        self.end(wire)

    def test_messages_wait_for_the_session_in_order(self) -> None:
        self.serve(SessionProvider(self.inner, self.ask))
        wire = self.open()
        wire.send(frame("one") + frame(b"two", 2) + frame("three"))
        assert self.inner.events == []
        self.answers[0].callback({"user": 5})
        wire.send(frame("four"))
        assert [event[0] for event in self.inner.events] == ["open", "message", "binary", "message", "message"]
        assert [event[-1] for event in self.inner.events[1:]] == ["one", b"two", "three", "four"]
        self.end(wire)

    def test_session_from_an_async_function_is_awaited(self) -> None:
        async def get_session(connection: Any) -> str:
            answer: str = await self.ask(connection)
            return answer

        self.serve(SessionProvider(self.inner, get_session))
        wire = self.open()
        self.answers[0].callback("abc")
        assert self.inner.connections[0].session_data == "abc"
        self.end(wire)

    def test_a_connection_closed_before_its_session_is_not_reported(self) -> None:
        self.serve(SessionProvider(self.inner, self.ask))
        self.end(self.open())
        self.answers[0].callback("late")
        assert self.inner.events == []

    def test_failed_session_closes_the_connection_and_logs_the_reason(self) -> None:
        self.serve(SessionProvider(self.inner, self.ask))
        wire = self.open()
        self.answers[0].errback(RuntimeError("no such table"))
        assert wire.closed_with() == (4500, "internal error")
        self.end(wire)
        assert self.inner.events == []
        assert len(self.flushLoggedErrors(RuntimeError)) == 1

    def test_messages_waiting_for_a_session_are_limited(self) -> None:
        self.serve(SessionProvider(self.inner, self.ask))
        wire = self.open()
        wire.send(frame("x") * 101)
        assert wire.closed_with()[0] == 4429
        self.end(wire)
        self.answers[0].callback("late")
        assert self.inner.events == []

    def test_error_in_the_component_after_the_session_calls_on_error(self) -> None:
        class Broken(Recorder):
            def on_message(self, connection: Any, text: str) -> None:
                raise KeyError(text)

        self.inner = Broken()  # type: ignore[assignment]
        self.serve(SessionProvider(self.inner, self.ask))
        wire = self.open()
        wire.send(frame("early"))
        self.answers[0].callback("abc")
        wire.send(frame("late"))
        assert [error.args for error in self.inner.errors] == [("early",), ("late",)]
        self.end(wire)


class OrderTests(DecoratorCase):
    def test_outer_decorators_run_first(self) -> None:
        asked: list[Any] = []
        inner = SessionProvider(Recorder(), asked.append)
        self.serve(OriginCheck(inner, ["https://a.example"]), admission={"allowed_origins": ["https://b.example"]})
        wire = self.open(Origin="https://b.example")
        assert wire.closed_with()[0] == 4903
        assert asked == []
        self.end(wire)


class RouterTests(DecoratorCase):
    def setUp(self) -> None:
        super().setUp()
        self.chat, self.feed = Recorder(), Recorder()
        self.component = Recorder()
        self.ws = WsServer(self.chat, reactor=self.reactor)
        feed = WsServer(self.feed, reactor=self.reactor, timer_wheel=self.ws.timer_wheel, stats=self.ws.stats)
        router = Router({"/chat": self.ws, "/feed": feed})
        self.admission = Admission()
        self.http = HttpServer(router, paths=router.paths, admission=self.admission, reactor=self.reactor)  # type: ignore[arg-type]

    def test_the_path_chooses_the_component(self) -> None:
        for path, text in (("/chat", "to the chat"), ("/feed?since=5", "to the feed")):
            wire = self.wire()
            wire.send(head(path) + frame(text))
            assert wire.response()[0] == 101
            self.end(wire)
        assert self.chat.events == [("open", 1), ("message", 1, "to the chat"), ("close", 1)]
        assert self.feed.events == [("open", 1), ("message", 1, "to the feed"), ("close", 1)]

    def test_another_path_is_404(self) -> None:
        for path in ("/", "/ws", "/chat/", "/chatty"):
            wire = self.wire()
            wire.send(head(path))
            status, _, body = wire.response()
            assert (status, b"/chat or /feed" in body) == (404, True)
            self.end(wire)

    def test_invalid_handshake_is_rejected(self) -> None:
        wire = self.wire()
        wire.send(head("/feed", Sec_WebSocket_Version="8"))
        assert wire.response()[0] == 426
        self.end(wire)

    def test_close_all_closes_the_connections_of_all_routes(self) -> None:
        wires = []
        for path in ("/chat", "/feed"):
            wires.append(self.wire())
            wires[-1].send(head(path))
            wires[-1].received = wires[-1].response()[2]
        assert self.http is not None
        gone = self.http.app.close_all()
        for wire in wires:
            assert wire.closed_with()[0] == 4012
        self.assertNoResult(gone)
        for wire in wires:
            self.end(wire)
        self.successResultOf(gone)

    def test_routes_are_checked(self) -> None:
        with pytest.raises(ValueError, match="at least one route"):
            Router({})
        with pytest.raises(ValueError, match="slash"):
            Router({"chat": self.ws})


class AppTests(DecoratorCase):
    def test_routes_are_checked(self) -> None:
        app = App(reactor=self.reactor).route("/echo", EchoServer())
        with pytest.raises(ValueError, match="already"):
            app.route("/echo", EchoServer())
        with pytest.raises(ValueError, match="slash"):
            app.route("echo", EchoServer())
        with pytest.raises(ValueError, match="at least one route"):
            App(reactor=self.reactor).server()
        with pytest.raises(ConfigError):
            App(reactor=self.reactor).route("/echo", EchoServer(), allowed=["*"]).server()


@pytest_twisted.ensureDeferred
async def test_an_app_serves_its_components_on_a_port() -> None:
    from tests.e2e.wire import Browser

    class Shout(EchoServer):
        def on_message(self, connection: Any, text: str) -> None:
            connection.send(text.upper())

    server = App(port=0).route("/echo", EchoServer()).route("/shout", Shout(), allowed=["https://a.example"]).server()
    await server.listen()
    port = server.ports[0].getHost().port

    def talk() -> list[Any]:
        heard = []
        for path in ("echo", "shout"):
            with Browser(f"ws://127.0.0.1:{port}/{path}", origin="https://a.example") as browser:
                browser.send_text("hello")
                heard.append(browser.socket.recv(timeout=20))
        return heard

    try:
        assert await deferToThread(talk) == ["hello", "HELLO"]
    finally:
        await server.stopService()
