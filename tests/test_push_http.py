"""chatws.net.http_connection over a transport in memory: statuses, order, limits, time-outs and the drain."""

from __future__ import annotations

import gzip
import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.errors import Unavailable
from chatws.net.http_connection import LINGER_TIMEOUT
from chatws.push.factory import DRAIN_INTERVAL, QUIET_CHECKS
from chatws.push.handler import CommandHandler, PushStats
from chatws.push.http_api import BATCH_ITEMS, MAX_ITEMS
from chatws.push.http_factory import HttpFactory
from chatws.runtime.file_budget import FileBudget
from tests.fakes_push import FakeTarget

PUBLISH = b'{"event":"new_message","data":{"conversation_id":1}}'
OK = {"ok": True}
JSON, LINES = b"application/json", b"application/x-ndjson"


class ParsedResponse:
    """A response, parsed from what the server wrote."""

    def __init__(self, text: bytes) -> None:
        head, _, rest = text.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.status = int(status.split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(self.headers.get("content-length", "0"))
        self.body = rest[:length]
        self.rest = rest[length:]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(body: bytes = PUBLISH, *headers: bytes, target: bytes = b"/push", method: bytes = b"POST") -> bytes:
    """A request in HTTP/1.1. It has a Content-Type and a Content-Length unless `headers` has others."""
    lines = [b"Host: x", *headers]
    names = [line.partition(b":")[0].lower() for line in lines]
    if b"content-type" not in names:
        lines.append(b"Content-Type: " + JSON)
    if b"content-length" not in names and b"transfer-encoding" not in names:
        lines.append(b"Content-Length: %d" % len(body))
    return b"%s %s HTTP/1.1\r\n%s\r\n\r\n%s" % (method, target, b"\r\n".join(lines), body)


class PushHttpClient:
    """The other side of a connection."""

    def __init__(self, factory: HttpFactory) -> None:
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> PushHttpClient:
        self.protocol.dataReceived(data)
        return self

    @property
    def responses(self) -> list[ParsedResponse]:
        """The responses since the last time."""
        text, result = self.transport.value(), []
        self.transport.clear()
        while text:
            result.append(ParsedResponse(text))
            text = result[-1].rest
        return result

    @property
    def response(self) -> ParsedResponse:
        (response,) = self.responses
        return response

    @property
    def is_closed(self) -> bool:
        return self.transport.disconnecting or self.transport.disconnected

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


class HttpCase(SynchronousTestCase):
    secret: bytes | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.target = FakeTarget()
        self.factory = self.make()

    def make(self, **options: Any) -> HttpFactory:
        return HttpFactory(
            CommandHandler(self.target, PushStats()), secret=lambda: self.secret, reactor=self.clock, **options
        )

    def client(self) -> PushHttpClient:
        return PushHttpClient(self.factory)

    def ask(self, *arguments: Any, **options: Any) -> ParsedResponse:
        return self.client().send(request(*arguments, **options)).response


class BodyTests(HttpCase):
    def test_one_object_published_gets_its_acknowledgement(self) -> None:
        response = self.ask()
        self.assertEqual(response.status, 200)
        self.assertEqual(response.headers["content-type"], "application/json")
        self.assertEqual(response.json, {"ok": True, "event_id": "E:1", "delivered": 1})

    def test_one_object_invalid_is_400_with_the_error(self) -> None:
        for body, code in (
            (b'{"event":"secret_plans","data":{}}', "no_audience"),
            (b'{"op":"fly"}', "unknown_type"),
            (b'{"op":"auth","secret":"x"}', "bad_message"),
            (b'{"event":"new_message"}', "bad_message"),
            (b"", "bad_json"),
            (b"5", "bad_json"),
            (b"\xff", "bad_json"),
            (b"\xef\xbb\xbf{}", "bad_json"),
            (b'{"a":', "bad_json"),
            (b"[" * 100_000, "bad_json"),
            (b'[{"op":"ping"}', "bad_json"),
        ):
            response = self.ask(body)
            self.assertEqual((response.status, response.json["code"]), (400, code), body[:40])
        self.assertEqual(self.target.done, [])

    def test_array_with_failed_items_has_a_result_for_each(self) -> None:
        response = self.ask(b' [ {"op":"ping","id":1}, 5, {"event":"x","data":{},"id":"k"} ,' + PUBLISH + b"]\n")
        self.assertEqual(response.status, 200)
        self.assertEqual(response.headers["chatws-failed"], "2")
        self.assertEqual([item["ok"] for item in response.json], [True, False, False, True])
        self.assertEqual(response.json[2]["id"], "k")

    def test_array_empty_gives_an_empty_array(self) -> None:
        response = self.ask(b"[]")
        self.assertEqual((response.status, response.body), (200, b"[]"))
        self.assertNotIn("chatws-failed", response.headers)

    def test_lines_are_answered_with_lines(self) -> None:
        body = b'{"op":"ping","id":1}\r\n\n{"op":"pi\n' + PUBLISH
        response = self.ask(body, b"Content-Type: Application/X-NDJSON; charset=utf-8")
        self.assertEqual((response.status, response.headers["content-type"]), (200, "application/x-ndjson"))
        self.assertEqual([json.loads(line)["ok"] for line in response.body.splitlines()], [True, False, True])

    def test_data_with_line_ends_reaches_the_target_byte_for_byte(self) -> None:
        self.ask(b'{"event":"new_message",\n"data":{\n "conversation_id": 1 }}')
        self.assertEqual(self.target.published[0].data, b'{\n "conversation_id": 1 }')

    def test_order_of_ops_and_publishes_is_kept(self) -> None:
        self.target.waiting = []
        unsubscribe = b'{"op":"unsubscribe","user_id":5,"conversation_id":1}'
        client = self.client().send(request(b"[%s,%s,%s]" % (PUBLISH, unsubscribe, PUBLISH)))
        self.assertEqual(self.target.done, [])
        self.target.settle()
        self.target.settle()
        kinds = [
            done[0] if isinstance(done, tuple) and done[0] == "unsubscribe" else "event" for done in self.target.done
        ]
        self.assertEqual(kinds, ["event", "unsubscribe", "event"])
        self.assertEqual(len(client.response.json), 3)

    def test_many_items_let_the_reactor_run_in_between(self) -> None:
        client = self.client().send(request(b"[%s]" % b",".join([PUBLISH] * (BATCH_ITEMS + 1))))
        self.assertEqual((len(self.target.published), client.transport.value()), (BATCH_ITEMS, b""))
        self.clock.advance(0)
        self.assertEqual(len(client.response.json), BATCH_ITEMS + 1)

    def test_too_many_items_are_413_and_not_executed(self) -> None:
        response = self.ask(b"[%s]" % b",".join([b"{}"] * (MAX_ITEMS + 1)))
        self.assertEqual(response.status, 413)

    def test_item_longer_than_a_line_may_be_fails_alone(self) -> None:
        self.factory = self.make(max_item=100)
        long = b'{"event":"new_message","data":{"conversation_id":1,"x":"%s"}}' % (b"x" * 100)
        response = self.ask(b"[%s,%s]" % (long, PUBLISH))
        self.assertEqual([item.get("code", "") for item in response.json], ["line_too_long", ""])


class UnavailableTests(HttpCase):
    def test_broker_unavailable_is_503_with_retry_after(self) -> None:
        self.target.failing = Unavailable("down")
        for body in (PUBLISH, b"[%s,%s]" % (PUBLISH, PUBLISH)):
            response = self.ask(body)
            self.assertEqual(response.status, 503)
            self.assertGreater(int(response.headers["retry-after"]), 0)

    def test_broker_unavailable_for_a_part_of_a_batch_is_200(self) -> None:
        self.target.failing = Unavailable("down")
        response = self.ask(b'[{"op":"ping"},%s]' % PUBLISH)
        self.assertEqual((response.status, response.headers["chatws-failed"]), (200, "1"))
        self.assertNotIn("retry-after", response.headers)

    def test_budget_exhausted_is_overloaded(self) -> None:
        self.factory = self.make(budget=FileBudget(limit=lambda: 4, clock=self.clock))
        self.target.waiting = []
        clients = [self.client().send(request()) for _ in range(4)]
        statuses = [response.status for client in clients for response in client.responses]
        self.assertIn(503, statuses)
        self.assertEqual(len(self.target.waiting), 4 - len(statuses))


class HeadTests(HttpCase):
    secret = b"s3cret"
    bearer = b"Authorization: bearer s3cret"

    def rejected(self, *headers: bytes, **options: Any) -> ParsedResponse:
        """Send a head that announces a body with `100-continue`, and return the response."""
        head = request(b"", *headers, b"Content-Length: 10", b"Expect: 100-continue", **options)
        client = self.client().send(head)
        response = client.response
        self.assertEqual(response.headers["connection"], "close")
        return response

    def test_rejections_come_from_the_head_before_100_continue(self) -> None:
        cases: list[tuple[int, list[bytes], dict[str, bytes]]] = [
            (401, [], {}),
            (401, [b"Authorization: Bearer wrong"], {}),
            (401, [b"Authorization: Basic s3cret"], {}),
            (401, ["Authorization: Bearer é".encode()], {}),
            (403, [self.bearer, b"Origin: https://example.org"], {}),
            (403, [self.bearer, b"Origin: null"], {}),
            (404, [self.bearer], {"target": b"/"}),
            (404, [self.bearer], {"target": b"/push/"}),
            (404, [self.bearer], {"target": b"//["}),
            (405, [self.bearer], {"method": b"GET"}),
            (405, [self.bearer], {"method": b"PUT"}),
            (415, [self.bearer, b"Content-Type: application/x-www-form-urlencoded"], {}),
            (415, [self.bearer, b"Content-Encoding: br"], {}),
        ]
        for status, headers, options in cases:
            self.assertEqual(self.rejected(*headers, **options).status, status, (headers, options))

    def test_rejection_tells_what_to_send(self) -> None:
        self.assertEqual(self.rejected().headers["www-authenticate"], "Bearer")
        self.assertEqual(self.rejected(self.bearer, method=b"GET").headers["allow"], "POST")
        self.assertIn("Content-Type", self.rejected(self.bearer, b"Content-Type: x/y").json["message"])

    def test_length_too_large_is_413_before_the_body(self) -> None:
        head = request(b"", self.bearer, b"Content-Length: %d" % (1 << 30), b"Expect: 100-continue")
        self.assertEqual(self.client().send(head).response.status, 413)

    def test_query_and_absolute_target_are_accepted(self) -> None:
        for target in (b"/push?from=shop", b"http://x/push"):
            self.assertEqual(self.ask(PUBLISH, self.bearer, target=target).status, 200)

    def test_expect_100_continue_gets_it_and_then_the_response(self) -> None:
        client = self.client().send(request(b"", self.bearer, b"Content-Length: 2", b"Expect: 100-continue"))
        self.assertEqual(client.transport.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        client.transport.clear()
        self.assertEqual(client.send(b"[]").response.status, 200)

    def test_head_request_gets_no_body(self) -> None:
        text = self.client().send(request(b"", self.bearer, method=b"HEAD")).transport.value()
        self.assertTrue(text.startswith(b"HTTP/1.1 405 ") and text.endswith(b"\r\n\r\n"))

    def test_malformed_requests_are_400_or_what_h11_suggests(self) -> None:
        for text in (b"\x16\x03\x01\x02\x00\r\n\r\n", b'{"op":"ping"}\n\n', b"GET / HTTP/1.1\r\n\r\n"):
            client = self.client().send(text)
            self.assertEqual(client.response.status, 400, text)
            client.send(b"more")  # discarded
            self.clock.advance(LINGER_TIMEOUT)
            self.assertTrue(client.is_closed)
        self.assertEqual(self.client().send(b"GET /" + b"x" * 40_000).response.status, 431)


class RestOfBodyTests(HttpCase):
    """The rest of a rejected body."""

    def test_rest_is_discarded_until_its_end(self) -> None:
        client = self.client().send(request(b"", b"Content-Length: 2000000"))
        self.assertEqual(client.response.status, 413)
        client.send(b"x" * 1_999_999)
        self.assertFalse(client.is_closed)
        client.send(b"x")
        self.assertTrue(client.is_closed)
        self.assertEqual(client.transport.value(), b"")

    def test_rest_without_an_end_is_discarded_for_the_linger_timeout(self) -> None:
        self.factory = self.make(max_body=10)
        client = self.client().send(request(b"", b"Transfer-Encoding: chunked"))
        client.send(b"8\r\n12345678\r\n")
        self.assertEqual(client.transport.value(), b"")
        client.send(b"3\r\n123\r\n")
        self.assertEqual(client.response.status, 413)
        client.send(b"8\r\n12345678\r\n")
        self.clock.advance(LINGER_TIMEOUT - 0.1)
        self.assertFalse(client.is_closed)
        self.clock.advance(0.1)
        self.assertTrue(client.is_closed)
        self.assertEqual(client.transport.value(), b"")

    def test_rejected_request_without_a_body_closes_at_once(self) -> None:
        client = self.client().send(request(b"", target=b"/favicon.ico"))
        self.assertEqual(client.response.status, 404)
        self.assertTrue(client.is_closed)


class GzipTests(HttpCase):
    encoding = b"Content-Encoding: gzip"

    def test_gzip_body_is_inflated_also_in_several_members(self) -> None:
        for body in (gzip.compress(PUBLISH), gzip.compress(PUBLISH[:20]) + gzip.compress(PUBLISH[20:])):
            self.assertEqual(self.ask(body, self.encoding).status, 200)
            client = self.client()
            for byte in request(body, self.encoding):
                client.send(bytes([byte]))
            self.assertEqual(client.response.status, 200)

    def test_gzip_bomb_is_413_before_it_is_complete(self) -> None:
        bomb = gzip.compress(b" " * 2_000_000)
        client = self.client().send(request(bomb, self.encoding)[: -len(bomb) // 4])
        self.assertEqual(client.response.status, 413)

    def test_gzip_members_that_are_a_bomb_together_are_413(self) -> None:
        self.assertEqual(self.ask(gzip.compress(b" " * 600_000) * 2, self.encoding).status, 413)

    def test_gzip_body_of_exactly_the_limit_is_accepted(self) -> None:
        self.factory = self.make(max_body=1000)
        self.assertEqual(self.ask(gzip.compress(PUBLISH.ljust(1000)), self.encoding).status, 200)
        self.assertEqual(self.ask(gzip.compress(PUBLISH.ljust(1001)), self.encoding).status, 413)

    def test_gzip_invalid_or_truncated_is_400(self) -> None:
        for body in (b"plain", b"", gzip.compress(PUBLISH)[:-1]):
            response = self.ask(body, self.encoding)
            self.assertEqual((response.status, response.json["code"]), (400, "bad_json"), body)


class ConnectionTests(HttpCase):
    def test_keep_alive_serves_several_requests(self) -> None:
        client = self.client()
        for _ in range(3):
            self.assertEqual(client.send(request()).response.status, 200)
        self.assertFalse(client.is_closed)

    def test_pipelined_requests_are_answered_in_order(self) -> None:
        client = self.client().send(request(b'{"op":"ping","id":1}') + request(b'{"op":"ping","id":2}'))
        self.assertEqual([response.json["id"] for response in client.responses], [1, 2])

    def test_http_1_0_and_connection_close_close_after_the_response(self) -> None:
        for text in (request().replace(b"HTTP/1.1", b"HTTP/1.0"), request(PUBLISH, b"Connection: close")):
            client = self.client().send(text)
            self.assertEqual(client.response.status, 200)
            self.assertTrue(client.is_closed)

    def test_fin_behind_a_request_is_answered_first(self) -> None:
        self.target.waiting = []
        client = self.client().send(request())
        client.protocol.readConnectionLost()
        self.assertFalse(client.is_closed)
        self.target.settle()
        self.assertEqual(client.response.status, 200)
        self.assertTrue(client.is_closed)

    def test_request_cut_off_is_not_executed(self) -> None:
        client = self.client().send(request()[:-1])
        client.protocol.readConnectionLost()
        self.clock.advance(LINGER_TIMEOUT)
        self.assertTrue(client.is_closed)
        self.assertEqual(self.target.batches, [])

    def test_connection_lost_while_executed_counts_the_request(self) -> None:
        self.target.waiting = []
        client = self.client().send(request())
        client.lose()
        self.assertEqual(len(self.factory.connections), 1)
        self.target.settle()
        self.assertEqual((len(self.target.done), self.factory.connections), (1, set()))

    def test_reading_stops_while_a_request_is_executed(self) -> None:
        self.target.waiting = []
        client = self.client().send(request())
        self.assertEqual(client.transport.producerState, "paused")
        self.target.settle()
        self.assertEqual(client.transport.producerState, "producing")

    def test_reading_stops_while_a_response_is_unsent(self) -> None:
        client = self.client()
        client.protocol.pauseProducing()
        client.send(request())
        self.assertEqual((client.transport.value(), client.transport.producerState), (b"", "paused"))
        client.protocol.resumeProducing()
        self.assertEqual(client.response.status, 200)

    def test_response_that_is_never_read_aborts_after_the_timeout(self) -> None:
        client = self.client()
        client.protocol.pauseProducing()
        self.clock.advance(self.factory.request_timeout)
        self.assertTrue(client.transport.disconnected)

    def test_request_that_is_slow_is_408(self) -> None:
        client = self.client().send(request()[:-1])
        self.clock.advance(self.factory.request_timeout)
        self.assertEqual(client.response.status, 408)
        self.clock.advance(LINGER_TIMEOUT)
        self.assertTrue(client.is_closed)

    def test_idle_connection_is_closed_without_a_response(self) -> None:
        client = self.client().send(request())
        client.transport.clear()
        self.clock.advance(self.factory.idle_timeout - 1)
        self.assertFalse(client.is_closed)
        self.clock.advance(1)
        self.assertTrue(client.is_closed)
        self.assertEqual(client.transport.value(), b"")

    def test_responses_are_counted_by_status(self) -> None:
        self.ask()
        self.ask(b"x")
        self.ask(target=b"/")
        self.assertEqual(self.factory.stats.responses, {200: 1, 400: 1, 404: 1})

    def test_budget_is_released_after_each_request(self) -> None:
        client = self.client()
        for _ in range(3):
            client.send(request())
            client.send(request(b"x"))
        self.assertEqual(self.factory.budget.admitted["backend"], 0)
        client.lose()
        self.assertEqual(self.factory.budget.sockets().get("backend", 0), 0)


class DrainTests(HttpCase):
    def tick(self, count: int = QUIET_CHECKS + 1) -> None:
        for _ in range(count):
            self.clock.advance(DRAIN_INTERVAL)

    def test_drain_answers_the_request_that_runs_and_closes_idle_connections(self) -> None:
        self.target.waiting = []
        busy, idle = self.client().send(request()), self.client()
        drained = self.factory.drain()
        self.tick()
        self.assertEqual((busy.is_closed, idle.is_closed), (False, True))
        idle.lose()
        self.target.settle()
        self.assertEqual(busy.response.headers["connection"], "close")
        self.assertTrue(busy.is_closed)
        busy.lose()
        self.successResultOf(drained)

    def test_drain_ends_although_a_request_never_completes(self) -> None:
        client = self.client().send(request()[:-1])
        self.factory.drain(1.0)
        self.clock.pump([0.1] * 25)
        self.assertTrue(client.is_closed)
