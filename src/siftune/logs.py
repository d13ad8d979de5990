"""`siftune logs JOB`: what a Slurm job has said, and what it says from now on."""

import sys
import time
from pathlib import Path

from siftune import lock
from siftune.stage import UserError

FOLDER = Path("slurm/logs")
SECONDS_BETWEEN_LOOKS = 0.5
# Slurm's server is asked seldom: many users ask it.
SECONDS_BETWEEN_QUESTIONS = 30.0


def follow(job: str) -> None:
    """Print the log of a job, until the job is over or Ctrl-C; of another cluster's, for ever.

    Args:
        job: its number; of an array's task, 12_3.

    Raises:
        UserError: it has no log here.
    """
    path = _path(job)
    asked = -SECONDS_BETWEEN_QUESTIONS
    with path.open(errors="replace") as file:
        while True:
            is_over = False
            if time.monotonic() - asked >= SECONDS_BETWEEN_QUESTIONS:
                asked = time.monotonic()
                is_over = lock.is_job_alive(job) is False
            # What it said before it was over is there only after that was asked.
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if is_over:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _path(job: str) -> Path:
    paths = {path.stem.rpartition("-")[2]: path for path in sorted(FOLDER.glob("*-*.log"))}
    if job not in paths:
        known = ", ".join(paths) or "none yet"
        raise UserError(
            f"{FOLDER} has no log of job {job}. Jobs that have one: {known}. One that waits in the "
            "queue has none: slurm/status.sh says why it waits."
        )
    return paths[job]
