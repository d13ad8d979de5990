"""What makers of our trainers take, the same as the others have: see turns.py."""

from pathlib import Path
from typing import Any

import turns

from siftune.learning_curve import LearningCurve
from siftune.resume.attempt import Attempt
from siftune.resume.fingerprint import Fingerprint
from siftune.resume.stopping import StopRequest
from siftune.sections import Load, Lora

BUDGET = "4096 tokens"  # as the presets have it


class Silent:
    """A run that nothing is logged to."""

    def log(self, *_args: Any, **_kwargs: Any) -> None: ...


def section(batch: int, micro_batch: int | str) -> dict[str, Any]:
    """Of params.yaml."""
    load = Load(engine="hf", dtype="auto", attention="auto", quantise=None, double_quantise=False)
    lora = Lora(
        rank=turns.RANK, alpha=turns.RANK, dropout=0.0, targets=turns.PROJECTIONS, rslora=False,
        dora=False, init="default", modules_to_save=[],
    )  # fmt: skip
    return {
        "seed": turns.SEED, "learning_rate": turns.LEARNING_RATE, "num_epochs": 1.0,
        "global_batch": batch, "micro_batch": micro_batch, "eval_every": 10**6,
        "save_every": "1000000 steps", "keep": "last", "patience": None, "lora": lora, "load": load,
        "trainer": {
            "lr_scheduler_type": "constant", "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential",
        },
    }  # fmt: skip


def surroundings(batch: int) -> dict[str, Any]:
    """What makers of our trainers take besides the section: nothing is logged, nothing is saved."""
    made_of = Fingerprint({})
    made_of.folder.mkdir(parents=True)
    return {
        "encoded": Path(),
        "num_new_tokens": 0,
        "curve": LearningCurve(Silent(), examples_per_step=batch),
        "attempt": Attempt(made_of, StopRequest(), "1000000 steps"),
        "folder": Path(),
    }
