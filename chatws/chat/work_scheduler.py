"""Run large work in short steps, between which the reactor serves everything else.

A job is a function that does one short step. Jobs have a key, normally a user. Keys take turns, one step each, so a
key with a thousand jobs gets no more time than one with a single job. Live events get every second step, because
they are for many users. A turn of the reactor runs steps for `TURN_SECONDS`. The next turn follows after the reactor
has served its sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from twisted.logger import Logger

from chatws.interfaces import Clock, TimerHandle

__all__ = ["Job", "WorkScheduler"]

log = Logger()

#: Seconds of steps in one turn of the reactor. Nobody notices the delay, and the work proceeds at nearly full speed.
TURN_SECONDS = 0.002

#: The key of live events.
_LIVE = "live"


class Job:
    """Work that waits for its next step.

    :ivar step: does one step, and returns whether more are to come. None once the job is cancelled or done.
    """

    __slots__ = ("step",)

    def __init__(self, step: Callable[[], bool]) -> None:
        self.step: Callable[[], bool] | None = step

    def cancel(self) -> None:
        """Drop the remaining steps. Idempotent."""
        self.step = None


class WorkScheduler:
    """Runs jobs, fairly between their keys. `len` is the number of keys with jobs.

    :ivar steps: steps that have run.
    """

    def __init__(self, clock: Clock) -> None:
        self.steps = 0
        self._clock = clock
        # In the order of their turns. Dictionaries keep the order of insertion.
        self._queues: dict[Hashable, deque[Job]] = {}
        self._timer: TimerHandle | None = None
        self._taken = 0.0  # part of this turn that has been taken
        self._is_running = self._was_live = False

    def __len__(self) -> int:
        return len(self._queues)

    def submit(self, key: Hashable, step: Callable[[], bool]) -> Job:
        """Run a job, after the earlier jobs of its key.

        :param step: does one step of well below a millisecond, and returns whether more are to come.
        """
        job = Job(step)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(job)
        self._schedule_turn()
        return job

    def submit_live(self, step: Callable[[], bool]) -> None:
        """Send live events: `step` gets every second step. The first steps run at once, if nothing else waits."""
        is_first = not self._queues and not self._taken and not self._is_running
        self.submit(_LIVE, step)
        if is_first:
            self._taken = 1.0
            self._run_steps()

    def take(self, part: float) -> bool:
        """Return whether work may run at once that takes a part of a turn's time. If not, submit it.

        The sum of the parts in a turn is at most 1, and jobs that wait come first.
        """
        if self._queues or self._taken + part > 1:
            return False
        self._taken += part
        self._schedule_turn()
        return True

    def _schedule_turn(self) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._run_turn)

    def stop(self) -> None:
        """Drop all jobs."""
        self._queues.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _run_turn(self) -> None:
        self._taken = 0.0
        self._run_steps()
        self._timer = self._clock.callLater(0, self._run_turn) if self._queues else None

    def _run_steps(self) -> None:
        self._is_running = True
        deadline = self._clock.seconds() + TURN_SECONDS
        while self._queues:
            self._run_step()
            if self._clock.seconds() >= deadline:
                break
        self._is_running = False

    def _run_step(self) -> None:
        """Run one step of the key whose turn it is, and move the key to the end."""
        self._was_live = _LIVE in self._queues and not self._was_live
        key = _LIVE if self._was_live else next(iter(self._queues))
        queue = self._queues.pop(key)
        job = queue[0]
        more = False
        if job.step is not None:
            self.steps += 1
            try:
                more = job.step()
            except Exception:
                log.failure("A step of large work failed")
        if not more or job.step is None:
            job.cancel()
            queue.popleft()
        if queue:
            added = self._queues.get(key)  # by the step
            if added:
                queue += added
                del self._queues[key]
            self._queues[key] = queue
