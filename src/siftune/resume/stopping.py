"""When to stop: a signal, the end of the Slurm job, or a file that asks for it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from siftune import stage

STOP_FILE = Path("work/stop")
# A file system that many nodes share is not asked at every micro batch.
SECONDS_BETWEEN_LOOKS = 2.0
# What is left to write the last lines and to end the process, before Slurm kills it.
SPARE_SECONDS = 60.0


class StopRequest:
    """Why to stop, if at all; a handler only sets a flag, so that nothing is torn."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._asked_by_file = False
        self._end = float(os.environ.get("SLURM_JOB_END_TIME", "inf"))
        self._looked = -float("inf")
        self._polled = time.monotonic()
        self._longest_pause = 0.0
        self._longest_save = 0.0

    def reason(self) -> str | None:
        """Polled between micro batches: what asks to stop, or None."""
        now = time.monotonic()
        self._longest_pause = max(self._longest_pause, now - self._polled)
        self._polled = now
        if self._signal:
            return self._signal
        # Some clusters send no signal at all: the clock is the second witness.
        left = self._end - time.time()
        if left < SPARE_SECONDS + 2 * self._longest_save + 2 * self._longest_pause:
            stage.announce_job_end()
            return f"the Slurm job ends in {max(left, 0):.0f} s"
        if now - self._looked >= SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._asked_by_file = STOP_FILE.exists()
        return f"{STOP_FILE} asks for it" if self._asked_by_file else None

    def saved_in(self, seconds: float) -> None:
        """How long a save took: so much must be left before the job ends."""
        self._longest_save = max(self._longest_save, seconds)
        self._polled = time.monotonic()

    def obeyed(self) -> None:
        """The work is saved: the next start is not to stop at once."""
        STOP_FILE.unlink(missing_ok=True)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only a flag: ranks agree on it where all of them are at the same place."""
        self._signal = f"signal {signal.Signals(number).name}"
        stage.announce_stop()


@contextmanager
def watched() -> Iterator[StopRequest]:
    """Take over the signals that ask a stage to stop; afterwards they are as before."""
    STOP_FILE.unlink(missing_ok=True)  # it was meant for one that has ended since
    request = StopRequest()
    before = {number: signal.signal(number, request.on_signal) for number in stage.STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
