"""Origins, real addresses behind proxies, and how many may be open."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chatws.errors import ConfigError
from chatws.runtime.file_budget import FileBudget
from chatws.server.admission import Admission
from chatws.server.component import HttpRequest
from chatws.server.handshake import HttpRejection
from chatws.server.origins import parse_origin
from tests.server_wire import ServerCase, frame, head, plain


def request(**headers: str) -> HttpRequest:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("GET", "/ws", "", {"host": "chat.example:8080", **fields})


def peer(host: str) -> IPv4Address | IPv6Address:
    return IPv6Address("TCP", host, 5000) if ":" in host else IPv4Address("TCP", host, 5000)


class OriginTests(SynchronousTestCase):
    def test_an_origin_is_parsed_into_scheme_host_and_port(self) -> None:
        assert parse_origin("https://Shop.Example") == ("https", "shop.example", 443)
        assert parse_origin("HTTP://shop.example:8080") == ("http", "shop.example", 8080)
        assert parse_origin("http://[::1]:80") == ("http", "[::1]", 80)
        for junk in ("", "shop.example", "http://", "http://a/b", "http://a b", "http://a:99999", "http://u@a",
                     "http://a, http://b", "http://a\n", "http://a:", "//a"):  # fmt: skip
            assert parse_origin(junk) is None, junk

    def test_the_pages_own_host_may_enter_on_any_port(self) -> None:
        admission = Admission()
        for origin in ("http://chat.example", "https://chat.example", "http://CHAT.example:3000"):
            assert admission.allows_request(request(origin=origin)), origin

    def test_other_origins_are_rejected(self) -> None:
        admission = Admission()
        for origin in (
            "http://evil.example",
            "http://chat.example.evil.example",
            "http://sub.chat.example",
            "http://chat.examplé",
            "null",
            "",
            "file://",
            "chrome-extension://chat.example",
            "http://chat.example, http://evil.example",
            "http://chat.example@evil.example",
        ):
            assert not admission.allows_request(request(origin=origin)), origin

    def test_without_an_origin_connections_are_accepted(self) -> None:
        assert Admission().allows_request(request())

    def test_a_listed_origin_may_enter_exactly(self) -> None:
        admission = Admission(allowed_origins=["https://Shop.example", "http://dev.example:3000", "app://local"])
        for origin in ("https://shop.example", "https://shop.example:443", "http://dev.example:3000", "app://local"):
            assert admission.allows_request(request(origin=origin)), origin
        for origin in ("http://shop.example", "https://shop.example:8443", "http://dev.example", "null"):
            assert not admission.allows_request(request(origin=origin)), origin

    def test_an_origin_is_allowed_however_it_is_written(self) -> None:
        for written, sent in (
            ("https://café.example", "https://xn--caf-dma.example"),
            ("https://CAFÉ.example:443/", "https://xn--caf-dma.example"),
            ("https://straße.example", "https://xn--strae-oqa.example"),
            ("http://[0:0::1]:80", "http://[::1]"),
            ("null", "null"),
            ("file://", "file://"),
        ):
            admission = Admission(allowed_origins=[written])
            assert admission.allows_request(request(origin=sent)), written
            for other in ("https://shop.example", "null", "file://"):
                assert admission.allows_request(request(origin=other)) == (other == sent), (written, other)

    def test_an_origin_without_a_host_is_not_the_pages_own(self) -> None:
        for host in ("", "null", "file"):
            for origin in ("null", "file://"):
                assert not Admission().allows_request(request(host=host, origin=origin)), (host, origin)

    def test_a_missing_host_matches_no_origin(self) -> None:
        for host in ("", "[", "x/y"):
            assert not Admission().allows_request(request(host=host, origin="http://x")), host

    def test_an_ipv6_host_matches_itself(self) -> None:
        assert Admission().allows_request(request(host="[::1]:8080", origin="http://[::1]:3000"))

    def test_settings_that_cannot_be_parsed_are_the_operators(self) -> None:
        for origin in ("*", "shop.example", "https://shop.example/chat"):
            with pytest.raises(ConfigError):
                Admission(allowed_origins=[origin])
        for network in ("localhost", "10.0.0.1/8", "300.1.1.1"):
            with pytest.raises(ConfigError):
                Admission(trusted_proxies=[network])


class AddressTests(SynchronousTestCase):
    def address(self, of: str, admission: Admission | None = None, **headers: str) -> str:
        return (admission or Admission()).remote_address(peer(of), request(**headers))

    def test_forwarded_headers_of_untrusted_peers_are_ignored(self) -> None:
        for _ in range(2):
            assert self.address("192.0.2.7", x_forwarded_for="1.2.3.4", x_real_ip="1.2.3.4") == "192.0.2.7"

    def test_a_trusted_proxy_names_the_client(self) -> None:
        assert self.address("127.0.0.1", x_forwarded_for="203.0.113.9") == "203.0.113.9"
        assert self.address("::1", x_real_ip="203.0.113.9") == "203.0.113.9"
        assert self.address("127.0.0.1", x_forwarded_for="2001:DB8::1") == "2001:db8::1"

    def test_forwarded_addresses_before_the_proxy_s_are_ignored(self) -> None:
        assert self.address("127.0.0.1", x_forwarded_for="1.1.1.1, 203.0.113.9") == "203.0.113.9"
        assert self.address("127.0.0.1", x_forwarded_for="203.0.113.9", x_real_ip="1.1.1.1") == "203.0.113.9"

    def test_trusted_proxies_are_passed_hop_by_hop(self) -> None:
        admission = Admission(trusted_proxies=["127.0.0.1", "10.0.0.0/8"])
        for forwarded, address in (
            ("1.1.1.1, 203.0.113.9, 10.0.0.5, 10.1.1.1", "203.0.113.9"),
            ("10.0.0.5, 10.1.1.1", "10.0.0.5"),
            ("10.0.0.5, 198.51.100.1, 10.1.1.1", "198.51.100.1"),
        ):
            assert self.address("127.0.0.1", admission, x_forwarded_for=forwarded) == address

    def test_junk_is_not_believed(self) -> None:
        for junk in ("", "unknown", "1.2.3", "1.2.3.4.5", "<script>", "203.0.113.9, junk", "a" * 4000, ",,,"):
            assert self.address("127.0.0.1", x_forwarded_for=junk) == "127.0.0.1", junk
        assert self.address("127.0.0.1", x_real_ip="junk") == "127.0.0.1"

    def test_a_list_of_a_thousand_hops_is_not_followed_to_its_end(self) -> None:
        forwarded = "203.0.113.9" + ", 127.0.0.2" * 700
        assert self.address("127.0.0.1", x_forwarded_for=forwarded) == "127.0.0.2"

    def test_ports_and_brackets_are_left_off(self) -> None:
        for written in (
            "203.0.113.9:443",
            " 203.0.113.9 ",
            '"203.0.113.9"',
            "::ffff:203.0.113.9",
            "[::ffff:203.0.113.9]:1",
        ):
            assert self.address("127.0.0.1", x_forwarded_for=written) == "203.0.113.9", written
        assert self.address("127.0.0.1", x_forwarded_for="[2001:db8::1]:443") == "2001:db8::1"

    def test_ipv4_in_ipv6_is_ipv4(self) -> None:
        assert self.address("::ffff:127.0.0.1", x_forwarded_for="203.0.113.9") == "203.0.113.9"
        assert self.address("::ffff:192.0.2.7", x_forwarded_for="203.0.113.9") == "192.0.2.7"

    def test_a_unix_socket_is_trusted(self) -> None:
        admission = Admission(trusted_proxies=[])
        assert admission.remote_address(UNIXAddress(None), request(x_real_ip="203.0.113.9")) == "203.0.113.9"
        assert admission.remote_address(UNIXAddress(None), request()) == ""

    def test_without_trusted_proxies_headers_are_ignored(self) -> None:
        assert self.address("127.0.0.1", Admission(trusted_proxies=[]), x_real_ip="1.1.1.1") == "127.0.0.1"

    def test_many_peers_do_not_grow_memory(self) -> None:
        admission = Admission()
        for number in range(20_000):
            admission.remote_address(peer(f"10.0.{number >> 8}.{number & 255}"), request())
        assert len(admission._peers) < 10000


class CountingTests(SynchronousTestCase):
    def test_a_closed_connection_frees_its_place(self) -> None:
        admission = Admission(max_connections=3, max_connections_per_ip=2)
        first = peer("192.0.2.1")
        assert [admission.admit(first, request()) for _ in range(2)] == ["192.0.2.1"] * 2
        refusal = admission.admit(first, request())
        assert isinstance(refusal, HttpRejection)
        assert (refusal.status, refusal.reason) == (429, "address")
        assert admission.admit(peer("192.0.2.2"), request()) == "192.0.2.2"
        refusal = admission.admit(peer("192.0.2.3"), request())
        assert isinstance(refusal, HttpRejection)
        assert (refusal.status, dict(refusal.headers)) == (503, {"Retry-After": "10"})
        admission.release("192.0.2.1")
        assert admission.admit(first, request()) == "192.0.2.1"
        for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            admission.release(address)
        assert admission.open_now == 0
        for address in ("192.0.2.1", "192.0.2.2"):  # nothing is left that counts against them
            assert [admission.admit(peer(address), request()) for _ in range(2)] == [address] * 2
            for _ in range(2):
                admission.release(address)

    def test_a_unix_socket_without_an_address_is_not_limited_by_it(self) -> None:
        admission = Admission(max_connections_per_ip=1)
        assert [admission.admit(UNIXAddress(None), request()) for _ in range(3)] == [""] * 3

    def test_the_limit_of_open_files_is_the_limit_where_none_is_set(self) -> None:
        admission = Admission(budget=FileBudget(limit=lambda: 8))
        results = [admission.admit(peer("192.0.2.1"), request()) for _ in range(7)]
        assert sum(isinstance(result, HttpRejection) for result in results) == 3

    def test_reconfigured_settings_apply_to_new_connections(self) -> None:
        admission = Admission(max_connections=1)
        admission.admit(peer("192.0.2.1"), request())
        admission.reconfigure(
            allowed_origins=["http://new.example"], trusted_proxies=["192.0.2.0/24"], max_connections=2,
            max_connections_per_ip=0,
        )  # fmt: skip
        again = admission.admit(peer("192.0.2.1"), request(origin="http://new.example", x_real_ip="203.0.113.9"))
        assert again == "203.0.113.9"
        with pytest.raises(ConfigError):
            admission.reconfigure(
                allowed_origins=["*"], trusted_proxies=[], max_connections=0, max_connections_per_ip=0
            )
        assert admission.max_connections == 2


class DoorTests(ServerCase):
    def status(self, peer: str = "192.0.2.7", **fields: str) -> int:
        wire = self.wire(peer)
        wire.send(head(**fields))
        return wire.response()[0]

    def test_a_foreign_page_gets_403_before_the_upgrade(self) -> None:
        assert self.status(Origin="http://evil.example") == 403
        assert self.status(Origin="null") == 403
        assert self.status(Origin="https://chat.example") == 101
        assert self.ws.stats.rejected == {"origin": 2}
        assert len(self.component.connections) == 1

    def test_rejections_that_depend_on_settings_are_one_log_line_a_minute(self) -> None:
        rejection = "pages of this origin may not connect; see allowed_origins"
        with capturedLogs() as logged:
            for _ in range(3):
                assert self.status("127.0.0.1", Origin="http://evil.example/\xe9", X_Real_IP="203.0.113.9") == 403
            self.reactor.advance(61)
            self.status(Origin="http://evil.example")
            self.status("192.0.2.7", Sec_WebSocket_Key="x")
        assert [formatEvent(event) for event in logged] == [
            f"rejected a request from 203.0.113.9, origin 'http://evil.example/\\xe9': {rejection} (1 so far)",
            f"rejected a request from 192.0.2.7, origin 'http://evil.example': {rejection} (4 so far)",
        ]

    def test_a_spoofed_address_does_not_get_round_the_limit(self) -> None:
        self.serve(admission={"max_connections_per_ip": 1})
        assert self.status(X_Forwarded_For="203.0.113.1") == 101
        assert self.status(X_Forwarded_For="203.0.113.2") == 429
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.3") == 101
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.3") == 429
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.4") == 101
        addresses = [connection.remote_address for connection in self.component.connections]
        assert addresses == ["192.0.2.7", "203.0.113.3", "203.0.113.4"]

    def test_silent_connections_of_an_address_are_limited_from_accept_on(self) -> None:
        self.serve(admission={"max_connections_per_ip": 2})
        wires = [self.wire("192.0.2.7") for _ in range(50)]
        assert len(self.http.http_connections) == 10
        for wire in wires:
            wire.read()
        assert [wire.at_eof for wire in wires] == [False] * 10 + [True] * 40
        assert self.ws.stats.rejected == {"address": 40}
        assert self.status("192.0.2.8") == 101, "another address is not affected"
        for wire in wires[:10]:
            wire.close()
        assert self.status("192.0.2.7") == 101

    def test_websockets_of_an_address_leave_room_for_its_page(self) -> None:
        self.serve(admission={"max_connections_per_ip": 2})
        assert [self.status() for _ in range(3)] == [101, 101, 429]
        wire = self.wire()
        wire.send(plain("/healthz"))
        assert wire.response()[0] == 200
        for _ in range(20):
            wire = self.wire()
            wire.send(plain("/healthz"))
            assert wire.response()[0] == 200, "closed connections do not count"
            wire.read()

    def test_connections_of_a_trusted_proxy_count_for_the_client_from_the_head_on(self) -> None:
        self.serve(admission={"max_connections_per_ip": 1})
        for _ in range(50):
            self.wire("127.0.0.1")
        assert len(self.http.http_connections) == 50, "the proxy itself is not limited"

        def slow_body(address: str) -> Any:
            wire = self.wire("127.0.0.1")
            wire.send(plain("/", "POST", X_Forwarded_For=address, Content_Length="1000"))
            wire.read()
            return wire

        assert [slow_body("203.0.113.1").at_eof for _ in range(12)] == [False] * 9 + [True] * 3
        assert not slow_body("203.0.113.2").at_eof

    def test_every_way_of_closing_decrements_the_counters(self) -> None:
        self.serve(admission={"max_connections": 1})

        def peer_closes(wire, connection):
            wire.send(frame(b"\x03\xe8", opcode=8))

        def we_close(wire, connection):
            connection.close()
            wire.send(frame(b"\x03\xe8", opcode=8))

        def peer_goes(wire, connection):
            wire.close()

        def we_abort(wire, connection):
            connection.abort()
            self.reactor.turn()

        def peer_breaks_the_protocol(wire, connection):
            wire.send(frame("x", mask=None) + frame(b"\x03\xe8", opcode=8))

        def nothing_comes(wire, connection):
            self.reactor.advance(40)
            self.reactor.advance(40)
            self.reactor.turn()

        for go in (peer_closes, we_close, peer_goes, we_abort, peer_breaks_the_protocol, nothing_comes):
            wire, connection = self.connect()
            assert self.status() == 503
            go(wire, connection)
            assert self.admission.open_now == 0, go
