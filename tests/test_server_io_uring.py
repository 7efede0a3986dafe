"""Many sends by one system call: each socket gets its own, whatever becomes of the others."""

from __future__ import annotations

import gc
import socket
import sys
from array import array
from errno import EAGAIN, EBADF, EBUSY, ECANCELED, EINVAL, ENOSYS, EPERM, EPIPE

from twisted.trial.unittest import SynchronousTestCase

from chatws.server import io_uring
from chatws.server.io_uring import NULL_KEY, Ring, send_key
from tests.requirements import needs_io_uring
from tests.server_wire import open_files


def send(ring: Ring, batch: list[tuple[list[int], bytes]]) -> dict[int, int]:
    """Some sockets' keys, and what each of them gets; then others."""
    keys = array("Q", [key for some, _ in batch for key in some])
    return ring.send(keys, [data for _, data in batch], [len(some) for some, _ in batch])


class RingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.sockets: list[socket.socket] = []

    def tearDown(self) -> None:
        for sock in self.sockets:
            sock.close()

    def pairs(self, count: int, send_buffer: int = 0) -> tuple[list[int], list[socket.socket]]:
        """The keys of sockets to send on, and their other ends."""
        keys, readers = [], []
        for _ in range(count):
            sender, reader = socket.socketpair()
            sender.setblocking(False)
            reader.setblocking(False)
            if send_buffer:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            self.sockets += sender, reader
            keys.append(send_key(sender))
            readers.append(reader)
        return keys, readers

    def read(self, reader: socket.socket) -> bytes:
        data = b""
        try:
            while chunk := reader.recv(1 << 20):
                data += chunk
        except BlockingIOError:
            pass
        return data


@needs_io_uring
class SendTests(RingCase):
    def test_each_socket_gets_its_own_data(self) -> None:
        keys, readers = self.pairs(6)
        ring = Ring(8)
        assert send(ring, [(keys, b"to all")]) == {}
        assert send(ring, [(keys[:2], b"a"), (keys[2:5], b"bcd"), (keys[5:], b"ef")]) == {}
        assert [self.read(reader) for reader in readers] == [
            b"to all" + own for own in (b"a", b"a", b"bcd", b"bcd", b"bcd", b"ef")
        ]

    def test_more_than_fit_into_the_queue_and_the_queue_begins_again(self) -> None:
        keys, readers = self.pairs(7)
        ring = Ring(4)
        for count in (1, 3, 7, 2, 6, 5, 4) * 3:
            assert send(ring, [(keys[:count], b"x" * count)]) == {}
        sent = [3 * sum(count for count in range(1, 8) if count > place) for place in range(7)]
        assert [len(self.read(reader)) for reader in readers] == sent

    def test_a_full_socket_is_reported_and_others_get_their_data(self) -> None:
        (full,), (slow,) = self.pairs(1, send_buffer=4096)
        keys, readers = self.pairs(2)
        ring = Ring(4)
        data = b"x" * 500_000
        answers = [send(ring, [([keys[0], full, keys[1]], b"y"), ([full], data)])]
        while 1 not in answers[-1]:
            answers.append(send(ring, [([keys[0], full, keys[1]], b"y")]))
            assert len(answers) < 500_000
        assert answers[-1] == {1: -EAGAIN}
        assert set(answers[0]) == {3}
        assert answers[0][3] == -EAGAIN or 0 < answers[0][3] < len(data)
        assert [len(self.read(reader)) for reader in readers] == [len(answers)] * 2
        assert len(self.read(slow)) == len(answers) - 1 + max(answers[0][3], 0)

    def test_stream_socket_accepts_a_part(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reader = socket.create_connection(listener.getsockname())
            sender = listener.accept()[0]
        self.sockets += reader, sender
        sender.setblocking(False)
        reader.settimeout(10)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        data = bytes(range(256)) * 4000
        ((place, taken),) = send(Ring(), [([send_key(sender)], data)]).items()
        assert place == 0
        assert 0 < taken < len(data)
        result = b""
        while len(result) < taken:
            result += reader.recv(65536)
        assert result == data[:taken]

    def test_broken_and_invalid_sockets_fail_alone(self) -> None:
        ring = Ring(8)
        keys, readers = self.pairs(5)
        readers[1].close()
        self.sockets[4].close()  # the sender of the third
        keys[3] = NULL_KEY
        for _ in range(3):
            assert send(ring, [(keys, b"x")]) == {1: -EPIPE, 2: -EBADF, 3: -EBADF}
        assert [self.read(readers[index]) for index in (0, 2, 3, 4)] == [b"xxx", b"", b"", b"xxx"]

    def test_closed_socket_has_the_null_key(self) -> None:
        sock = socket.socket()
        sock.close()
        assert send_key(sock) == NULL_KEY

    def test_too_much_data_is_refused(self) -> None:
        keys, readers = self.pairs(2)
        ring = Ring()
        for batch in ([(keys, b"x" * (Ring.MAX_PAYLOAD + 1))], [(keys[:1], b"x" * Ring.MAX_PAYLOAD), (keys[1:], b"x")]):
            self.assertRaises(ValueError, send, ring, batch)
        assert [self.read(reader) for reader in readers] == [b""] * 2

    def test_a_closed_ring_leaves_no_descriptor(self) -> None:
        before = open_files()
        ring = Ring()
        keys, readers = self.pairs(1)
        send(ring, [(keys, b"x")])
        assert self.read(readers[0]) == b"x"
        assert open_files() > before + 2
        del ring
        assert open_files() == before + 2


@needs_io_uring
class FaultTests(RingCase):
    """What the kernel may answer, though it seldom does. A ring has sent one byte for itself before."""

    def enter(self, ring: Ring, *answers: int | OSError | None) -> None:
        """Let `io_uring_enter` do this, call for call: take so many of the sends only, or fail. None does as asked."""
        left = list(answers)
        whole = ring._call

        def call(number: int, descriptor: int, count: int) -> int:
            answer = left.pop(0) if left else None
            if isinstance(answer, OSError):
                raise answer
            return whole(number, descriptor, count if answer is None else answer)

        ring._call = call

    def test_unsubmitted_entries_are_submitted_again(self) -> None:
        keys, readers = self.pairs(8)
        ring = Ring(8)
        self.enter(ring, 3, InterruptedError(), 1)
        assert send(ring, [(keys, b"a")]) == {}
        assert send(ring, [(keys, b"b")]) == {}
        assert [self.read(reader) for reader in readers] == [b"ab"] * 8

    def test_entries_that_cannot_be_submitted_are_reported_as_full(self) -> None:
        keys, readers = self.pairs(8)
        ring = Ring(8)
        for error in (EAGAIN, EBUSY):
            self.enter(ring, 3, OSError(error, "not now"))
            assert send(ring, [(keys, b"a")]) == dict.fromkeys(range(3, 8), -EAGAIN)
            assert ring.error is None
            assert send(ring, [(keys, b"b")]) == {}
        assert [self.read(reader) for reader in readers] == [b"abab"] * 3 + [b"bb"] * 5

    def test_a_ring_that_fails_is_not_used_again(self) -> None:
        keys, readers = self.pairs(8)
        ring = Ring(4)
        self.enter(ring, None, 1, PermissionError(EPERM, "no more"))
        assert send(ring, [(keys, b"a")]) == dict.fromkeys(range(4, 8), -EAGAIN)
        assert isinstance(ring.error, PermissionError)
        assert send(ring, [(keys, b"b")]) == dict.fromkeys(range(8), -EAGAIN)
        assert [self.read(reader) for reader in readers] == [b"a"] * 4 + [b""] * 4

    def test_completions_in_another_order_are_assigned_to_their_sockets(self) -> None:
        keys, readers = self.pairs(4)
        readers[1].close()
        ring = Ring(4)

        def enter(count: int) -> int:
            taken = Ring._enter(ring, count)
            for column in (ring._completed_ids, ring._results) if count == 3 else ():
                column[1:4] = column[1:4][::-1]
            return taken

        ring._enter = enter
        assert send(ring, [(keys, b"a")]) == {1: -EPIPE}
        assert [self.read(readers[index]) for index in (0, 2, 3)] == [b"a"] * 3

    def test_a_missing_completion_is_not_a_success(self) -> None:
        keys, _ = self.pairs(4)
        ring = Ring(4)

        def enter(count: int) -> int:
            taken = Ring._enter(ring, count)
            ring._completion_tail[0] -= 1
            return taken

        ring._enter = enter
        assert send(ring, [(keys, b"a")]) == {2: -ECANCELED, 3: -EAGAIN}
        assert ring.error is not None
        assert ring.error.errno == ECANCELED


class UnavailableTests(SynchronousTestCase):
    def rejected(self) -> int | None:
        gc.collect()
        before = open_files()
        errno = self.assertRaises(OSError, Ring).errno
        gc.collect()
        assert open_files() == before
        return errno

    def test_setup_rejected_by_the_kernel_is_reported(self) -> None:
        def call(_: Ring, *arguments: int) -> int:
            raise PermissionError(EPERM, "Operation not permitted")

        self.patch(Ring, "_call", call)
        assert self.rejected() == EPERM

    def test_an_unknown_system_call_is_unavailable(self) -> None:
        self.patch(io_uring, "_SYS_SETUP", 100_000)
        assert self.rejected() == ENOSYS

    @needs_io_uring
    def test_setup_with_a_kernel_that_sends_nothing_is_reported(self) -> None:
        self.patch(io_uring, "_OP_SEND", 200)
        assert self.rejected() == EINVAL

    @needs_io_uring
    def test_a_sandbox_that_forbids_enter_is_unavailable(self) -> None:
        whole = Ring._call

        def call(ring: Ring, number: int, *arguments: int) -> int:
            if number == io_uring._SYS_ENTER:
                raise PermissionError(EPERM, "Operation not permitted")
            return whole(ring, number, *arguments)

        self.patch(Ring, "_call", call)
        assert self.rejected() == EPERM

    def test_setup_on_another_system_is_reported(self) -> None:
        self.patch(sys, "platform", "freebsd14")
        assert self.rejected() == ENOSYS
