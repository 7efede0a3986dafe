"""The application is asked who a browser is. It is a real HTTP server here, and not always a good one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet import ssl
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from chatws.auth import callback, http_client
from chatws.auth.callback import CallbackMethod
from chatws.auth.factory import build_authenticator
from chatws.chat.interfaces import Credentials, Identity
from chatws.config.schema import Config
from chatws.errors import AuthenticationFailed, Unavailable
from chatws.ids import Id
from chatws.server.component import HttpRequest
from tests.certificates import self_signed
from tests.fakes_database import FakeDatabase
from tests.requirements import needs

reactor: Any = _reactor
#: Seconds. No answer takes as long, however busy the machine is.
TIMEOUT = 10.0


class Application(Resource):
    """Notes each request and answers as `answer` says: bytes, or NOT_DONE_YET."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[dict[str, str]] = []
        self.held: list[Request] = []
        self.answer: Callable[[Request], Any] = lambda request: b'{"user_id":5}'

    def render(self, request: Request) -> Any:
        headers = request.requestHeaders.getAllRawHeaders()
        result = {
            name.decode().lower(): ", ".join(value.decode("latin-1") for value in values) for name, values in headers
        }
        self.requests.append({"method": request.method.decode(), "uri": request.uri.decode(), **result})
        return self.answer(request)

    def says(self, body: str | bytes, status: int = 200, **headers: str) -> None:
        def answer(request: Request) -> bytes:
            request.setResponseCode(status)
            for name, value in headers.items():
                request.setHeader(name, value)
            return body.encode() if isinstance(body, str) else body

        self.answer = answer

    def hold(self) -> None:
        """Answer nothing for now."""

        def answer(request: Request) -> int:
            self.held.append(request)
            request.notifyFinish().addErrback(lambda _: None)
            return NOT_DONE_YET

        self.answer = answer


class CallbackServer:
    """An application that listens, and a method that asks it."""

    def __init__(self) -> None:
        self.application = Application()
        self.site = Site(self.application)
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/whoami?format=json"
        self.give_up_after(TIMEOUT)

    def give_up_after(self, seconds: float) -> None:
        self.method = CallbackMethod(self.url, timeout=seconds, reactor=reactor)

    def ask(self, user_id: Id | None = None, address: str = "192.0.2.1", **headers: str) -> Deferred[Identity]:
        headers = {"cookie": "session=1", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.method.authenticate(Credentials(user_id, None, HttpRequest("GET", "/ws", headers=headers), address))


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("chatws"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def setting(log: list[str]) -> Iterator[CallbackServer]:
    before = set(reactor.getDelayedCalls())
    made = CallbackServer()
    connections: list[Any] = []
    build = made.site.buildProtocol

    def note(address: Any) -> Any:
        protocol = build(address)
        connections.append(protocol)
        return protocol

    made.site.buildProtocol = note  # type: ignore[method-assign]
    yield made
    pytest_twisted.blockon(maybeDeferred(made.port.stopListening))
    for protocol in connections:
        transport = getattr(protocol, "_channel", protocol).transport
        if transport is not None:
            transport.abortConnection()

    def is_settled() -> bool:
        made.method.stop()  # a connection may become idle after the answer that was waited for
        return set(reactor.getDelayedCalls()) <= before

    pytest_twisted.blockon(Deferred.fromCoroutine(until(is_settled)))


async def until(true: Callable[[], bool]) -> None:
    deadline = reactor.seconds() + 20
    while not true():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.01)


async def refused(asked: Deferred[Identity]) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        await asked
    return caught.value.message


async def unavailable(asked: Deferred[Identity]) -> None:
    with pytest.raises(Unavailable):
        await asked


@pytest_twisted.ensureDeferred
async def test_two_hundred_with_a_user_is_a_yes(setting: CallbackServer) -> None:
    assert await setting.ask() == Identity(5, "callback")
    for body, user_id in (
        ('{"user_id":"5"}', 5),
        ('{"user_id":"anna","name":"Anna","roles":[1]}', "anna"),
        ('\ufeff {"user_id":7}\n', 7),
    ):
        setting.application.says(body)
        assert (await setting.ask()).user_id == user_id


@pytest_twisted.ensureDeferred
async def test_conversations_limit_the_connection(setting: CallbackServer) -> None:
    for listed, result in (
        (["456", 456, "x"], frozenset({456, "x"})),
        ([], frozenset()),
        ({"0": 456}, frozenset({456})),
        ({"1": "456", "3": 458}, frozenset({456, 458})),
        ({}, frozenset()),
    ):
        setting.application.says(json.dumps({"user_id": 5, "conversations": listed}))
        assert (await setting.ask()).conversations == result
    setting.application.says('{"user_id":5}')
    assert (await setting.ask()).conversations is None


@pytest_twisted.ensureDeferred
async def test_an_empty_user_id_of_php_is_auth_failed(setting: CallbackServer, log: list[str]) -> None:
    for body in ('{"user_id":null}', '{"user_id":false}', '{"user_id":""}', '{"user_id":null,"conversations":[]}'):
        setting.application.says(body)
        with pytest.raises(AuthenticationFailed):
            await setting.ask()
    assert log == []


@pytest_twisted.ensureDeferred
async def test_an_invalid_response_is_logged_with_its_field(setting: CallbackServer, log: list[str]) -> None:
    for conversations, sentence in (
        ("null", "conversations must be a list of ids, such as [456,457]"),
        ('{"456":1}', "conversations may be a list with gaps or map ids to flags; send array_values() of the ids"),
    ):
        setting.application.says(f'{{"user_id":5,"conversations":{conversations}}}')
        with pytest.raises(Unavailable):
            await setting.ask()
        assert log.pop() == f"--auth-url: in the response, {sentence}"


@pytest_twisted.ensureDeferred
async def test_identity_lasts_for_auth_ttl_or_what_the_application_says(
    setting: CallbackServer, log: list[str]
) -> None:
    setting.method = CallbackMethod(setting.url, timeout=TIMEOUT, ttl=3600.0, reactor=reactor)
    for expires_in, renew_after in (
        ("", 3600.0),
        (',"expires_in":600', 600.0),
        (',"expires_in":0.5', callback.MIN_TTL),
        (',"expires_in":1e300', callback.MAX_TTL),
    ):
        setting.application.says(f'{{"user_id":5{expires_in}}}')
        assert await setting.ask() == Identity(5, "callback", renew_after=renew_after)
    for expires_in in ("-1", "null", "true", '"600"', "[]"):
        setting.application.says(f'{{"user_id":5,"expires_in":{expires_in}}}')
        await unavailable(setting.ask())
    assert log == ["--auth-url: in the response, expires_in must be a number of seconds"]


@needs("php-cli")
@pytest.mark.parametrize(
    ("php", "expected"),
    [
        ("['user_id' => 5, 'conversations' => array_filter([455, 456], fn ($id) => $id > 455)]", {456}),
        ("['user_id' => '5', 'conversations' => array_unique(['456', '456', '457'])]", {456, 457}),
        ("['user_id' => 5, 'conversations' => array_combine([456, 457], [456, 457])]", {456, 457}),
        ("['user_id' => 5, 'conversations' => array_filter([])]", set()),
        ("['user_id' => 5, 'conversations' => (object) []]", set()),
        ("['user_id' => 5, 'conversations' => array_fill_keys([456, 457], true)]", Unavailable),
        ("['user_id' => 5, 'conversations' => array_flip([456, 457])]", Unavailable),
        ("['user_id' => 5, 'conversations' => null]", Unavailable),
        ("['user_id' => $_SESSION['user_id'] ?? null]", AuthenticationFailed),
        ("['user_id' => (string) ($_SESSION['user_id'] ?? null)]", AuthenticationFailed),
        ("['user_id' => reset($none)]", AuthenticationFailed),
        ("[]", Unavailable),
        ("null", Unavailable),
    ],
)
@pytest_twisted.ensureDeferred
async def test_arrays_encoded_by_php_are_accepted_or_named_ambiguous(
    setting: CallbackServer, php: str, expected: Any
) -> None:
    program = f"$_SESSION = []; $none = []; echo json_encode({php});"
    output = subprocess.run(["php", "-r", program], capture_output=True, check=True, timeout=TIMEOUT).stdout
    setting.application.says(output)
    if isinstance(expected, set):
        assert await setting.ask() == Identity(5, "callback", conversations=frozenset(expected))
    else:
        with pytest.raises(expected):
            await setting.ask()


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_no_authority_has_signed_is_neither_yes_nor_no(log: list[str]) -> None:
    pair = self_signed()
    certificate = ssl.PrivateCertificate.loadPEM(pair.both)
    port = reactor.listenSSL(0, Site(Application()), certificate.options(), interface="127.0.0.1")
    method = CallbackMethod(f"https://127.0.0.1:{port.getHost().port}/", timeout=TIMEOUT, reactor=reactor)
    try:
        with pytest.raises(Unavailable):
            await method.authenticate(Credentials(5, None, HttpRequest("GET", "/", headers={"cookie": "a=1"}), ""))
    finally:
        await method.stop()
        await maybeDeferred(port.stopListening)
    assert "certificate verify failed" in log[0]


@pytest_twisted.ensureDeferred
async def test_logins_leave_no_log_lines_of_twisted(setting: CallbackServer) -> None:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        for number in range(5):
            setting.application.says('{"user_id":5}', connection="close")  # so that each takes a connection of its own
            await setting.ask(cookie=f"session={number}")
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(setting.application.requests) == 5
    assert [line for line in lines if "GET /whoami" not in line] == []


@pytest_twisted.ensureDeferred
async def test_the_browsers_own_headers_are_passed_on_and_no_others(setting: CallbackServer) -> None:
    await setting.ask(
        cookie="session=1; lang=pt",
        authorization="Bearer x",
        origin="https://shop.example",
        user_agent="Mozilla/5.0 (é)",
        x_forwarded_for="198.51.100.7, 203.0.113.1",
        host="evil.example",
        content_length="99",
        upgrade="websocket",
        x_api_key="secret",
    )
    (request,) = setting.application.requests
    request.pop("connection", None)
    assert request.pop("host") == f"127.0.0.1:{setting.port.getHost().port}"
    assert request == {
        "method": "GET",
        "uri": "/whoami?format=json",
        "accept": "application/json",
        "cookie": "session=1; lang=pt",
        "authorization": "Bearer x",
        "origin": "https://shop.example",
        "user-agent": "Mozilla/5.0 (é)",
        "x-forwarded-for": "198.51.100.7, 203.0.113.1, 192.0.2.1",
    }


@pytest_twisted.ensureDeferred
async def test_the_real_address_is_the_last_hop(setting: CallbackServer) -> None:
    await setting.ask(address="2001:db8::1")
    await setting.ask(address="", cookie="2")
    assert [request.get("x-forwarded-for") for request in setting.application.requests] == ["2001:db8::1", None]


@pytest_twisted.ensureDeferred
async def test_401_and_403_are_a_no(setting: CallbackServer, log: list[str]) -> None:
    for status in (401, 403):
        setting.application.says("x" * 1000, status)
        assert "session" in await refused(setting.ask())
    setting.application.says("x" * 5_000_000, 401)
    await refused(setting.ask())
    assert log == []


@pytest_twisted.ensureDeferred
async def test_a_page_that_names_another_user_is_rejected(setting: CallbackServer) -> None:
    assert (await setting.ask(5)).user_id == 5
    for other in (6, "five", 0):
        assert "user_id" in await refused(setting.ask(other))


@pytest.mark.parametrize("status", [201, 204, 301, 302, 303, 307, 308, 400, 404, 418, 500, 503])
@pytest_twisted.ensureDeferred
async def test_another_status_is_neither_yes_nor_no(setting: CallbackServer, log: list[str], status: int) -> None:
    setting.application.says(b"" if status == 204 else b'{"user_id":5}', status, location=setting.url)
    await unavailable(setting.ask())
    await unavailable(setting.ask())
    assert len(setting.application.requests) == 2, "a redirect is not followed"
    (line,) = log
    assert f"status {status} is neither 200 (accept) nor 401 or 403 (reject)" in line
    assert ("redirect" in line) == (300 <= status < 400)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        "5",
        "<html>please log in</html>",
        "{}",
        '{"user_id":true}',
        '{"user_id":5.0}',
        '{"user_id":-1}',
        '{"user_id":9007199254740992}',
        '{"user_id":[5]}',
        '{"user_id":5,"conversations":null}',
        '{"user_id":5,"conversations":456}',
        '{"user_id":5,"conversations":[true]}',
        '{"user_id":5,"conversations":false}',
        '{"user_id":5,"conversations":"456,457"}',
        '{"user_id":5,"conversations":{"456":1}}',
        '{"user_id":5,"conversations":{"456":true,"457":true}}',
        '{"user_id":5,"conversations":{"a":456}}',
        '{"user_id":5,"conversations":[{"id":456}]}',
        '{"user_id":5} {"user_id":6}',
        '{"user_id":5',
        b'{"user_id":"\xff"}',
        b"\x1f\x8b\x08\x00",
        '{"user_id":' + "[" * 30_000,
    ],
)
@pytest_twisted.ensureDeferred
async def test_two_hundred_with_anything_else_is_neither_yes_nor_no(
    setting: CallbackServer, log: list[str], body: str | bytes
) -> None:
    setting.application.says(body)
    await unavailable(setting.ask())
    assert len(log) == 1
    setting.application.says('{"user_id":5}')
    assert (await setting.ask()).user_id == 5


@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_too_long_is_not_read_to_its_end(setting: CallbackServer, log: list[str]) -> None:
    setting.application.says('{"user_id":5,"x":"' + "x" * (http_client.MAX_RESPONSE_BYTES - 20) + '"}')
    assert (await setting.ask()).user_id == 5
    setting.application.says('{"user_id":5,"x":"' + "x" * http_client.MAX_RESPONSE_BYTES + '"}')
    await unavailable(setting.ask())

    endless: list[Request] = []

    def answer(request: Request) -> int:
        endless.append(request)
        gone = request.notifyFinish()
        gone.addErrback(lambda _: endless.remove(request))
        for _ in range(40):
            request.write(b" " * 65_536)
        return NOT_DONE_YET

    setting.application.answer = answer
    await unavailable(setting.ask())
    await until(lambda: not endless)
    assert {line.partition(": ")[2] for line in log} == {
        f"the response has more than {http_client.MAX_RESPONSE_BYTES} bytes"
    }


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["header", "header value", "100 Continue", "chunk extension"],
)
@pytest_twisted.ensureDeferred
async def test_response_without_an_end_is_closed_after_a_bounded_number_of_bytes(log: list[str], start: bytes) -> None:
    class Endless(Protocol):
        sent = 0
        part = b""

        def connectionMade(self) -> None:
            self.transport.write(start)
            self.transport.registerProducer(self, streaming=False)

        def resumeProducing(self) -> None:
            if not start:
                part = b"HTTP/1.1 100 Continue\r\n\r\n" * 100
            elif start.endswith(b"X: "):
                part = b"x" * 10_000
            elif start.endswith(b"\r\n\r\n"):
                part = b"1;" + b"x" * 1000 + b"\r\na\r\n"
            else:
                part = b"X-Header: x\r\n" * 1000
            self.sent += len(part)
            self.transport.write(part)

        def stopProducing(self) -> None: ...

        def connectionLost(self, reason: Any = None) -> None:
            closed.callback(self.sent)

    closed: Deferred[int] = Deferred()
    port = reactor.listenTCP(0, Factory.forProtocol(Endless), interface="127.0.0.1")
    method = CallbackMethod(f"http://127.0.0.1:{port.getHost().port}/", timeout=TIMEOUT, reactor=reactor)
    credentials = Credentials(None, None, HttpRequest("GET", "/ws", headers={"cookie": "session=1"}), "192.0.2.1")
    await unavailable(method.authenticate(credentials))
    # the rest is in socket buffers
    assert await closed < http_client.MAX_WIRE_BYTES + 16 * 1024 * 1024
    await method.stop()
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_slow_application_times_out_and_its_connection_is_closed(setting: CallbackServer) -> None:
    setting.application.hold()
    setting.give_up_after(1.0)
    while not setting.application.held:  # on a busy machine it may not get there in time
        began = reactor.seconds()
        await unavailable(setting.ask())
        assert reactor.seconds() - began < TIMEOUT
    (held,) = setting.application.held
    await until(lambda: held._disconnected)
    setting.give_up_after(TIMEOUT)
    setting.application.says('{"user_id":5}')
    assert (await setting.ask()).user_id == 5


@pytest_twisted.ensureDeferred
async def test_response_that_arrives_byte_by_byte_times_out(setting: CallbackServer) -> None:
    setting.give_up_after(1.0)

    def answer(request: Request) -> int:
        request.notifyFinish().addErrback(lambda _: None)
        request.write(b'{"user_id"')
        return NOT_DONE_YET

    setting.application.answer = answer
    await unavailable(setting.ask())


@pytest_twisted.ensureDeferred
async def test_an_absent_application_is_unavailable(setting: CallbackServer, log: list[str]) -> None:
    await setting.port.stopListening()
    await unavailable(setting.ask())
    await unavailable(setting.ask())
    assert len(log) == 1


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
        b"\0" * 100_000,
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_response_that_is_not_http_is_unavailable(log: list[str], bytes_sent: bytes) -> None:
    class Garbage(Protocol):
        def dataReceived(self, data: bytes) -> None:
            self.transport.write(bytes_sent)
            self.transport.loseConnection()

    port = reactor.listenTCP(0, Factory.forProtocol(Garbage), interface="127.0.0.1")
    method = CallbackMethod(f"http://127.0.0.1:{port.getHost().port}/", timeout=TIMEOUT, reactor=reactor)
    request = HttpRequest("GET", "/ws", headers={"cookie": "x"})
    await unavailable(method.authenticate(Credentials(5, None, request, "")))
    await method.stop()
    await port.stopListening()
    assert len(log) == 1


@pytest_twisted.ensureDeferred
async def test_equal_lookups_are_joined(setting: CallbackServer) -> None:
    setting.application.hold()
    same = [setting.ask() for _ in range(50)]
    other = setting.ask(cookie="session=2")
    await until(lambda: len(setting.application.held) == 2)
    for request in setting.application.held:
        request.write(b'{"user_id":5}' if request.getCookie(b"session") == b"1" else b'{"user_id":6}')
        request.finish()
    assert {identity.user_id for identity in await gatherResults(same)} == {5}
    assert (await other).user_id == 6
    setting.application.says('{"user_id":7}')
    assert (await setting.ask()).user_id == 7, "an answer is not kept: who logs out is out"


@pytest_twisted.ensureDeferred
async def test_request_that_started_before_a_revocation_is_not_shared_by_a_later_page(setting: CallbackServer) -> None:
    setting.application.hold()
    before = setting.ask()
    await until(lambda: len(setting.application.held) == 1)
    setting.method.forget(5)
    after = setting.ask()
    await until(lambda: len(setting.application.held) == 2)
    first, second = setting.application.held
    first.write(b'{"user_id":5}')
    first.finish()
    assert (await before).user_id == 5
    second.setResponseCode(401)
    second.finish()
    await refused(after)


@pytest_twisted.ensureDeferred
async def test_a_crowd_from_one_address_does_not_delay_another_address(setting: CallbackServer) -> None:
    setting.application.hold()
    crowd = [setting.ask(cookie=f"crowd={n}") for n in range(500)]
    login = setting.ask(address="192.0.2.2", cookie="session=1")
    await until(lambda: any(request.getCookie(b"session") for request in setting.application.held))
    assert len(setting.application.held) <= callback.MAX_PARALLEL
    setting.application.says(b"", 401)
    for request in setting.application.held:
        request.write(b'{"user_id":5}')
        request.finish()
    assert (await login).user_id == 5
    for asked in crowd:
        asked.addErrback(lambda _: None)
    await gatherResults(crowd)


@pytest_twisted.ensureDeferred
async def test_a_page_that_names_another_user_shares_the_request_and_is_rejected(setting: CallbackServer) -> None:
    setting.application.hold()
    right, wrong = setting.ask(5), setting.ask(6)
    await until(lambda: len(setting.application.held) == 1)
    setting.application.held[0].write(b'{"user_id":5}')
    setting.application.held[0].finish()
    assert (await right).user_id == 5
    await refused(wrong)


@pytest_twisted.ensureDeferred
async def test_simultaneous_callback_requests_are_limited(setting: CallbackServer) -> None:
    most = 0

    def answer(request: Request) -> int:
        nonlocal most
        setting.application.held.append(request)
        most = max(most, len(setting.application.held))

        def finish() -> None:
            setting.application.held.remove(request)
            request.write(b'{"user_id":5}')
            request.finish()

        reactor.callLater(0, finish)
        return NOT_DONE_YET

    setting.application.answer = answer
    await gatherResults([setting.ask(cookie=f"session={n}") for n in range(100)])
    assert len(setting.application.requests) == 100
    assert most <= callback.MAX_PARALLEL


@pytest_twisted.ensureDeferred
async def test_connections_are_used_again(setting: CallbackServer) -> None:
    addresses: set[int] = set()

    def answer(request: Request) -> bytes:
        addresses.add(request.getClientAddress().port)
        return b'{"user_id":5}'

    setting.application.answer = answer
    for number in range(5):
        await setting.ask(cookie=f"session={number}")
    assert len(addresses) == 1


@pytest_twisted.ensureDeferred
async def test_with_a_database_the_session_is_for_active_users_only(setting: CallbackServer) -> None:
    database = FakeDatabase([])
    config = Config(auth_url=setting.url, auth_timeout=TIMEOUT)
    chain = build_authenticator(config, database, reactor)
    request = HttpRequest("GET", "/ws", headers={"cookie": "session=1"})
    try:
        for rows, result in (([], "refused"), ([{"id": 5}], "accepted")):
            database.rows = rows
            asked = chain.authenticate(Credentials(5, None, request, "192.0.2.1"))
            assert isinstance(asked, Deferred)
            if result == "refused":
                await refused(asked)
            else:
                assert await asked == Identity(5, "callback", renew_after=config.auth_ttl)
            assert chain.stats.counts["callback", result] == 1
        without = Credentials(5, None, HttpRequest("GET", "/ws"), "192.0.2.1")
        with pytest.raises(AuthenticationFailed):
            chain.authenticate(without)
        assert len(setting.application.requests) == 2, "who brings nothing costs the application nothing"
    finally:
        await chain.stop()
