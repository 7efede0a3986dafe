"""Many sockets' sends in one system call: io_uring(7), Linux 5.6 or newer.

An event for five hundred is five hundred sends. Asked for one by one, each costs an entry into the kernel and a call of
Python's; here they are written into the submission queue, which is memory shared with the kernel, and carried out in
order by one `io_uring_enter`. Nothing goes on behind the server's back: a send that the socket cannot take at once is
answered with EAGAIN, as by `send` (MSG_DONTWAIT), so when `Ring.send` returns, all is done and the queues are empty.

There is no thread of the kernel's (no SQPOLL), no registered file or buffer, and only the one operation. Where the
kernel has no io_uring or does not permit it (Docker's default profile, `kernel.io_uring_disabled`), `Ring()` raises
OSError, and whoever wanted one sends one by one. The three calls that liburing would be asked for are made by ctypes:
what is written here is numbers in shared memory, which a binding would only copy once more.
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

__all__ = ["NOTHING", "Ring", "send_key"]

#: System calls (linux/unistd.h), with the same numbers on all architectures.
_SETUP, _ENTER = 425, 426
#: What else is needed of linux/io_uring.h.
_CQSIZE = 1 << 3
_SINGLE_MMAP = 1 << 0
_SUBMISSIONS = 0x10000000
_OP_SEND = 26
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
#: The key of no socket: a send to no file, which fails (EBADF).
NOTHING = _OP_SEND | 0xFFFFFFFF << 32
_pack_address, _pack_size = Struct("Q").pack, Struct("i").pack
#: The queues' ends count up to here, and begin again.
_WRAP = 1 << 32


def send_key(one: socket.socket) -> int:
    """What stands for this socket in a `Ring`: the first eight bytes of a submission.

    It holds the socket's number. Whoever keeps it has to forget it when the socket is closed: the next one may get the
    same.
    """
    return _OP_SEND | (one.fileno() & 0xFFFFFFFF) << 32


class Ring:
    """A submission queue and a completion queue, for sends.

    :param entries: sends that are submitted together at most; a power of two.
    :raises OSError: there is no io_uring here.
    :ivar failed: why the kernel took no more, or None. Then this is of no use any more.
    :cvar ROOM: bytes of different data that can be sent together.
    """

    ROOM = 1 << 20

    _descriptor = -1

    def __init__(self, entries: int = 1024) -> None:
        self.failed: OSError | None = None
        if sys.platform != "linux" or sys.byteorder != "little":
            raise _unknown()
        self._system_call = ctypes.CDLL(None, use_errno=True).syscall
        self._system_call.argtypes = [ctypes.c_long] * 7
        self._system_call.restype = ctypes.c_long
        # struct io_uring_params: what is asked for goes in, the offsets of what lies in the shared memory come out
        parameters = (ctypes.c_uint32 * 30)(0, entries, _CQSIZE)
        self._descriptor = self._call(_SETUP, entries, ctypes.addressof(parameters))
        if not parameters[5] & _SINGLE_MMAP:
            raise _unknown()
        self._entries = entries
        tail, indices = parameters[11] // 4, parameters[16] // 4
        head, completed, completions = parameters[20] // 4, parameters[21] // 4, parameters[25]
        size = max(4 * (indices + entries), completions + 16 * entries)
        shared = memoryview(mmap.mmap(self._descriptor, size))
        words = shared.cast("I")
        words[indices : indices + entries] = array("I", range(entries))
        self._tail, self._head, self._completed = words[tail:], words[head:], words[completed:]
        found = shared[completions : completions + 16 * entries]
        self._found, self._results = found.cast("Q")[0::2], found.cast("i")[2::4]
        submissions = memoryview(mmap.mmap(self._descriptor, 64 * entries, offset=_SUBMISSIONS))
        queue = submissions.cast("Q")
        self._keys, self._addresses = queue[0::8], queue[2::8]
        sizes_and_flags = submissions.cast("i")
        self._sizes = sizes_and_flags[6::16]
        sizes_and_flags[7::16] = array("i", [_FLAGS]) * entries
        self._places = memoryview(array("Q", range(entries)))
        queue[4::8] = self._places  # user_data, which the completion repeats
        area = mmap.mmap(-1, self.ROOM)
        self._area = memoryview(area)
        self._area_at = ctypes.addressof(ctypes.c_char.from_buffer(area))
        self._try()

    def _try(self) -> None:
        """See that it sends: older kernels have an io_uring without that, and sandboxes permit a part of it."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            left = self.send(array("Q", [send_key(ours)]), [b"?"], [1])
            if self.failed is not None:
                raise self.failed
            if left:
                raise OSError(-left[0], os.strerror(-left[0]))
            if theirs.recv(2) != b"?":
                raise _unknown()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def send(self, keys: array[int], blobs: Sequence[bytes], counts: Sequence[int]) -> dict[int, int]:
        """Send to many sockets, in this order. All is done when this returns.

        :param keys: of sockets (`send_key`), an array of type Q.
        :param blobs: what they get, and :param counts: how many of the keys each of these is for, one after the other.
        :return: those whose socket has not taken all, by their place in `keys`: how many bytes it took, or a negative
            error number.
        :raises ValueError: more than `ROOM` bytes of data.
        """
        data = blobs[0] if len(blobs) == 1 else b"".join(blobs)
        self._area[: len(data)] = data
        if len(blobs) == 1:
            addresses, sizes = array("Q", [self._area_at]) * len(keys), array("i", [len(data)]) * len(keys)
        else:
            lengths = [*map(len, blobs)]
            starts = accumulate(lengths, initial=self._area_at)
            addresses = array("Q", b"".join(map(mul, map(_pack_address, starts), counts)))
            sizes = array("i", b"".join(map(mul, map(_pack_size, lengths), counts)))
        return self._submit(keys, addresses, sizes)

    def _submit(self, keys: array[int], addresses: array[int], sizes: array[int]) -> dict[int, int]:
        left: dict[int, int] = {}
        done, end = 0, len(keys)
        while done < end and self.failed is None:
            tail = self._tail[0]
            first = tail % self._entries
            count = min(end - done, self._entries - first)
            until = done + count
            self._keys[first : first + count] = keys[done:until]
            self._addresses[first : first + count] = addresses[done:until]
            self._sizes[first : first + count] = sizes[done:until]
            self._tail[0] = (tail + count) % _WRAP
            taken = self._enter(count)
            self._collect(first, sizes[done : done + taken], done, left)
            done += taken
            if taken < count:
                self._tail[0] = (tail + taken) % _WRAP  # the kernel looks at it in `_enter` alone
                break
        left.update(dict.fromkeys(range(done, end), -EAGAIN))
        return left

    def _enter(self, count: int) -> int:
        """Have `count` submissions carried out, and tell how many of them were."""
        taken = 0
        while taken < count:
            try:
                taken += self._call(_ENTER, self._descriptor, count - taken)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in (EAGAIN, EBUSY, ENOMEM):
                    self.failed = error
                break
        return taken

    def _collect(self, first: int, sizes: array[int], done: int, left: dict[int, int]) -> None:
        """Take the results of what stands from `first` on, and note in `left` what is missing, from `done` on."""
        count = len(sizes)
        completed = self._completed[0]
        last = first + (completed - self._head[0]) % _WRAP
        places, results = self._found[first:last], self._results[first:last]
        self._head[0] = completed
        if places == self._places[first : first + count] and results == memoryview(sizes):
            return
        found = dict(zip(places.tolist(), results.tolist(), strict=True))
        if len(found) != count:
            # the kernel put some off, which it was asked not to do: nobody knows what comes of them
            self.failed = OSError(ECANCELED, "the kernel has not done what it was asked to do at once")
        for index, size in enumerate(sizes):
            result = found.get(first + index, -ECANCELED)
            if result != size:
                left[done + index] = result

    def _call(self, *arguments: int) -> int:
        result: int = self._system_call(*arguments, *[0] * (7 - len(arguments)))
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result


def _unknown() -> OSError:
    return OSError(ENOSYS, os.strerror(ENOSYS))
