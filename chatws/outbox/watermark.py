"""Decides which rows of the outbox a poll reads.

Ids are assigned before the commit, so a smaller id may appear after a greater one. A poll reads the rows above the
greatest id that was seen, and the ids below it that were missing then: their transactions may still be open. It costs
a few index look-ups, however many deleted rows an open transaction keeps in the table.

A full scan (`chatws.outbox.full_scan`) finds what this misses: ids that begin again after TRUNCATE or a restore, and
gaps that were forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["MAX_GAPS", "Watermark"]

#: Remembered ids: a statement of some 10 KB. The full scan finds the others.
MAX_GAPS = 1000
#: Ids below the first row that is read: their transactions may be open since before this node held the outbox.
FIRST_GAPS = 100


class Watermark:
    """The ids that were seen, and those that were missing between them.

    :param gap_seconds: how long a missing id is remembered: a row that is older is not sent; 0 for ever.
    :ivar highest: rows above it have not been read.
    """

    def __init__(self, gap_seconds: float) -> None:
        self._gap_seconds = gap_seconds
        self.highest = 0
        self._gaps: dict[int, float] = {}

    def where(self, now: float) -> str:
        """Return the condition for the next poll."""
        if self._gap_seconds:
            self._gaps = {gap: seen for gap, seen in self._gaps.items() if now - seen < self._gap_seconds}
        above = f"id > {self.highest}"
        return f"{above} OR id IN ({', '.join(map(str, self._gaps))})" if self._gaps else above

    def lower(self, found: int) -> None:
        """Read again from the row `found`, which a full scan found below the watermark."""
        self.highest = min(self.highest, found - 1)

    def note(self, ids: Iterable[int], now: float) -> None:
        """Note the ids of rows that were read and sent.

        :param ids: ascending.
        """
        for number in ids:
            self._gaps.pop(number, None)
            if number > self.highest:
                lowest = number - (MAX_GAPS if self.highest else FIRST_GAPS)
                first = max(self.highest + 1, lowest)
                for gap in range(first, number):
                    self._gaps[gap] = now
                self.highest = number
        while len(self._gaps) > MAX_GAPS:
            del self._gaps[next(iter(self._gaps))]
