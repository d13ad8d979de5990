"""A section of params.yaml → a TRL trainer's own configuration."""

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from siftune import models
from siftune.sections import Training
from siftune.stage import UserError
from siftune.training import requirements

C = TypeVar("C", bound=TrainingArguments)


def of_section(
    kind: type[C],
    section: Training,
    *,
    micro_batch: int,
    num_accumulated: int,
    folder: Path,
    **ours: Any,
) -> C:
    """The section as TRL takes it; its `trainer` holds TRL's own options.

    Args:
        kind: TRL's class, such as SFTConfig.
        folder: TRL wants one; nothing is written there.
        ours: what else we decide for this method.

    Raises:
        UserError: `trainer` has an option that TRL does not know, or one that is ours to set.
    """
    name, dtype = section.phase, requirements.dtype_of(section.load)
    ours = {
        "output_dir": str(folder),
        "seed": section.seed,
        "data_seed": section.seed,
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.num_epochs,
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": num_accumulated,
        "eval_strategy": "steps",
        "eval_steps": section.eval_every,
        "save_strategy": "no",  # Resumable saves, by save_every
        "logging_steps": 1,  # so that no sum of several steps is lost with a process
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),  # a log gets plain lines instead of a bar
        "use_cpu": models.device().type == "cpu",
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,  # with a scale for the loss
        # They are constants; and sent before a step's first pack, they would make a process that
        # has two packs wait for one whose first is its last.
        "ddp_broadcast_buffers": False,
        "fsdp_config": None,
        **ours,
    }
    valid = {field.name for field in fields(kind)}
    for key in section.trainer:
        if key in ours:
            raise UserError(f"params.yaml: {name}.trainer.{key}: siftune sets this one itself.")
        if key not in valid:
            raise UserError(
                f"params.yaml: {name}.trainer.{key}: trl.{kind.__name__} has no such option. "
                f"Valid: {', '.join(sorted(valid - set(ours)))}"
            )
    theirs = dict(section.trainer)
    if os.environ.get("WORLD_SIZE", "1") == "1":
        theirs.pop("fsdp", None)  # one process has all there is
    try:
        return kind(**ours, **theirs)
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: {name}.trainer: {error}") from None
