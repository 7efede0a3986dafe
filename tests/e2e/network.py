"""A private network: hosts in network namespaces, and a router between them that can drop packets.

Nothing of it is seen outside, and it is gone when its processes are. What is lost is lost without a word (no RST, no
ICMP), in both directions or in one of them: policy rules of the router drop what one host sends to another.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

__all__ = ["Network", "can_make_namespaces"]

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: int) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces. (`needs("iproute2")` is for the program.)"""
    try:
        _Namespace().close()
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class _Namespace:
    """A network namespace, kept by an idle process."""

    def __init__(self) -> None:
        def begin() -> None:
            _call(_libc.unshare, _CLONE_NEWNET)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        self._holder = subprocess.Popen(["sleep", "infinity"], preexec_fn=begin)
        self._there = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)

    @property
    def pid(self) -> int:
        return self._holder.pid

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Move this thread there for the block. Its sockets and processes stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _call(_libc.setns, self._there, _CLONE_NEWNET)
        try:
            yield
        finally:
            _call(_libc.setns, before, _CLONE_NEWNET)
            os.close(before)

    def ip(self, *commands: str) -> None:
        program = shutil.which("ip") or "/usr/sbin/ip"
        with self.inside():
            subprocess.run(
                [program, "-batch", "-"],
                input="\n".join(commands),
                check=True,
                text=True,
                capture_output=True,
                timeout=20,
            )

    def close(self) -> None:
        os.close(self._there)
        self._holder.kill()
        self._holder.wait()


class Network:
    """Hosts by name, each with the address 10.77.NUMBER.2 and its own loopback."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._hosts: dict[str, _Namespace] = {}
        self._router = _Namespace()
        self._rules: list[str] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        with self._router.inside(), open("/proc/sys/net/ipv4/ip_forward", "w") as forwarding:
            forwarding.write("1")
        for number, name in enumerate(self._names, 1):
            host = self._hosts[name] = _Namespace()
            self._router.ip(
                f"link add to{number} type veth peer name eth0 netns {host.pid}",
                f"addr add 10.77.{number}.1/24 dev to{number}",
                f"link set to{number} up",
            )
            host.ip(
                "link set lo up",
                f"addr add 10.77.{number}.2/24 dev eth0",
                "link set eth0 up",
                f"route add default via 10.77.{number}.1",
            )

    def address(self, name: str) -> str:
        """The host's address."""
        return f"10.77.{self._names.index(name) + 1}.2"

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Move this thread to the host for the block. Its sockets and processes stay there."""
        with self._hosts[name].inside():
            yield

    def cut(self, source: str, target: str) -> None:
        """Drop all packets from `source` to `target` from now on."""
        rule = f"from {self.address(source)} to {self.address(target)} blackhole"
        self._router.ip(f"rule add {rule}")
        self._rules.append(rule)

    def cut_both(self, first: str, other: str) -> None:
        """Drop all packets between the two."""
        self.cut(first, other)
        self.cut(other, first)

    def throttle(self, name: str, rate: int) -> None:
        """Limit what a host sends to `rate` bytes a second (tc-tbf(8)), with little memory for its sockets.

        Raises OSError if the kernel has no token bucket filter.
        """
        program = shutil.which("tc") or "/usr/sbin/tc"
        bucket = ("root", "tbf", "rate", f"{8 * rate}bit", "burst", "32kb", "latency", "200ms")
        with self.inside(name):
            done = subprocess.run(
                [program, "qdisc", "add", "dev", "eth0", *bucket], capture_output=True, text=True, timeout=20
            )
            if done.returncode:
                raise OSError(f"tc: {done.stderr.strip()}")
            with open("/proc/sys/net/ipv4/tcp_wmem", "w") as memory:
                memory.write("4096 16384 65536")

    def heal(self) -> None:
        """Drop no more packets."""
        if self._rules:
            self._router.ip(*(f"rule del {rule}" for rule in self._rules))
        self._rules.clear()

    def close(self) -> None:
        for host in (*self._hosts.values(), self._router):
            host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
