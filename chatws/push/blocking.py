"""A push client for scripts, Django and whatever else may block: sockets, threads welcome, no Twisted."""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from chatws.ids import Id
from chatws.push.addresses import parse_addresses
from chatws.push.requests import (
    Agent,
    Answer,
    Data,
    PushUnavailable,
    To,
    auth_line,
    backoff,
    is_passing,
    new_key,
    operation_line,
    parse_answer,
    publish_line,
)

__all__ = ["BlockingPushClient"]

log = logging.getLogger(__name__)

#: What `publish_many` sends before it reads the answers: so few that these fit into any socket's buffer.
WINDOW_LINES = 100
WINDOW_BYTES = 65536
#: Bytes of an answer above which the other side is taken for no chatws.
MAX_ANSWER = 16 * 1024 * 1024


class _Request(NamedTuple):
    line: bytes
    id: int | str
    ack: bool = True


class BlockingPushClient:
    """Talks to the push port over one connection, opened when first needed and again whenever it broke.

    May be shared by threads (one speaks at a time), and inherited by forked processes (each opens its own).
    Each call tries again, with the same idempotency key, until `deadline`; then it raises. It never waits longer.

    Of several addresses each belongs to a node of one chatws. The one that worked last is taken; where it cannot be
    reached, is silent, or answers `unavailable` or `overloaded`, what has no answer goes to the next.

    :param address: "host:port", "[::1]:port", "tls://host:port" or "unix:/path"; several with commas between them.
    :param secret: the push secret, where the server has one.
    :param tls: to speak TLS: with the addresses that begin with tls://, or if none does, with all. The certificate is
        checked against the host. Without it, tls:// trusts the authorities that the system trusts.
    :param connect_timeout: seconds that one attempt to connect may take.
    :param timeout: seconds that one answer may take before another connection is tried.
    :param deadline: seconds that a call may take; of `publish_many`, each hundred of events. With several addresses
        both times above are at most an equal share of it, so that one that is silent leaves time for the others.
    :raises ValueError: an address is none.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8081",
        *,
        secret: str | bytes | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout: float = 0.2,
        timeout: float = 0.5,
        deadline: float = 5.0,
    ) -> None:
        self._addresses = parse_addresses(address)
        self._at = 0  # the one in use
        self._auth = auth_line(secret)
        self._is_all_tls = not any(one.tls for one in self._addresses)
        self._tls = tls if tls or self._is_all_tls else ssl.create_default_context()
        share = deadline / len(self._addresses) if len(self._addresses) > 1 else math.inf
        self._connect_timeout = min(connect_timeout, share)
        self._timeout = min(timeout, share)
        self._deadline = deadline
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._process = os.getpid()

    def publish(
        self,
        event: str,
        data: Data,
        *,
        to: To | None = None,
        except_user_id: Id | None = None,
        key: int | str | None = None,
        transient: bool = False,
        ack: bool = True,
    ) -> Answer:
        """Publish one event.

        :param to: its audience, when it is not the event's default one.
        :param except_user_id: whose connections do not get it.
        :param key: idempotency key: a second publish with the same one within 10 minutes is not sent. Give one where
            you may call again for the same thing; otherwise one is made.
        :param transient: not kept for browsers that are away.
        :param ack: wait until it is stored and handed on. Without, the answer says `ok` as soon as the line is on its
            way; should it be refused after all, that is logged.
        :raises PushRefused: it will never be taken.
        :raises PushUnavailable: it was not taken within the deadline, as far as is known.
        :raises TypeError: `data` cannot be written as JSON.
        """
        key = new_key() if key is None else key
        line = publish_line(event, data, key=key, to=to, except_user_id=except_user_id, transient=transient, ack=ack)
        return self._ask(_Request(line, key, ack))

    def publish_many(self, publishes: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Publish events in this order, without waiting for each one's answer before the next is sent.

        :param publishes: the arguments of `publish` by name, less `ack`: `{"event": …, "data": …, "to": …}`.
        :return: the answers, in the same order. Here a refusal is an answer too: look at `ok`.
        :raises PushUnavailable: not all were taken; those before it may have been. Calling again is only safe with
            keys of your own.
        """
        answers: list[Answer] = []
        window: list[_Request] = []
        size = 0
        for one in publishes:
            key = one.get("key")
            key = new_key() if key is None else key
            line = publish_line(**{**one, "key": key, "ack": True})
            if window and (len(window) >= WINDOW_LINES or size + len(line) > WINDOW_BYTES):
                answers += self._run(window)
                window, size = [], 0
            window.append(_Request(line, key))
            size += len(line)
        return answers + self._run(window) if window else answers

    def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> Answer:
        """Close the user's connections; with `ban`, tell the browsers not to come back. Raises as `publish`."""
        return self._operate("disconnect", user_id=user_id, reason=reason, ban=ban)

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> Answer:
        """Take the conversation away from the user's connections. Raises as `publish`."""
        return self._operate("unsubscribe", user_id=user_id, conversation_id=conversation_id)

    def online(self) -> list[Id]:
        """Who is online: integers first, each kind sorted. Raises as `publish`."""
        return self._operate("presence").online or []

    def agents(self) -> list[Agent]:
        """Who is online, in the same order, and with which connections. Raises as `publish`."""
        answer = self._operate("presence", detail=True)
        if answer.agents is None:  # a server from before `detail`
            return [Agent(user_id, []) for user_id in answer.online or []]
        return answer.agents

    def send_lines(self, lines: Sequence[tuple[bytes, int | str]]) -> tuple[list[Answer | None], str]:
        """Send lines that were written elsewhere, such as those of a spool.

        :param lines: each with its newline and the `id` in it; each asks for an answer. At most `WINDOW_LINES` with
            `WINDOW_BYTES` together, or a single one: they are sent before an answer is read.
        :return: the answers, None for a line that got none within the deadline, and what went wrong, if anything did.
        :raises PushRefused: the server does not take our secret.
        """
        answers, _, words = self._attempt([_Request(line, id) for line, id in lines])
        return answers, words if None in answers else ""

    def ping(self) -> Answer:
        """Is the server there, and does it take our secret? Raises as `publish`."""
        return self._operate("ping")

    def close(self) -> None:
        """Close the connection. A later call opens another."""
        with self._lock:
            self._drop()

    def __enter__(self) -> BlockingPushClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # how a call is carried out

    def _operate(self, op: str, **fields: Any) -> Answer:
        id = new_key()
        return self._ask(_Request(operation_line(op, id=id, **fields), id))

    def _ask(self, request: _Request) -> Answer:
        answer = self._run([request])[0]
        if not answer.ok:
            raise answer.error()
        return answer

    def _run(self, requests: Sequence[_Request]) -> list[Answer]:
        """The answers to all of them."""
        answers, problem, words = self._attempt(requests)
        final = [answer for answer in answers if answer is not None]
        if len(final) < len(answers):
            raise PushUnavailable(f"no answer within {self._deadline:g} s: {words}") from problem
        return final

    def _attempt(self, requests: Sequence[_Request]) -> tuple[list[Answer | None], Exception | None, str]:
        """Ask until each has an answer that stays, or the deadline has passed.

        :return: the answers, what went wrong last, and that in words: with several addresses, at each of them.
        """
        self._notice_fork()
        until = time.monotonic() + self._deadline
        answers: list[Answer | None] = [None] * len(requests)
        problem: Exception | None = None
        problems: dict[str, Exception] = {}
        several = len(self._addresses) > 1
        if not self._lock.acquire(timeout=self._deadline):
            raise PushUnavailable("other threads' pushes took all the time")
        try:
            for attempt in range(1_000_000):
                open_ones = [at for at, answer in enumerate(answers) if answer is None or is_passing(answer)]
                if not open_ones:
                    break
                if attempt:
                    rounds, others = divmod(attempt, len(self._addresses))
                    # Another address need not wait for this one. Nor need the first retry of all: the server may have
                    # been restarted since we last spoke.
                    pause = 0 if others or (rounds == 1 and isinstance(problem, OSError)) else backoff(rounds - 1)
                    if time.monotonic() + pause >= until:
                        break
                    time.sleep(pause)
                try:
                    self._exchange(requests, open_ones, answers, until)
                    problem = None
                    if several and any(is_passing(answer) for answer in answers if answer is not None):
                        self._leave()
                except (OSError, msgspec.DecodeError) as error:
                    problem = problems[self._addresses[self._at].text] = error
                    self._leave()
                except BaseException:
                    self._drop()  # answers to this may still be on their way
                    raise
        finally:
            self._lock.release()
        if problem is None or not several:
            return answers, problem, str(problem or "silence")
        return answers, problem, "; ".join(f"{address}: {said}" for address, said in problems.items())

    def _exchange(
        self, requests: Sequence[_Request], asked: Sequence[int], answers: list[Answer | None], until: float
    ) -> None:
        """Send the requests at the positions `asked`, and put what is answered into `answers`."""
        opened = self._open(until)
        lines = b"".join(requests[at].line for at in asked)
        connection = self._limit(until)
        connection.sendall(self._auth + lines if opened and self._auth else lines)
        if opened and self._auth:
            answer = self._read_answer(until)
            if is_passing(answer):
                raise ConnectionRefusedError(f"{answer.code}: {answer.message}")
            if not answer.ok:
                raise answer.error()
        for at in asked:
            request = requests[at]
            if not request.ack:
                answers[at] = Answer(True, request.id)
                continue
            while (answer := self._read_answer(until)).id not in (request.id, None):
                log.warning("an event was refused: %s: %s (id %s)", answer.code, answer.message, answer.id)
            answers[at] = answer
            if answer.code == "line_too_long":
                raise ConnectionAbortedError("the server closed after a line that was too long")

    def _read_answer(self, until: float) -> Answer:
        while (end := self._buffer.find(b"\n")) < 0:
            received = self._limit(until).recv(65536)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._buffer += received
            if len(self._buffer) > MAX_ANSWER:
                raise ConnectionAbortedError("an answer without an end")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return parse_answer(line)

    # the connection

    def _limit(self, until: float) -> socket.socket:
        """The socket, with as much time as one step may take now."""
        assert self._socket is not None
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        self._socket.settimeout(min(self._timeout, remaining))
        return self._socket

    def _open(self, until: float) -> bool:
        """Have a connection. True when it is a new one."""
        if self._socket is not None and not self._is_alive(self._socket):
            self._drop()
        if self._socket is not None:
            return False
        seconds = min(self._connect_timeout, until - time.monotonic())
        if seconds <= 0:
            raise TimeoutError("the deadline has passed")
        address = self._addresses[self._at]
        self._socket = address.connect(seconds, self._tls if address.tls or self._is_all_tls else None)
        return True

    def _is_alive(self, connection: socket.socket) -> bool:
        """Whether the server has not closed it meanwhile. Late refusals go into the buffer."""
        connection.settimeout(0)
        try:
            received = connection.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        self._buffer += received
        return bool(received)

    def _notice_fork(self) -> None:
        """In a new process: the connection is the parent's, and the lock may be held by a thread left behind there."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._lock = threading.Lock()
            self._drop()

    def _leave(self) -> None:
        """The next connection is to the next address."""
        self._drop()
        self._at = (self._at + 1) % len(self._addresses)

    def _drop(self) -> None:
        self._buffer.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
