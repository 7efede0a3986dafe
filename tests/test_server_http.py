"""The request head, what is refused before the 101, and the ordinary HTTP beside the WebSockets."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from chatws.server import http_resources
from chatws.server.http_server import HttpServer
from chatws.server.request import BadRequest, Headers, parse_request_head
from tests.server_wire import KEY, ServerCase, frame, head, plain


class HeadTests(SynchronousTestCase):
    def rejected(self, raw: bytes) -> int:
        with pytest.raises(BadRequest) as caught:
            parse_request_head(raw)
        return caught.value.status

    def test_names_are_lower_case_and_values_trimmed(self) -> None:
        request = parse_request_head(
            b"GET /a%20b?c=d?e HTTP/1.1\r\nHOST: x\r\nX-Thing: \t two words \t\r\nEmpty:\r\n\r\n"
        )
        assert (request.method, request.path, request.query) == ("GET", "/a%20b", "c=d?e")
        assert dict(request.headers) == {"host": "x", "x-thing": "two words", "empty": ""}

    def test_repeated_headers_are_joined(self) -> None:
        request = parse_request_head(b"GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nCookie: a=1\r\na: 2\r\nCookie: b=2\r\n\r\n")
        assert request.headers["a"] == "1, 2"
        assert request.cookies == {"a": "1", "b": "2"}

    def test_headers_can_be_read_again_after_being_released(self) -> None:
        headers = Headers(b"A: 1\r\nB: 2")
        assert len(headers) == 2
        headers.discard_parsed()
        assert (headers["a"], headers.get("c"), "b" in headers) == ("1", None, True)
        with pytest.raises(KeyError):
            headers["c"]

    def test_headers_do_not_show_their_values(self) -> None:
        assert "secret" not in repr(Headers(b"Cookie: secret"))

    def test_an_absolute_target_is_reduced_to_its_path(self) -> None:
        assert parse_request_head(b"GET http://x.example/ws?a HTTP/1.1\r\nHost: x\r\n\r\n").path == "/ws"
        assert parse_request_head(b"GET http://x.example HTTP/1.1\r\nHost: x\r\n\r\n").path == "/"

    def test_malformed_request_heads_are_rejected(self) -> None:
        for raw in (
            b"\x16\x03\x01\x02\x00\r\n\r\n",
            b"GET / HTTP/1.1 extra\r\nHost: x\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / http/1.1\r\nHost: x\r\n\r\n",
            b"GET\r\nHost: x\r\n\r\n",
            b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET x HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /#a HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            assert self.rejected(raw) == 400, raw

    def test_another_version_is_refused(self) -> None:
        assert self.rejected(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n") == 505

    def test_malformed_header_lines_are_refused(self) -> None:
        for line in (
            b"A: 1\r\n folded",
            b"A : 1",
            b": 1",
            b"A",
            b"A: \x00",
            b"A: a\rb",
            b"A: a\nB: b",
            b"A: \x7f",
            b"A: \x1b[31m",
            b"(A): 1",
        ):
            assert self.rejected(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n") == 400, line

    def test_the_host_must_be_there_once_and_well_formed(self) -> None:
        assert self.rejected(b"GET / HTTP/1.1\r\nA: x\r\n\r\n") == 400
        assert self.rejected(b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n") == 400
        assert self.rejected(b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n") == 400
        assert self.rejected(b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n") == 400
        for host in (b"x", b"x:8080", b"[::1]:8080", b"[::1]", b"10.0.0.1:1", b"a-b.example"):
            parse_request_head(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
        parse_request_head(b"GET / HTTP/1.0\r\n\r\n")

    @given(st.binary(max_size=300))
    def test_no_bytes_make_it_raise_anything_else(self, raw: bytes) -> None:
        with contextlib.suppress(BadRequest):
            parse_request_head(raw + b"\r\n\r\n")


class RefusalTests(ServerCase):
    def rejected(self, data: bytes, status: int) -> dict[str, str]:
        wire = self.wire()
        wire.send(data)
        result, headers, body = wire.response()
        assert result == status, body
        assert headers["connection"] == "close"
        if not data.startswith(b"HEAD"):
            assert len(body) == int(headers["content-length"])
            assert body.endswith(b"\n")
        wire.read()
        assert wire.at_eof
        assert self.component.events == []
        return headers

    def test_an_upgrade_elsewhere_is_not_found(self) -> None:
        for path in ("/other", "/ws/", "/WS", "//", "/ws%2F", "*"):
            self.rejected(head(path), 404)

    def test_another_method_is_not_allowed(self) -> None:
        assert self.rejected(head(method="POST"), 405)["allow"] == "GET"
        assert self.rejected(head(method="HEAD"), 405)["allow"] == "GET"

    def test_an_unsupported_websocket_version_gets_426(self) -> None:
        for version in ("8", "14", "13, 13", "x", None):
            headers = self.rejected(head(Sec_WebSocket_Version=version), 426)
            assert headers["sec-websocket-version"] == "13"

    def test_a_bad_key_is_refused(self) -> None:
        for key in (None, "", "short", "x" * 24, KEY + "=", KEY[:-1] + " ", "dGhlIHNhbXBsZSBub25jZR=="):
            self.rejected(head(Sec_WebSocket_Key=key), 400)

    def test_two_keys_are_refused(self) -> None:
        data = head().replace(
            b"Sec-WebSocket-Version", b"Sec-WebSocket-Key: " + KEY.encode() + b"\r\nSec-WebSocket-Version"
        )
        self.rejected(data, 400)

    def test_an_upgrade_with_a_body_is_refused(self) -> None:
        self.rejected(head(Content_Length="5") + b"hello", 400)
        self.rejected(head(Transfer_Encoding="chunked") + b"0\r\n\r\n", 400)

    def test_upgrade_counts_only_with_connection_and_in_http_1_1(self) -> None:
        self.rejected(head(Connection="keep-alive"), 426)
        self.rejected(head(version="HTTP/1.0"), 426)

    def test_lists_in_upgrade_and_connection_are_understood(self) -> None:
        wire = self.wire()
        wire.send(head(Connection="keep-alive, Upgrade", Upgrade="h2c, WebSocket"))
        assert wire.response()[0] == 101

    def test_garbage_is_refused_before_the_timeout(self) -> None:
        for data in (
            b"\x16\x03\x01\x02\x00\x01",
            b'{"event":"x"}\n',
            b"GET /ws\n",
            b"GET /ws HTTP/1.1\nHost",
            b"GET /ws HTTP/1.1\r\nA: \x00",
            b"\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2p1\r\n",
        ):
            self.rejected(data, 400)

    def test_a_head_too_long_is_refused_whether_or_not_it_ends(self) -> None:
        self.rejected(head(X_Long="x" * 32768), 431)
        self.rejected(head(X_Long="x" * 33000)[:32768], 431)
        wire = self.wire()
        data = head(X_Long="")
        wire.send(head(X_Long="x" * (32768 - len(data))))
        assert wire.response()[0] == 101
        assert self.ws.stats.rejected == {"head_size": 2}

    def test_a_request_line_too_long_is_refused_whether_or_not_it_ends(self) -> None:
        request = head("/ws?" + "x" * 9000)
        self.rejected(request, 414)
        self.rejected(request[:8500], 414)
        wire = self.wire()
        wire.send(head("/ws?" + "x" * (8192 - len("GET /ws? HTTP/1.1"))))
        assert wire.response()[0] == 101

    def test_heads_too_long_are_one_log_line_a_minute(self) -> None:
        with capturedLogs() as logged:
            for _ in range(100):
                self.rejected(head(Cookie="x" * 32768), 431)
            self.rejected(head("/ws?" + "x" * 9000), 414)
        assert [formatEvent(event) for event in logged] == [
            "rejected a request from 192.0.2.7: a request head has at most 32768 bytes; see max_head_size (1 so far)"
        ]

    def test_a_request_head_in_any_two_pieces_is_parsed(self) -> None:
        request = b"\r\n" + head(Cookie="x" * 100)
        for cut in range(1, len(request)):
            wire = self.wire()
            wire.send(request[:cut])
            assert not wire.read(), cut
            wire.send(request[cut:])
            assert wire.response()[0] == 101, cut
            wire.close()

    def test_an_ordinary_request_with_many_cookies_is_answered(self) -> None:
        scripts = ((path.decode(), 200) for path in (http_resources.CLIENT_PATH, http_resources.ECHO_PATH))
        for path, status in (("/healthz", 200), *scripts, ("/nowhere", 404)):
            wire = self.wire()
            wire.send(plain(path, Cookie="x" * 30_000))
            assert wire.response()[0] == status, path

    def test_a_slow_head_times_out(self) -> None:
        wire = self.wire()
        for byte in head()[:9]:
            wire.send(bytes([byte]))
            self.reactor.advance(1)
        assert not wire.read()
        self.reactor.advance(1.5)
        assert wire.response()[0] == 408
        assert wire.at_eof

    def test_a_silent_connection_is_closed_without_a_response(self) -> None:
        wire = self.wire()
        self.reactor.advance(10.5)
        assert wire.read() == b""
        assert wire.at_eof

    def test_an_open_websocket_is_not_timed_out(self) -> None:
        _, connection = self.connect()
        self.reactor.advance(15)
        assert connection.is_open

    def test_a_client_that_does_not_read_a_rejection_is_dropped(self) -> None:
        self.serve()
        transport = StringTransport()
        protocol = self.http.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(b"garbage\n")
        protocol.dataReceived(b"more garbage\n")
        assert transport.disconnecting
        assert not transport.disconnected
        self.reactor.advance(5.5)
        assert transport.disconnected
        protocol.connectionLost()

    def test_connection_lost_within_the_head_releases_its_memory(self) -> None:
        wire = self.wire()
        wire.send(b"GET /ws HT")
        wire.close()

    def test_refusals_are_counted_by_reason(self) -> None:
        self.rejected(head("/nowhere"), 404)
        self.rejected(head("/nowhere"), 404)
        self.rejected(b"x\n", 400)
        assert self.ws.stats.rejected == {"path": 2, "head": 1}

    def test_an_empty_line_before_the_request_is_let_pass(self) -> None:
        wire = self.wire()
        wire.send(b"\r\n" + head())
        assert wire.response()[0] == 101


class PlainTests(ServerCase):
    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        wire = self.wire()
        wire.send(data)
        answer = wire.response()
        wire.read()
        assert wire.at_eof, "every answer ends its connection"
        assert answer[1]["connection"] == "close"
        return answer

    def test_healthz_is_ok(self) -> None:
        status, headers, body = self.ask(plain("/healthz"))
        assert (status, body) == (200, b"ok\n")
        assert headers["content-type"] == "text/plain; charset=utf-8"
        status, headers, body = self.ask(plain("/healthz", "HEAD"))
        assert (status, headers["content-length"], body) == (200, "3", b"")

    def test_a_websocket_path_without_upgrade_gets_426(self) -> None:
        for path in ("/", "/ws", "/ws?x=1"):
            status, headers, body = self.ask(plain(path))
            assert (status, headers["upgrade"]) == (426, "websocket")
            assert b"WebSocket endpoint" in body
            assert b"proxy_set_header Upgrade" in body

    def test_a_page_may_ask_whether_its_origin_is_allowed(self) -> None:
        self.serve(admission={"allowed_origins": ["https://good.example"]})
        for origin, allowed in (
            ("https://good.example", True),
            ("http://good.example", False),
            ("https://good.example:8443", False),
            ("http://server.test:81", True),  # the host of the request
            ("https://evil.example", False),
            ("null", False),
            ("", False),
            ("\udcff", False),
        ):
            query = quote(origin, errors="surrogateescape")
            for path in ("/", "/ws"):
                status, headers, body = self.ask(plain(f"{path}?origin={query}", Host="server.test"))
                assert (status, json.loads(body)) == (200, {"allowed": allowed}), origin
                assert headers["access-control-allow-origin"] == "*"
                assert headers["cache-control"] == "no-store"

    def test_other_paths_are_not_found(self) -> None:
        for path in ("/nothing", "/healthz/x", "/assets", "/assets/js/", "/..%2f"):
            status, _, body = self.ask(plain(path))
            assert status == 404, path
            assert body

    def test_other_methods_are_not_allowed(self) -> None:
        for path in ("/", "/ws", "/healthz", "/assets/js/websocket-client.js"):
            status, headers, _ = self.ask(plain(path, "POST", b"{}"))
            assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS"), path

    def test_options_is_answered_without_a_body(self) -> None:
        for path in ("/", "/ws", "/healthz", "/assets/js/websocket-client.js"):
            status, headers, body = self.ask(plain(path, "OPTIONS"))
            assert (status, headers["allow"], body) == (204, "GET, HEAD, OPTIONS", b""), path
        assert self.ask(plain("/nothing", "OPTIONS"))[0] == 404

    def test_the_client_library_is_served_for_caches(self) -> None:
        file = Path(self.mktemp())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("export default 1\n")
        self.patch(http_resources, "_CLIENT_FILE", file)
        path = "/assets/js/websocket-client.js"
        status, headers, body = self.ask(plain(path))
        assert (status, body) == (200, b"export default 1\n")
        assert headers["content-type"] == "text/javascript; charset=utf-8"
        assert "max-age" in headers["cache-control"]
        for condition in ({"If_None_Match": headers["etag"]}, {"If_Modified_Since": headers["last-modified"]}):
            status, again, body = self.ask(plain(path, **condition))
            assert (status, body, again["etag"]) == (304, b"", headers["etag"])
        assert self.ask(plain(path, If_None_Match='"other"'))[0] == 200
        assert self.ask(plain(path + "?v=2"))[0] == 200
        file.unlink()
        assert self.ask(plain(path))[0] == 404

    def test_a_body_must_state_its_length_and_be_short(self) -> None:
        assert self.ask(plain("/", "POST", Content_Length="1048577"))[0] == 413
        assert self.ask(plain("/", "POST", Content_Length="9" * 40))[0] == 413
        assert self.ask(plain("/", "POST", Content_Length="-1"))[0] == 400
        assert self.ask(plain("/", "POST", Content_Length="1, 1"))[0] == 400
        assert self.ask(plain("/", "POST", Transfer_Encoding="chunked"))[0] == 411

    def test_a_slow_body_times_out(self) -> None:
        self.serve(http={"resource": Page(b"all")})
        wire = self.wire()
        wire.send(plain("/", "POST", Content_Length="100"))
        for _ in range(9):
            wire.send(b"x")
            self.reactor.advance(1)
        assert not wire.at_eof
        self.reactor.advance(1.5)
        self.reactor.turn()
        assert wire.read() == b""
        assert self.http.http_connections == set()
        late = self.wire()
        late.send(plain("/", "POST", Content_Length="2"))
        self.reactor.advance(9)
        late.send(b"xx")
        assert late.response()[0] == 200

    def test_a_rejection_reaches_a_client_that_is_still_sending(self) -> None:
        wire = self.wire()
        wire.send(plain("/", "POST", Content_Length="3000000"))
        for _ in range(300):
            wire.send(b"x" * 10_000)
        assert wire.response()[0] == 413
        assert wire.at_eof
        self.reactor.advance(5.5)
        self.reactor.turn()
        assert self.http.http_connections == set()

    def test_a_second_request_on_the_same_connection_is_not_answered(self) -> None:
        wire = self.wire()
        wire.send(plain("/healthz") + head())
        status, _, body = wire.response()
        assert (status, body) == (200, b"ok\n")
        assert wire.at_eof
        assert self.component.events == []

    def test_an_idle_request_times_out(self) -> None:
        wire = self.wire()
        wire.send(plain("/", "POST", Content_Length="10") + b"half")
        with capturedLogs() as logged:
            self.reactor.advance(30.5)
            wire.read()
        assert wire.at_eof
        assert logged == [], "peers may do that as often as they like"

    def test_close_visitors_drops_those_that_are_no_websockets(self) -> None:
        wire = self.wire()
        half = self.wire()
        half.send(b"GET")
        answering = self.wire()
        answering.send(plain("/", "POST", Content_Length="1000"))
        self.http.close_http_connections()
        for client in (wire, half, answering):
            client.read()
            assert client.at_eof


class Page(Resource):
    isLeaf = True

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.text = text

    def render_GET(self, request: Any) -> bytes:
        return self.text

    def render_POST(self, request: Any) -> bytes:
        return json.dumps(
            {"got": len(request.content.read()), "rest": [part.decode() for part in request.postpath]}
        ).encode()


class ResourceTreeTests(ServerCase):
    def ask(self, data: bytes) -> tuple[int, bytes]:
        wire = self.wire()
        wire.send(data)
        status, _, body = wire.response()
        return status, body

    def test_a_given_page_at_the_root_is_shown_and_everything_else_stays(self) -> None:
        tree = Resource()
        tree.putChild(b"", Page(b"the demo"))
        tree.putChild(b"api", Page(b"the api"))
        self.serve(http={"resource": tree})
        assert self.ask(plain("/")) == (200, b"the demo")
        assert self.ask(plain("/api/a/b"))[1] == b"the api"
        assert self.ask(plain("/api/a/b", "POST", b"x" * 70000)) == (200, b'{"got": 70000, "rest": ["a", "b"]}')
        assert self.ask(plain("/ws"))[0] == 426
        assert self.ask(plain("/healthz"))[0] == 200
        assert self.ask(plain("/other"))[0] == 404
        self.connect()

    def test_restricted_tree_answers_only_hosts_that_dns_rebinding_cannot_forge(self) -> None:
        tree = Resource()
        tree.putChild(b"", Page(b"the demo"))
        tree.putChild(b"api", Page(b"the api"))
        self.serve(
            http={"resource": tree, "restricts_hosts": True}, admission={"allowed_origins": ["https://demo.example"]}
        )
        for host in ("127.0.0.1:8080", "localhost", "a.localhost:1", "[::1]:8080", "192.0.2.1", "demo.example"):
            assert self.ask(plain("/", Host=host))[0] == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "demo.example.evil"):
            for path in ("/", "/api", "/other"):
                assert self.ask(plain(path, Host=host))[0] == 421, (host, path)
            assert self.ask(plain("/healthz", Host=host)) == (200, b"ok\n")
        assert self.ask(b"GET / HTTP/1.0\r\n\r\n")[0] == 200

    def test_a_tree_without_a_page_at_the_root_leaves_it_to_the_websocket(self) -> None:
        tree = Resource()
        tree.putChild(b"api", Page(b"the api"))
        self.serve(http={"resource": tree})
        assert self.ask(plain("/"))[0] == 426
        assert self.ask(plain("/api"))[0] == 200

    def test_a_leaf_resource_gets_all_other_paths(self) -> None:
        self.serve(http={"resource": Page(b"all")})
        assert self.ask(plain("/")) == (200, b"all")
        assert self.ask(plain("/a/b", "POST", b"1")) == (200, b'{"got": 1, "rest": ["a", "b"]}')
        assert self.ask(plain("/healthz")) == (200, b"ok\n")


class TransportTests(ServerCase):
    def test_a_wrapped_transport_switches_to_the_websocket_protocol(self) -> None:
        self.serve()
        factory = WrappingFactory(self.http)
        factory.noisy = False
        wrapper = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        assert isinstance(wrapper, ProtocolWrapper)
        transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1))
        wrapper.makeConnection(transport)
        visitor = wrapper.wrappedProtocol
        wrapper.dataReceived(head() + frame("hi"))
        assert wrapper.wrappedProtocol is not visitor
        assert self.component.events == [("open", 1), ("message", 1, "hi")]
        assert self.component.connections[0].remote_address == "192.0.2.1"
        wrapper.connectionLost(None)

    def test_a_transport_that_cannot_switch_protocols_is_served(self) -> None:
        self.serve()
        transport = StringTransport()
        visitor = self.http.buildProtocol(None)
        visitor.makeConnection(transport)
        visitor.dataReceived(head())
        visitor.dataReceived(frame("hi"))
        assert self.component.events == [("open", 1), ("message", 1, "hi")]
        visitor.connectionLost()
        assert self.component.events[-1] == ("close", 1)


class NoNonsenseTests(ServerCase):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.binary(max_size=80), max_size=6))
    def test_arbitrary_bytes_do_not_break_the_server(self, pieces: list[bytes]) -> None:
        if self.http is None:
            self.serve()
        assert isinstance(self.http, HttpServer)
        for start in (b"", head()):
            transport = StringTransport()
            visitor = self.http.buildProtocol(None)
            visitor.makeConnection(transport)
            for piece in [start, *pieces]:
                visitor.dataReceived(piece)
            visitor.connectionLost()
        self.reactor.advance(1000)
        assert self.component.errors == []
