"""One start of a training: where it begins, what asks it to stop, how it ended.

All starts are in work/<fingerprint>/starts.jsonl, so that a crash that repeats is not tried for
ever, and that the last words of a dead one can be read.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from siftune import files
from siftune.resume import agreement, checkpoints, stopping
from siftune.resume.checkpoints import Checkpoint, Store
from siftune.resume.fingerprint import MADE_OF, WORK, Fingerprint, differences
from siftune.stage import RunAgain, StartAgain, UserError

M = TypeVar("M", bound=int | str)  # rows, or a token budget

MAX_WITHOUT_PROGRESS = 3
STARTS, MICRO_BATCH = "starts.jsonl", "micro_batch.json"
ANY_WORLD_SIZE = "SIFTUNE_ANY_WORLD_SIZE"


class Attempt:
    """Made by `of`; the first process writes the files, all processes ask."""

    def __init__(self, made_of: Fingerprint, stop: stopping.StopRequest, save_every: str) -> None:
        self.stop = stop
        self.step = 0  # the last step whose checkpoint was published
        self.folder = made_of.folder
        self.checkpoints = Store(self.folder / "checkpoints", made_of.parts)
        number, unit = save_every.split()
        self._save_every, self._in_steps = int(number), unit.startswith("step")
        self._saved_at = time.monotonic()

    def begin(self) -> Checkpoint | None:
        """The newest verified checkpoint, to go on from; None: begin at step 0.

        Raises:
            UserError: there is nothing whole to go on from, it was made by another number of
                processes, or the last starts all died here.
        """
        found = agreement.told_by_first(self._begin)
        self.step = found.step if found else 0
        return found

    def is_save_due(self, step: int) -> bool:
        """Whether the interval of `save_every` has passed."""
        if self._in_steps:
            return step % self._save_every == 0
        return time.monotonic() - self._saved_at >= 60 * self._save_every

    def saved(self, step: int, *, seconds: float) -> None:
        """A checkpoint was published."""
        self.step, self._saved_at = step, time.monotonic()
        self.stop.saved_in(seconds)

    def micro_batch(self, wanted: M) -> M:
        """The micro batch: as in params.yaml, or what was found to fit into the GPU's memory."""
        path = self.folder / MICRO_BATCH
        found: M = files.read_json(path)["micro_batch"] if path.exists() else wanted
        return found

    def fit(self, micro_batch: int | str) -> None:
        """Use this micro batch from the next start on."""
        files.write_json(self.folder / MICRO_BATCH, {"micro_batch": micro_batch})

    def ended(self, how: str, error: str | None = None) -> None:
        """Note how this start ended: finished, stopped or crashed."""
        row = {"ended": how, "step": self.step, **({"error": error} if error else {})}
        files.append_line(self.folder / STARTS, row)

    def _begin(self) -> Checkpoint | None:
        found = self.checkpoints.newest()
        step = found.step if found else 0
        if found:
            _refuse_another_world(found)
        died = _without_progress(files.read_lines(self.folder / STARTS), step)
        if len(died) >= MAX_WITHOUT_PROGRESS:
            reasons = {row.get("error", "killed, with no word") for row in died}
            raise UserError(
                f"this training was started {len(died)} times at step {step}, and died each time "
                f"before the next checkpoint: {'; '.join(sorted(reasons))}. Its checkpoints are "
                f"kept. Mend the cause, remove {self.folder / STARTS}, and start it again."
            )
        row = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "step": step,
        }
        files.append_line(self.folder / STARTS, row)
        if found:
            print(f"Going on from step {step}: {found.folder}", flush=True)
        return found


@contextmanager
def of(made_of: Fingerprint, save_every: str) -> Iterator[Attempt]:
    """One start of the training that is made of this, from its signals to its last word.

    Raises:
        UserError: this Slurm job trained something else before it was requeued.
    """
    if agreement.is_first():
        _look_at_others(made_of)
        made_of.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(made_of.folder / MADE_OF, made_of.parts)
    with stopping.watched() as stop:
        attempt = Attempt(made_of, stop, save_every)
        end = attempt.ended if agreement.is_first() else lambda *_: None
        try:
            yield attempt
        except (RunAgain, StartAgain, SystemExit):
            end("stopped")
            raise
        except BaseException as error:
            end("crashed", ": ".join([type(error).__name__, *str(error).splitlines()[:1]]))
            raise
        end("finished")
        if agreement.is_first():
            # What is left goes on from the last step, should DVC die before it notes the result.
            attempt.checkpoints.drop_oldest(1)


def _without_progress(rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The newest starts at `step` in a row that neither stopped nor finished."""
    died: list[dict[str, Any]] = []
    for row in rows:
        if "started" in row:
            died = [one for one in died if one["step"] == row["step"]] + [dict(row)]
        elif row["ended"] == "crashed" and died:
            died[-1]["error"] = row.get("error", "")
        else:
            died = []
    return [one for one in died if one["step"] == step]


def _refuse_another_world(found: Checkpoint) -> None:
    there, here = found.manifest["world_size"], int(os.environ.get("WORLD_SIZE", "1"))
    if there != here and checkpoints.is_in_shards(found.manifest["files"]):
        raise UserError(
            f"{found.folder} holds the parts of {there} processes (trainer.fsdp), and here are "
            f"{here}: start with {there}."
        )
    if there != here and os.environ.get(ANY_WORLD_SIZE) != "1":
        raise UserError(
            f"{found.folder} was written by {there} processes, and here are {here}: the batches "
            f"would be computed in another grouping, so the result is not bit for bit the same. "
            f"Start with {there}, or set {ANY_WORLD_SIZE}=1 to go on all the same."
        )


def _look_at_others(made_of: Fingerprint) -> None:
    """A training that is made of something else is not continued; that must not go unnoticed."""
    job = os.environ.get("SLURM_JOB_ID")
    for path in sorted(WORK.glob(f"*/{STARTS}")):
        rows = files.read_lines(path)
        ends = [row["ended"] for row in rows if "ended" in row]
        if path.parent == made_of.folder or "finished" in ends or not _has_checkpoint(path.parent):
            continue
        listed = "".join(f"\n  {line}" for line in _differences(path.parent, made_of))
        if job and job in {row.get("job") for row in rows}:
            raise UserError(
                f"this Slurm job ({job}) was training {path.parent} when it was requeued, and now "
                f"it would begin another one at step 0, because of:{listed}\nRestore that and "
                "submit again to go on; to begin anew, submit a new job."
            )
        print(
            f"siftune: {path.parent} holds a training that is not finished; it is not continued, "
            f"because of:{listed}",
            file=sys.stderr,
            flush=True,
        )


def _differences(folder: Path, made_of: Fingerprint) -> list[str]:
    try:
        return differences(files.read_json(folder / MADE_OF), made_of.parts)
    except ValueError as error:  # of another training; no reason to stop this one
        return [f"{folder / MADE_OF} cannot be read: {error}"]


def _has_checkpoint(folder: Path) -> bool:
    return any(re.match("step-", path.name) for path in folder.glob("checkpoints/*"))
