"""From events to runs: which frames go to which connections, with as few distinct writes as possible.

A run is (connections, frames): all of its frames go to each of its connections in one write. Consecutive events for
the same channels make one run. Events that each leave out somebody else (agents' statuses do: the server's own report
goes to all but that agent) still make one run for everybody who misses none, plus one for each user left out, so that
a batch of n of them costs its recipients once and not n times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from chatws.brokers.contract import Audience, Event
from chatws.chat.audience import user_channel
from chatws.chat.hub import Hub

__all__ = ["make_runs"]

T = TypeVar("T")

_channels_of = attrgetter("audience.channels")


def make_runs(
    events: Sequence[Event], hub: Hub[T], make_frame: Callable[[Event], bytes]
) -> list[tuple[Collection[T], list[bytes]]]:
    """The runs of `events`, in their order; sets `delivered` of each event.

    :param make_frame: called once for each event that anybody gets.
    """
    runs: list[tuple[Collection[T], list[bytes]]] = []
    for channels, alike in groupby(events, _channels_of):
        batch = [*alike]
        event = batch[0]
        if len(batch) == 1:
            # the usual case, without what a longer batch needs
            recipients = hub.recipients(event.audience)
            event.delivered = count = len(recipients)
            if count:
                runs.append((recipients, [make_frame(event)]))
        elif len({event.audience.except_user_id for event in batch}) == 1:
            _run(batch, hub.recipients(event.audience), make_frame, runs)
        else:
            _runs_with_gaps(batch, channels, hub, make_frame, runs)
    return runs


def _run(
    batch: list[Event],
    recipients: Collection[T],
    make_frame: Callable[[Event], bytes],
    runs: list[tuple[Collection[T], list[bytes]]],
) -> None:
    for event in batch:
        event.delivered = len(recipients)
    if recipients:
        runs.append((recipients, [make_frame(event) for event in batch]))


def _runs_with_gaps(
    batch: list[Event],
    channels: tuple[str, ...],
    hub: Hub[T],
    make_frame: Callable[[Event], bytes],
    runs: list[tuple[Collection[T], list[bytes]]],
) -> None:
    everybody = set(hub.recipients(Audience(channels)))
    if not everybody:
        return
    frames = [make_frame(event) for event in batch]
    gaps: dict[object, list[T]] = {}
    missed: dict[object, list[int]] = {}
    for index, event in enumerate(batch):
        user_id = event.audience.except_user_id
        if user_id is not None and user_id not in gaps:
            gaps[user_id] = [one for one in hub.listeners(user_channel(user_id)) if one in everybody]
        missed.setdefault(user_id, []).append(index)
        event.delivered = len(everybody) - len(gaps.get(user_id, ()))
    whole = everybody.difference(*gaps.values())
    if whole:
        runs.append((list(whole), frames))
    for left_out, connections in gaps.items():
        rest = frames.copy()
        for index in reversed(missed[left_out]):
            del rest[index]
        if connections and rest:
            runs.append((connections, rest))
