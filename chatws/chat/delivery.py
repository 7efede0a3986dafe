"""From events to runs: which frames go to which connections, with as few distinct writes as possible.

A run is (connections, frames): all of its frames go to each of its connections in one write. Consecutive events for
the same channels make one run. Events that each leave out somebody else (agents' statuses do: the server's own report
goes to all but that agent) still make one run for everybody who misses none, plus one for each user left out, so that
a batch of n of them costs its recipients once and not n times.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import compress, groupby
from operator import attrgetter
from typing import TypeVar

from chatws.brokers.contract import Audience, Event
from chatws.chat.audience import user_channel
from chatws.chat.hub import Hub

__all__ = ["make_runs"]

T = TypeVar("T")

_audience_of, _channels_of = attrgetter("audience"), attrgetter("audience.channels")


def make_runs(
    events: Sequence[Event], hub: Hub[T], make_frames: Callable[[Sequence[Event]], list[bytes]]
) -> list[tuple[Collection[T], Sequence[bytes]]]:
    """The runs of `events`, in their order; sets `delivered` of each event.

    :param make_frames: called once, at most, for each event that anybody gets.
    """
    if len({*map(_channels_of, events)}) == len(events):
        return _runs_apart(events, hub, make_frames)
    runs: list[tuple[Collection[T], Sequence[bytes]]] = []
    for channels, alike in groupby(events, _channels_of):
        batch = [*alike]
        if len({event.audience.except_user_id for event in batch}) == 1:
            recipients = hub.recipients(batch[0].audience)
            for event in batch:
                event.delivered = len(recipients)
            if recipients:
                runs.append((recipients, make_frames(batch)))
        else:
            _runs_with_gaps(batch, channels, hub, make_frames, runs)
    return runs


def _runs_apart(
    events: Sequence[Event], hub: Hub[T], make_frames: Callable[[Sequence[Event]], list[bytes]]
) -> list[tuple[Collection[T], Sequence[bytes]]]:
    """The same, where no two events are for the same channels: the usual, in few steps for each."""
    recipients = hub.recipients_of_each([*map(_audience_of, events)])
    counts = [*map(len, recipients)]
    for event, count in zip(events, counts, strict=True):
        event.delivered = count
    if not all(counts):
        events, recipients = [*compress(events, counts)], [*compress(recipients, counts)]
    return [*zip(recipients, zip(make_frames(events), strict=True), strict=True)]


def _runs_with_gaps(
    batch: list[Event],
    channels: tuple[str, ...],
    hub: Hub[T],
    make_frames: Callable[[Sequence[Event]], list[bytes]],
    runs: list[tuple[Collection[T], Sequence[bytes]]],
) -> None:
    everybody = set(hub.recipients(Audience(channels)))
    if not everybody:
        return
    frames = make_frames(batch)
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
