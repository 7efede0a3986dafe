"""An open connection of the asyncio client: it sends lines, and hands each response to its call."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from chatws.clients.addresses import Address
from chatws.clients.protocol import PushResult, Request, parse_result

__all__ = ["AsyncConnection"]

log = logging.getLogger(__name__)


class AsyncConnection:
    """An open connection, on which calls are pipelined.

    :param on_closed: called when it is closed, with whether no response was pending.
    :ivar error: why it is closed, or None while it is open.
    """

    def __init__(
        self,
        address: Address,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_closed: Callable[[bool], None],
    ) -> None:
        self.address = address
        self.error: OSError | None = None
        self._on_closed = on_closed
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._last_response = self._loop.time()
        self._is_retired = False
        self._pending: deque[tuple[int | str, asyncio.Future[PushResult]]] = deque()
        self._reading = asyncio.create_task(self._read())

    async def exchange(
        self,
        requests: Sequence[Request],
        indexes: Sequence[int],
        results: list[PushResult | None],
        timeout: float,
    ) -> None:
        """Send the requests at these positions, and put their results into `results`.

        :param timeout: seconds without any response after which the connection is closed.
        :raises OSError: the connection is closed, and some requests have no result.
        """
        if self.error is not None:
            raise self.error
        started = self._loop.time()
        futures: dict[asyncio.Future[PushResult], int] = {}
        for index in indexes:
            request = requests[index]
            if request.ack:
                future: asyncio.Future[PushResult] = self._loop.create_future()
                futures[future] = index
                self._pending.append((request.id, future))
        self._writer.write(b"".join(requests[index].line for index in indexes))
        try:
            async with asyncio.timeout(timeout):
                await self._writer.drain()
        except OSError as error:  # of the socket, or `TimeoutError`
            self.fail(error if str(error) else TimeoutError("the server does not read"))
        if self.error is None:
            for index in indexes:
                if not requests[index].ack:
                    results[index] = PushResult(True, requests[index].id)
        waiting = set(futures)
        while waiting:
            silent_at = max(started, self._last_response) + timeout
            done, waiting = await asyncio.wait(waiting, timeout=max(0.0, silent_at - self._loop.time()))
            for future in done:
                if future.exception() is None:
                    results[futures[future]] = future.result()
            if not done and self._loop.time() >= max(started, self._last_response) + timeout:
                self.fail(TimeoutError("the server is silent"))
        if self.error is not None and any(results[index] is None for index in indexes):
            raise self.error

    async def _read(self) -> None:
        """Read responses until the connection closes."""
        try:
            while True:
                line = await self._reader.readline()
                if not line.endswith(b"\n"):
                    raise ConnectionResetError("the server closed the connection")
                self._on_result(parse_result(line))
        except OSError as error:
            self.fail(error)
        except (ValueError, msgspec.DecodeError) as error:  # a line that is too long, or is no JSON
            self.fail(ConnectionAbortedError(f"the peer is not a chatws server: {error}"))
        finally:
            self.fail(ConnectionAbortedError("the event loop stopped"))  # without effect after another error

    def _on_result(self, result: PushResult) -> None:
        self._last_response = self._loop.time()
        if not self._pending or result.id not in (self._pending[0][0], None):
            log.warning("an event was rejected: %s: %s (id %s)", result.code, result.message, result.id)
            return
        _, future = self._pending.popleft()
        if not future.done():  # the call was cancelled
            future.set_result(result)
        if result.code == "line_too_long":
            self.fail(ConnectionAbortedError("the server closed the connection after a line that was too long"))
        elif self._is_retired and not self._pending:
            self.fail(ConnectionAbortedError("the client uses another address"))

    def retire(self) -> None:
        """Close as soon as no response is pending."""
        self._is_retired = True
        if not self._pending:
            self.fail(ConnectionAbortedError("the client uses another address"))

    def fail(self, error: OSError) -> None:
        """Close, and let the pending requests fail. Idempotent."""
        if self.error is not None:
            return
        self.error = error
        self._on_closed(not self._pending)
        while self._pending:
            _, future = self._pending.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()  # a cancelled call does not retrieve it
        self._writer.close()
        if asyncio.current_task() is not self._reading:
            self._reading.cancel()

    async def wait_closed(self) -> None:
        """Wait until the reading task has ended."""
        await asyncio.wait([self._reading])
