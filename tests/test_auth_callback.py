"""The application is asked who a browser is. It is a real HTTP server here, and not always a good one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from chatws.auth import callback
from chatws.auth.build import build_authenticator
from chatws.auth.callback import CallbackMethod
from chatws.chat.contracts import Credentials, Identity
from chatws.config import Config
from chatws.errors import AuthenticationFailed, Unavailable
from chatws.ids import Id
from chatws.server.component import HttpRequest
from tests.fakes_database import FakeDatabase

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
        found = {
            name.decode().lower(): ", ".join(value.decode("latin-1") for value in values) for name, values in headers
        }
        self.requests.append({"method": request.method.decode(), "uri": request.uri.decode(), **found})
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


class Setting:
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
def setting(log: list[str]) -> Iterator[Setting]:
    before = set(reactor.getDelayedCalls())
    made = Setting()
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
async def test_two_hundred_with_a_user_is_a_yes(setting: Setting) -> None:
    assert await setting.ask() == Identity(5, "callback")
    for body, user_id in (
        ('{"user_id":"5"}', 5),
        ('{"user_id":"anna","name":"Anna","roles":[1]}', "anna"),
        ('\ufeff {"user_id":7}\n', 7),
    ):
        setting.application.says(body)
        assert (await setting.ask()).user_id == user_id


@pytest_twisted.ensureDeferred
async def test_conversations_limit_the_connection(setting: Setting) -> None:
    for listed, found in ((["456", 456, "x"], frozenset({456, "x"})), ([], frozenset())):
        setting.application.says(json.dumps({"user_id": 5, "conversations": listed}))
        assert (await setting.ask()).conversations == found
    setting.application.says('{"user_id":5}')
    assert (await setting.ask()).conversations is None


@pytest_twisted.ensureDeferred
async def test_the_browsers_own_headers_are_passed_on_and_no_others(setting: Setting) -> None:
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
async def test_the_real_address_is_the_last_hop(setting: Setting) -> None:
    await setting.ask(address="2001:db8::1")
    await setting.ask(address="", cookie="2")
    assert [request.get("x-forwarded-for") for request in setting.application.requests] == ["2001:db8::1", None]


@pytest_twisted.ensureDeferred
async def test_401_and_403_are_a_no(setting: Setting, log: list[str]) -> None:
    for status in (401, 403):
        setting.application.says("x" * 1000, status)
        assert "session" in await refused(setting.ask())
    setting.application.says("x" * 5_000_000, 401)
    await refused(setting.ask())
    assert log == []


@pytest_twisted.ensureDeferred
async def test_the_page_must_not_name_somebody_else(setting: Setting) -> None:
    assert (await setting.ask(5)).user_id == 5
    for other in (6, "five", 0):
        assert "user_id" in await refused(setting.ask(other))


@pytest.mark.parametrize("status", [201, 204, 301, 302, 303, 307, 308, 400, 404, 418, 500, 503])
@pytest_twisted.ensureDeferred
async def test_another_status_is_neither_yes_nor_no(setting: Setting, log: list[str], status: int) -> None:
    setting.application.says(b"" if status == 204 else b'{"user_id":5}', status, location=setting.url)
    await unavailable(setting.ask())
    await unavailable(setting.ask())
    assert len(setting.application.requests) == 2, "a redirect is not followed"
    (line,) = log
    assert f"status {status} is neither a yes (200) nor a no (401, 403)" in line
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
        '{"user_id":null}',
        '{"user_id":true}',
        '{"user_id":5.0}',
        '{"user_id":-1}',
        '{"user_id":9007199254740992}',
        '{"user_id":""}',
        '{"user_id":[5]}',
        '{"user_id":5,"conversations":null}',
        '{"user_id":5,"conversations":456}',
        '{"user_id":5,"conversations":[true]}',
        '{"user_id":5,"conversations":{"456":1}}',
        '{"user_id":5} {"user_id":6}',
        '{"user_id":5',
        b'{"user_id":"\xff"}',
        b"\x1f\x8b\x08\x00",
        '{"user_id":' + "[" * 30_000,
    ],
)
@pytest_twisted.ensureDeferred
async def test_two_hundred_with_anything_else_is_neither_yes_nor_no(
    setting: Setting, log: list[str], body: str | bytes
) -> None:
    setting.application.says(body)
    await unavailable(setting.ask())
    assert len(log) == 1
    setting.application.says('{"user_id":5}')
    assert (await setting.ask()).user_id == 5


@pytest_twisted.ensureDeferred
async def test_an_answer_that_is_too_long_is_not_read_to_its_end(setting: Setting, log: list[str]) -> None:
    setting.application.says('{"user_id":5,"x":"' + "x" * (callback.MAX_ANSWER - 20) + '"}')
    assert (await setting.ask()).user_id == 5
    setting.application.says('{"user_id":5,"x":"' + "x" * callback.MAX_ANSWER + '"}')
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
    assert {line.partition(": ")[2] for line in log} == {f"the answer has more than {callback.MAX_ANSWER} bytes"}


@pytest_twisted.ensureDeferred
async def test_an_application_that_is_slow_is_given_up_and_its_connection_closed(setting: Setting) -> None:
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
async def test_an_answer_that_drips_is_given_up(setting: Setting) -> None:
    setting.give_up_after(1.0)

    def answer(request: Request) -> int:
        request.notifyFinish().addErrback(lambda _: None)
        request.write(b'{"user_id"')
        return NOT_DONE_YET

    setting.application.answer = answer
    await unavailable(setting.ask())


@pytest_twisted.ensureDeferred
async def test_an_application_that_is_not_there_is_neither_yes_nor_no(setting: Setting, log: list[str]) -> None:
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
async def test_what_is_no_http_is_neither_yes_nor_no(log: list[str], bytes_sent: bytes) -> None:
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
async def test_the_same_question_is_asked_once_at_a_time(setting: Setting) -> None:
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
async def test_a_page_that_names_somebody_else_shares_the_question_but_not_the_answer(setting: Setting) -> None:
    setting.application.hold()
    right, wrong = setting.ask(5), setting.ask(6)
    await until(lambda: len(setting.application.held) == 1)
    setting.application.held[0].write(b'{"user_id":5}')
    setting.application.held[0].finish()
    assert (await right).user_id == 5
    await refused(wrong)


@pytest_twisted.ensureDeferred
async def test_only_so_many_questions_are_put_at_once(setting: Setting) -> None:
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
async def test_connections_are_used_again(setting: Setting) -> None:
    addresses: set[int] = set()

    def answer(request: Request) -> bytes:
        addresses.add(request.getClientAddress().port)
        return b'{"user_id":5}'

    setting.application.answer = answer
    for number in range(5):
        await setting.ask(cookie=f"session={number}")
    assert len(addresses) == 1


@pytest_twisted.ensureDeferred
async def test_with_a_database_the_session_is_for_active_users_only(setting: Setting) -> None:
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
                assert await asked == Identity(5, "callback")
            assert chain.stats.counts["callback", result] == 1
        without = Credentials(5, None, HttpRequest("GET", "/ws"), "192.0.2.1")
        with pytest.raises(AuthenticationFailed):
            chain.authenticate(without)
        assert len(setting.application.requests) == 2, "who brings nothing costs the application nothing"
    finally:
        await chain.stop()
