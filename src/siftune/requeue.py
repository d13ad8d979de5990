"""Whether a Slurm job whose pipeline was stopped is to be queued again: slurm/run.sh then does it.

The two talk through files in a folder of the job: `warned` says that Slurm has warned the batch
script, `requeue` that the cluster asked for the stop, and the job goes on later.
"""

import os
import signal
from pathlib import Path
from typing import Any

from siftune import files
from siftune.stage import UserError

JOB = "SIFTUNE_JOB"
STARTS = Path("work/requeues.jsonl")
MAX_WITHOUT_PROGRESS = 3
# Of a person, or of Slurm where it will not start the job again; its warning is SIGUSR1.
FINAL = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}
# What grows while something is saved that the next start goes on from.
SAVED = ("dvc.lock", "work/*/checkpoints/*/published", "work/answers/**/*")


class Start:
    """One start of this Slurm job; outside a job it asks for nothing."""

    def __init__(self) -> None:
        self._folder = Path(os.environ[JOB]) if JOB in os.environ else None
        self._saved = _saved()

    def is_warned(self) -> bool:
        """Whether Slurm has warned the batch script that it will end the job."""
        return self._folder is not None and (self._folder / "warned").exists()

    def stopped(self, signals: list[int], notes: list[dict[str, Any]]) -> None:
        """Have the job queued again, if the cluster stopped it; what was done is saved.

        Args:
            signals: that came.
            notes: of the stages, as `stage.note_end` wrote them.

        Raises:
            UserError: the last starts all ended before anything new was saved.
        """
        asked = signal.SIGUSR1 in signals or any(note["job_ends"] for note in notes)
        if self._folder is None or not asked or FINAL & set(signals):
            return
        job = os.environ.get("SLURM_JOB_ID")
        files.append_line(STARTS, {"job": job, "progress": bool(_saved() - self._saved)})
        last = [row for row in files.read_lines(STARTS) if row.get("job") == job]
        last = last[-MAX_WITHOUT_PROGRESS:]
        if len(last) == MAX_WITHOUT_PROGRESS and not any(row["progress"] for row in last):
            raise UserError(
                f"the last {MAX_WITHOUT_PROGRESS} starts of job {job} were stopped before anything "
                "new was saved: it is not queued again. Ask for more time (sbatch --time=…) than "
                "the warning takes off (#SBATCH --signal: 300 s), or lower sft.save_every."
            )
        (self._folder / "requeue").touch()


def _saved() -> set[tuple[str, int]]:
    found = [path for pattern in SAVED for path in Path().glob(pattern)]
    return {(str(path), path.stat().st_mtime_ns) for path in found if path.is_file()}
