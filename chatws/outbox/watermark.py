"""Decides which rows of the outbox a poll reads.

Ids are assigned before the commit, so a smaller id may appear after a greater one. A poll reads the rows above the
greatest id that was seen, and the ids below it that were missing then: their transactions may still be open. It costs
a few index look-ups, however many deleted rows an open transaction keeps in the table.

A full scan finds what this misses: ids that begin again after TRUNCATE or a restore, and gaps that were forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["FULL_SCAN_INTERVAL", "MAX_GAPS", "Watermark"]

#: Remembered ids: a statement of some 10 KB. The full scan finds the others.
MAX_GAPS = 1000
#: Ids below the first row that is read: their transactions may be open since before this node held the outbox.
FIRST_GAPS = 100
#: Seconds between full scans, and the longest share of the time that they may take.
FULL_SCAN_INTERVAL, FULL_SCAN_SHARE = 10.0, 0.02


class Watermark:
    """The ids that were seen, and those that were missing between them.

    :param gap_seconds: how long a missing id is remembered: a row that is older is not sent; 0 for ever.
    """

    def __init__(self, gap_seconds: float) -> None:
        self._gap_seconds = gap_seconds
        self._highest = 0
        self._gaps: dict[int, float] = {}
        self._next_full_scan = 0.0

    def where(self, now: float) -> tuple[str, bool]:
        """Return the condition for the next poll, and whether it is a full scan."""
        if now >= self._next_full_scan:
            return "id > 0", True
        if self._gap_seconds:
            self._gaps = {gap: seen for gap, seen in self._gaps.items() if now - seen < self._gap_seconds}
        above = f"id > {self._highest}"
        return (f"{above} OR id IN ({', '.join(map(str, self._gaps))})" if self._gaps else above), False

    def note_full_scan(self, now: float, seconds: float) -> None:
        """Schedule the next full scan.

        :param seconds: how long the last one took.
        """
        self._next_full_scan = now + max(FULL_SCAN_INTERVAL, seconds / FULL_SCAN_SHARE)

    def require_full_scan(self) -> None:
        """Make the next poll a full scan: it did not read all rows, or some were not sent."""
        self._next_full_scan = 0.0

    def note(self, ids: Iterable[int], now: float) -> None:
        """Note the ids of rows that were read and sent.

        :param ids: ascending.
        """
        for number in ids:
            self._gaps.pop(number, None)
            if number > self._highest:
                lowest = number - (MAX_GAPS if self._highest else FIRST_GAPS)
                first = max(self._highest + 1, lowest)
                for gap in range(first, number):
                    self._gaps[gap] = now
                self._highest = number
        while len(self._gaps) > MAX_GAPS:
            del self._gaps[next(iter(self._gaps))]
