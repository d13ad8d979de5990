"""What a training logs: to its run, to a plain log, and as rows for a plot."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from siftune import files, provenance
from siftune.resume.trainer import Resumable
from siftune.stage import UserError
from siftune.tracking import Run

# What TRL calls it → what we call it.
LOGGED = {
    "loss": "train_loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "computed_share": "computed_share",  # of the tokens in rows: packs share prefixes
}
CURVE = (*LOGGED.values(), "tokens_per_second")
# Every step is logged; a log of plain lines needs fewer.
SECONDS_BETWEEN_LINES = 5.0


class LearningCurve(TrainerCallback):
    """Collects what the trainer logs: to the run, to a plain log, and as rows for a plot.

    Only the first process has a run to log to; on the others it stays silent.

    Args:
        also: what a phase logs besides, by what TRL calls it.
    """

    def __init__(
        self, run: Run, *, examples_per_step: int, also: Mapping[str, str] | None = None
    ) -> None:
        self._logged = LOGGED | dict(also or {})
        self._columns = (*CURVE, *(also or {}).values())
        self.rows: dict[int, dict[str, float]] = {}
        self._run = run
        self._examples_per_step = examples_per_step
        self._start = self._mark = time.monotonic()
        self._marked_tokens = 0.0
        self._marked_step = self._first_step = 0
        self._printed = -SECONDS_BETWEEN_LINES

    def restore(self, rows: list[dict[str, float]], *, step: int) -> None:
        """What earlier starts of this training logged, up to the step where this one goes on.

        Raises:
            UserError: it is gone.
        """
        if len(rows) < step:
            raise UserError(
                f"this training goes on from step {step}, but its log in work/runs has "
                f"{len(rows)} steps: its metrics.jsonl was removed or cut. Put it back, or remove "
                "the folder of the training in work (`siftune status` names it) to begin at step 0."
            )
        for row in rows:
            known = {name: value for name, value in row.items() if name not in ("step", "time")}
            self.rows.setdefault(int(row["step"]), {}).update(known)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = self._mark = time.monotonic()
        self._first_step = self._marked_step = state.global_step
        self._marked_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_evaluate = True  # the last step, too

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()  # evaluation is not training time

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        values = {
            ours: float(logs[theirs]) for theirs, ours in self._logged.items() if theirs in logs
        }
        if "num_tokens" in logs:
            values |= self._speed(state.global_step, float(logs["num_tokens"]))
        if not values:
            return  # the trainer's closing summary
        self.rows.setdefault(state.global_step, {}).update(values)
        self._run.log(values, step=state.global_step)
        now = time.monotonic()
        is_news = "eval_loss" in logs or state.global_step == state.max_steps
        is_due = is_news or now - self._printed >= SECONDS_BETWEEN_LINES
        if args.disable_tqdm and state.is_world_process_zero and is_due:
            self._printed = now
            print(self._line(values, state), flush=True)

    def write(self, path: Path) -> None:
        """The curve as CSV, a row a step; what was not logged at a step is empty."""
        with files.published_file(path) as aside, aside.open("w", newline="") as file:
            table = csv.DictWriter(file, ["step", *self._columns], extrasaction="ignore")
            table.writeheader()
            table.writerows({"step": step, **row} for step, row in self.rows.items())

    def last(self, name: str) -> float:
        """The value that was logged last."""
        return [row[name] for row in self.rows.values() if name in row][-1]

    def mean(self, name: str) -> float:
        """The mean over all logged steps."""
        return fmean(row[name] for row in self.rows.values() if name in row)

    def _speed(self, step: int, num_tokens: float) -> dict[str, float]:
        seconds = time.monotonic() - self._mark
        num_examples = (step - self._marked_step) * self._examples_per_step
        speed = {
            "tokens_per_second": (num_tokens - self._marked_tokens) / seconds,
            "examples_per_second": num_examples / seconds,
            "peak_memory_mb": provenance.peak_memory_mb(),
        }
        self._mark, self._marked_tokens, self._marked_step = time.monotonic(), num_tokens, step
        return speed

    def _line(self, values: dict[str, float], state: Any) -> str:
        elapsed = time.monotonic() - self._start
        done = max(state.global_step - self._first_step, 1)
        left = elapsed / done * (state.max_steps - state.global_step)
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in self._columns if name in values)
        return f"step {state.global_step}/{state.max_steps}  {shown}  left {left:.0f} s"


def summarise(trainer: Resumable, curve: LearningCurve) -> dict[str, float]:
    """The end of the curve, mean speed without evaluation, and how much of the model is trained.

    What was found on the validation split is of the weights that are kept, at `kept_step`.
    """
    if isinstance(trainer.model, PeftModel):  # it knows how many are in quantised ones
        trained, total = trainer.model.get_nb_trainable_parameters()
    else:
        trained = total = trainer.model.num_parameters()
    kept = trainer.best.step if trainer.best.keep else trainer.state.global_step
    return {
        "train_loss": curve.last("train_loss"),
        **{name: n for name, n in curve.rows[kept].items() if name.startswith("validation_")},
        "kept_step": kept,
        "num_steps": trainer.state.global_step,
        "num_examples": len(trainer.train_dataset),
        "mean_tokens_per_second": curve.mean("tokens_per_second"),
        "mean_examples_per_second": curve.mean("examples_per_second"),
        "trainable_parameters": trained,
        "trainable_share": round(trained / total, 6),
    }
