"""Pre-training that goes on, on plain text: contiguous blocks of one length, as GPT was trained.

All texts are one stream, each followed by the end-of-text token, and the stream is cut into blocks
(Radford et al. 2019; Brown et al. 2020, appendix B). So a block may begin within a text and hold
the beginning of another, which sees the one before it; no token is padding. What is left at the end
of the stream, less than a block, is not trained on.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from siftune import tokens
from siftune.resume import agreement
from siftune.stage import UserError
from siftune.training import run, sft

config = sft.config
# What is logged besides the loss, at each evaluation.
CURVES = {
    "eval_perplexity": "validation_perplexity",
    "eval_token_accuracy": "validation_token_accuracy",
}


class PretrainTrainer(sft.SftTrainer):
    """As for sft; evaluations also tell the perplexity, and the share of tokens guessed."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As it is, from a sum that begins at zero."""
        self._num_guessed = 0.0
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        """One batch of the validation split, and what it adds to the sums."""
        before = self._validation[1]
        found = super().prediction_step(model, inputs, *args, **kwargs)
        share = self._metrics["eval"]["mean_token_accuracy"][-1]  # by TRL, of this batch
        self._num_guessed += share * (self._validation[1] - before)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As it is, with the perplexity, which is exp of the loss in nats a token."""
        if "eval_loss" in logs:
            nats, num_tokens = agreement.sums_of(self._validation)
            (num_guessed,) = agreement.sums_of([self._num_guessed])
            logs["eval_perplexity"] = math.exp(min(nats / num_tokens, 700.0))
            logs["eval_token_accuracy"] = num_guessed / num_tokens
        super().log(logs, start_time)


def make_trainer(ground: run.Ground, block_size: int) -> PretrainTrainer:
    """A trainer on blocks of `block_size` tokens."""
    trainer = sft.make_trainer(
        ground.model(),
        ground.tokenizer,
        sft=ground.section,
        encoded=ground.rows,
        num_new_tokens=ground.num_new_tokens,
        curve=ground.curve,
        attempt=ground.attempt,
        folder=ground.scratch,
        kind=PretrainTrainer,
        read=partial(blocks, size=block_size),
    )
    assert isinstance(trainer, PretrainTrainer)
    return trainer


def blocks(split: str, encoded: Path, size: int) -> Dataset:
    """The texts of a split as rows of `size` tokens, every one of them trained.

    Raises:
        UserError: there is not even one block.
    """
    column = tokens.read(split, encoded).data.column("input_ids")
    flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
    stream = np.concatenate([np.empty(0, dtype=np.int32), *flat])
    num_blocks, num_left = divmod(len(stream), size)
    if not num_blocks:
        raise UserError(
            f"params.yaml: pretrain.block_size: the {split} split has {len(stream)} tokens, which "
            f"is less than one block of {size}. Take more text, or smaller blocks."
        )
    if agreement.is_first():
        print(f"{split}: {num_blocks} blocks of {size} tokens; {num_left} at the end are left out")
    ends = np.arange(0, num_blocks * size + 1, size, dtype=np.int64)
    rows = pa.LargeListArray.from_arrays(ends, stream[: num_blocks * size])
    return Dataset(pa.table({"input_ids": rows, "labels": rows}))
