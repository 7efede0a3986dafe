"""Sends on many sockets in one system call: io_uring(7), Linux 5.6 or newer. Hot path: column code.

An event for 500 connections is 500 sends. One by one, each costs a system call and a Python call. Here they are written
into the submission queue, which is memory shared with the kernel. One `io_uring_enter` executes them in order. The
kernel does nothing later: if a socket cannot accept data at once, the result is EAGAIN, as from `send` (MSG_DONTWAIT).
So when `Ring.send` returns, everything is done and the queues are empty.

`Ring` uses no kernel thread (SQPOLL), no registered files or buffers, and only one operation. If the kernel has no
io_uring or does not permit it (Docker's default profile, `kernel.io_uring_disabled`), `Ring()` raises OSError. The
caller then sends one by one. The system calls that liburing wraps are made with ctypes: the data here is numbers in
shared memory, which a binding would copy once more.

The plain reference of `Ring.send` is one `socket.send` for each key (`chatws.server.fanout`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
from array import array
from collections.abc import Sequence
from errno import EAGAIN, EBUSY, ECANCELED, ENOMEM, ENOSYS
from itertools import accumulate
from operator import mul
from struct import Struct

__all__ = ["NULL_KEY", "Ring", "send_key"]

#: System calls (linux/unistd.h), with the same numbers on all architectures.
_SYS_SETUP, _SYS_ENTER = 425, 426
#: Constants of linux/io_uring.h: IORING_SETUP_CQSIZE, IORING_FEAT_SINGLE_MMAP, IORING_OFF_SQES, IORING_OP_SEND.
_SETUP_CQSIZE = 1 << 3
_FEATURE_SINGLE_MMAP = 1 << 0
_OFFSET_SQES = 0x10000000
_OP_SEND = 26
#: MSG_DONTWAIT | MSG_NOSIGNAL (bits/socket.h), which the `socket` modules of Windows and macOS lack.
_SEND_FLAGS = 0x40 | 0x4000
#: The key of no socket: a send on the descriptor -1, which fails with EBADF.
NULL_KEY = _OP_SEND | 0xFFFFFFFF << 32
_pack_address, _pack_size = Struct("Q").pack, Struct("i").pack
#: The heads and tails of the queues are 32-bit counters that wrap around.
_COUNTER_SIZE = 1 << 32


def send_key(sock: socket.socket) -> int:
    """Return the key of a socket for a `Ring`: the first eight bytes of a submission (`struct io_uring_sqe`).

    The key has the socket's descriptor. Drop it when the socket is closed: the next socket may get the same descriptor.
    """
    return _OP_SEND | (sock.fileno() & 0xFFFFFFFF) << 32


class Ring:
    """A submission queue and a completion queue for sends.

    :param entries: sends that are submitted together at most, a power of two.
    :raises OSError: io_uring is unavailable.
    :ivar error: why the kernel stopped to accept submissions, or None. The ring is then unusable.
    :cvar MAX_PAYLOAD: bytes of different data that can be sent together.
    """

    #: The buffer is allocated once. 1 MiB holds the events of one turn of the reactor many times over.
    MAX_PAYLOAD = 1 << 20

    _descriptor = -1

    def __init__(self, entries: int = 1024) -> None:
        self.error: OSError | None = None
        if sys.platform != "linux" or sys.byteorder != "little":
            raise _unsupported()
        self._system_call = ctypes.CDLL(None, use_errno=True).syscall
        self._system_call.argtypes = [ctypes.c_long] * 7
        self._system_call.restype = ctypes.c_long
        # struct io_uring_params: options go in, offsets into the shared memory come out
        parameters = (ctypes.c_uint32 * 30)(0, entries, _SETUP_CQSIZE)
        self._descriptor = self._call(_SYS_SETUP, entries, ctypes.addressof(parameters))
        if not parameters[5] & _FEATURE_SINGLE_MMAP:
            raise _unsupported()
        self._entries = entries
        tail, indices = parameters[11] // 4, parameters[16] // 4
        head, completed, completions = parameters[20] // 4, parameters[21] // 4, parameters[25]
        size = max(4 * (indices + entries), completions + 16 * entries)
        shared = memoryview(mmap.mmap(self._descriptor, size))
        words = shared.cast("I")
        words[indices : indices + entries] = array("I", range(entries))
        self._submission_tail, self._completion_head, self._completion_tail = (
            words[tail:],
            words[head:],
            words[completed:],
        )
        # struct io_uring_cqe: user_data, result, flags
        completion_queue = shared[completions : completions + 16 * entries]
        self._completed_ids, self._results = completion_queue.cast("Q")[0::2], completion_queue.cast("i")[2::4]
        # struct io_uring_sqe: operation and descriptor, offset, address, length and flags, user_data …
        submissions = memoryview(mmap.mmap(self._descriptor, 64 * entries, offset=_OFFSET_SQES))
        queue = submissions.cast("Q")
        self._keys, self._addresses = queue[0::8], queue[2::8]
        sizes_and_flags = submissions.cast("i")
        self._sizes = sizes_and_flags[6::16]
        sizes_and_flags[7::16] = array("i", [_SEND_FLAGS]) * entries
        self._ids = memoryview(array("Q", range(entries)))
        queue[4::8] = self._ids  # user_data, which the completion repeats
        buffer = mmap.mmap(-1, self.MAX_PAYLOAD)
        self._buffer = memoryview(buffer)
        self._buffer_address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._probe()

    def _probe(self) -> None:
        """Send one byte: older kernels have io_uring without sends, and sandboxes may permit only a part of it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            incomplete = self.send(array("Q", [send_key(ours)]), [b"?"], [1])
            if self.error is not None:
                raise self.error
            if incomplete:
                raise OSError(-incomplete[0], os.strerror(-incomplete[0]))
            if theirs.recv(2) != b"?":
                raise _unsupported()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def send(self, keys: array[int], payloads: Sequence[bytes], counts: Sequence[int]) -> dict[int, int]:
        """Send on many sockets, in the order of `keys`. Everything is done when this returns.

        :param keys: keys of sockets (`send_key`), an array of type Q.
        :param payloads: the data.
        :param counts: for each payload, how many of the keys it is for. The keys are in the order of the payloads.
        :return: results of the sockets that did not accept everything, by index into `keys`: the number of bytes that
            were accepted, or a negative error number.
        :raises ValueError: more than `MAX_PAYLOAD` bytes of data.
        """
        data = payloads[0] if len(payloads) == 1 else b"".join(payloads)
        self._buffer[: len(data)] = data
        if len(payloads) == 1:
            addresses, sizes = array("Q", [self._buffer_address]) * len(keys), array("i", [len(data)]) * len(keys)
        else:
            lengths = [*map(len, payloads)]
            starts = accumulate(lengths, initial=self._buffer_address)
            addresses = array("Q", b"".join(map(mul, map(_pack_address, starts), counts)))
            sizes = array("i", b"".join(map(mul, map(_pack_size, lengths), counts)))
        return self._submit(keys, addresses, sizes)

    def _submit(self, keys: array[int], addresses: array[int], sizes: array[int]) -> dict[int, int]:
        incomplete: dict[int, int] = {}
        done, end = 0, len(keys)
        while done < end and self.error is None:
            tail = self._submission_tail[0]
            first = tail % self._entries
            count = min(end - done, self._entries - first)
            until = done + count
            self._keys[first : first + count] = keys[done:until]
            self._addresses[first : first + count] = addresses[done:until]
            self._sizes[first : first + count] = sizes[done:until]
            self._submission_tail[0] = (tail + count) % _COUNTER_SIZE
            submitted = self._enter(count)
            self._collect(first, sizes[done : done + submitted], done, incomplete)
            done += submitted
            if submitted < count:
                # without SQPOLL the kernel reads the tail only in `_enter`
                self._submission_tail[0] = (tail + submitted) % _COUNTER_SIZE
                break
        incomplete.update(dict.fromkeys(range(done, end), -EAGAIN))
        return incomplete

    def _enter(self, count: int) -> int:
        """Execute `count` submissions, and return how many the kernel accepted."""
        submitted = 0
        while submitted < count:
            try:
                submitted += self._call(_SYS_ENTER, self._descriptor, count - submitted)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in (EAGAIN, EBUSY, ENOMEM):
                    self.error = error
                break
        return submitted

    def _collect(self, first: int, sizes: array[int], done: int, incomplete: dict[int, int]) -> None:
        """Read the completions of the submissions from `first` on.

        :param sizes: the result of each submission if its socket accepted everything.
        :param done: the index of the first key. Other results are added to `incomplete` by index.
        """
        count = len(sizes)
        completed = self._completion_tail[0]
        last = first + (completed - self._completion_head[0]) % _COUNTER_SIZE
        ids, results = self._completed_ids[first:last], self._results[first:last]
        self._completion_head[0] = completed
        if ids == self._ids[first : first + count] and results == memoryview(sizes):
            return
        result_by_id = dict(zip(ids.tolist(), results.tolist(), strict=True))
        if len(result_by_id) != count:
            # the kernel deferred some in spite of MSG_DONTWAIT: their results are unknown
            self.error = OSError(ECANCELED, "the kernel did not complete all submissions")
        for index, size in enumerate(sizes):
            result = result_by_id.get(first + index, -ECANCELED)
            if result != size:
                incomplete[done + index] = result

    def _call(self, *arguments: int) -> int:
        result: int = self._system_call(*arguments, *[0] * (7 - len(arguments)))
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def _unsupported() -> OSError:
    return OSError(ENOSYS, os.strerror(ENOSYS))
