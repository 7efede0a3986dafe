"""Origins, real addresses behind proxies, and how many may be open."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from chatws.errors import OperatorError
from chatws.server import http_server
from chatws.server.admission import Admission, parse_origin
from chatws.server.component import HttpRequest
from chatws.server.handshake import Refusal
from tests.server_wire import ServerCase, frame, head


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
        for junk in ("null", "", "shop.example", "http://", "http://a/b", "http://a b", "http://a:99999", "http://u@a",
                     "http://a, http://b", "http://a\n", "http://a:", "//a"):  # fmt: skip
            assert parse_origin(junk) is None, junk

    def test_the_pages_own_host_may_enter_on_any_port(self) -> None:
        admission = Admission()
        for origin in ("http://chat.example", "https://chat.example", "http://CHAT.example:3000"):
            assert admission.may_enter(request(origin=origin)), origin

    def test_other_origins_may_not(self) -> None:
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
            assert not admission.may_enter(request(origin=origin)), origin

    def test_without_an_origin_one_may_enter(self) -> None:
        assert Admission().may_enter(request())

    def test_a_listed_origin_may_enter_exactly(self) -> None:
        admission = Admission(allowed_origins=["https://Shop.example", "http://dev.example:3000", "app://local"])
        for origin in ("https://shop.example", "https://shop.example:443", "http://dev.example:3000", "app://local"):
            assert admission.may_enter(request(origin=origin)), origin
        for origin in ("http://shop.example", "https://shop.example:8443", "http://dev.example", "null"):
            assert not admission.may_enter(request(origin=origin)), origin

    def test_a_missing_host_matches_no_origin(self) -> None:
        for host in ("", "[", "x/y"):
            assert not Admission().may_enter(request(host=host, origin="http://x")), host

    def test_an_ipv6_host_matches_itself(self) -> None:
        assert Admission().may_enter(request(host="[::1]:8080", origin="http://[::1]:3000"))

    def test_settings_that_cannot_be_parsed_are_the_operators(self) -> None:
        for origin in ("*", "null", "shop.example", "https://shop.example/"):
            with pytest.raises(OperatorError):
                Admission(allowed_origins=[origin])
        for network in ("localhost", "10.0.0.1/8", "300.1.1.1"):
            with pytest.raises(OperatorError):
                Admission(trusted_proxies=[network])


class AddressTests(SynchronousTestCase):
    def address(self, of: str, admission: Admission | None = None, **headers: str) -> str:
        return (admission or Admission()).remote_address(peer(of), request(**headers))

    def test_a_strangers_headers_do_not_count(self) -> None:
        for _ in range(2):
            assert self.address("192.0.2.7", x_forwarded_for="1.2.3.4", x_real_ip="1.2.3.4") == "192.0.2.7"

    def test_a_trusted_proxy_names_the_client(self) -> None:
        assert self.address("127.0.0.1", x_forwarded_for="203.0.113.9") == "203.0.113.9"
        assert self.address("::1", x_real_ip="203.0.113.9") == "203.0.113.9"
        assert self.address("127.0.0.1", x_forwarded_for="2001:DB8::1") == "2001:db8::1"

    def test_what_the_client_itself_wrote_before_the_proxy_does_not_count(self) -> None:
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

    def test_nobody_is_trusted_where_none_is_named(self) -> None:
        assert self.address("127.0.0.1", Admission(trusted_proxies=[]), x_real_ip="1.1.1.1") == "127.0.0.1"

    def test_many_peers_do_not_grow_memory(self) -> None:
        admission = Admission()
        for number in range(20_000):
            admission.remote_address(peer(f"10.0.{number >> 8}.{number & 255}"), request())
        assert len(admission._known) < 10000


class CountingTests(SynchronousTestCase):
    def test_who_leaves_makes_room(self) -> None:
        admission = Admission(max_connections=3, max_connections_per_ip=2)
        first = peer("192.0.2.1")
        assert [admission.admit(first, request()) for _ in range(2)] == ["192.0.2.1"] * 2
        refusal = admission.admit(first, request())
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.reason) == (429, "address")
        assert admission.admit(peer("192.0.2.2"), request()) == "192.0.2.2"
        refusal = admission.admit(peer("192.0.2.3"), request())
        assert isinstance(refusal, Refusal)
        assert (refusal.status, dict(refusal.headers)) == (503, {"Retry-After": "10"})
        admission.release("192.0.2.1")
        assert admission.admit(first, request()) == "192.0.2.1"
        for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            admission.release(address)
        assert (admission.open_now, admission._open_by_address) == (0, {})

    def test_a_unix_socket_without_an_address_is_not_limited_by_it(self) -> None:
        admission = Admission(max_connections_per_ip=1)
        assert [admission.admit(UNIXAddress(None), request()) for _ in range(3)] == [""] * 3

    def test_the_limit_of_open_files_is_the_limit_where_none_is_set(self) -> None:
        self.patch(__import__("chatws.server.admission", fromlist=["resource"]).resource, "getrlimit", lambda _: (8, 8))
        admission = Admission()
        found = [admission.admit(peer("192.0.2.1"), request()) for _ in range(7)]
        assert sum(isinstance(one, Refusal) for one in found) == 1

    def test_other_settings_hold_from_then_on(self) -> None:
        admission = Admission(max_connections=1)
        admission.admit(peer("192.0.2.1"), request())
        admission.reconfigure(
            allowed_origins=["http://new.example"], trusted_proxies=["192.0.2.0/24"], max_connections=2,
            max_connections_per_ip=0,
        )  # fmt: skip
        again = admission.admit(peer("192.0.2.1"), request(origin="http://new.example", x_real_ip="203.0.113.9"))
        assert again == "203.0.113.9"
        with pytest.raises(OperatorError):
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
        assert self.ws.stats.refused == {"origin": 2}
        assert len(self.component.connections) == 1

    def test_the_operator_is_told_whom_the_settings_keep_out_once_a_minute(self) -> None:
        said: list[str] = []
        self.patch(http_server.log, "warn", lambda text, **fields: said.append(text.format(**fields)))
        for _ in range(3):
            assert self.status("127.0.0.1", Origin="http://evil.example/\xe9", X_Real_IP="203.0.113.9") == 403
        words = "pages of this origin may not connect; see allowed_origin"
        first = f"refused 203.0.113.9, page of 'http://evil.example/\\xe9': {words} (1 so far)"
        assert said == [first]
        self.reactor.advance(61)
        self.status(Origin="http://evil.example")
        assert said[1:] == [f"refused 192.0.2.7, page of 'http://evil.example': {words} (4 so far)"]
        self.status("192.0.2.7", Sec_WebSocket_Key="x")
        assert len(said) == 2

    def test_a_spoofed_address_does_not_get_round_the_limit(self) -> None:
        self.serve(admission={"max_connections_per_ip": 1})
        assert self.status(X_Forwarded_For="203.0.113.1") == 101
        assert self.status(X_Forwarded_For="203.0.113.2") == 429
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.3") == 101
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.3") == 429
        assert self.status("127.0.0.1", X_Forwarded_For="203.0.113.4") == 101
        addresses = [one.remote_address for one in self.component.connections]
        assert addresses == ["192.0.2.7", "203.0.113.3", "203.0.113.4"]

    def test_every_way_to_go_is_counted_out(self) -> None:
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
