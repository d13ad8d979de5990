"""Preferences in packs: the two answers of a pair share their prompt, which is computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from siftune.resume import agreement
from siftune.stage import UserError
from siftune.throughput import attention, padded, planner
from siftune.training.packed import MAX_LOSS_DIFFERENCE, InPacks
from siftune.training.preferring import Preferring


class PreferringInPacks(InPacks, Preferring):
    """Put before a trainer of preferences: `class A(PreferringInPacks, DpoTrainer)`.

    The examples of a step are cut into packs, the answers of each in one; the losses are TRL's, on
    padded rows, and so is the reference.
    """

    def __init__(self, model: Any, *args: Any, ref_model: Any | None = None, **kwargs: Any) -> None:
        """As that of `InPacks`; changes how both models compute rows."""
        padded.compute_as_packs(model)
        if ref_model is not None:
            padded.compute_as_packs(ref_model)
        super().__init__(model, *args, ref_model=ref_model, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """As it is, pack by pack."""
        of_part = super().compute_ref_log_probs
        return self._by_packs(inputs, lambda part: of_part(model, part))

    def check(self) -> None:
        """Prove on two short examples that in packs they are as likely as each row alone.

        Raises:
            UserError: they are not.
        """
        looked_at = [self.train_dataset[i] for i in range(min(50, len(self.train_dataset)))]
        rows = sorted(looked_at, key=lambda row: len(row["prompt_ids"]))[:2]
        batch = self._prepare_inputs(self.data_collator([*rows, *rows]))
        model: Any = self.accelerator.unwrap_model(self.model)
        with self._without_noise():
            in_packs = torch.cat(self.compute_ref_log_probs(model, batch))
            model.set_attn_implementation(self._attention_alone)
            alone = torch.cat(self.compute_ref_log_probs(model, batch))
            model.set_attn_implementation(attention.NAME)
        difference = ((in_packs - alone).abs().sum() / batch["completion_mask"].sum()).item()
        if difference > MAX_LOSS_DIFFERENCE[model.dtype]:
            raise UserError(
                f"{self._key}: the log-probabilities of {len(rows)} examples in packs are "
                f"{difference:.4f} a token from those of each row alone: these versions of the "
                "libraries do not keep them apart. Write a number of rows."
            )

    @property
    def _what_stays_together(self) -> str:
        return "a pair of rows" if self.num_answers == 2 else "a row"

    def _sizes(self, split: Any) -> tuple[int, int]:
        names = {"prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"}
        prompt, *answers = (
            pc.list_value_length(split.data.column(name)).to_numpy()
            for name in sorted(names & set(split.column_names), key=lambda n: n != "prompt_ids")
        )
        rows = [prompt + answer for answer in answers]
        # KTO has the answers of other prompts, too.
        longest = prompt.max() + max(answer.max() for answer in answers)
        return int(longest), int(np.sum(rows, axis=0).max())

    def _cut(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        packs = self._plan(batch)
        if not self._evaluating:
            self._note(packs)
        parts = []
        for places in map(self._places, packs):
            num_own = len(places) if batch["num_own"] else 0
            parts.append({**self._some(batch, places), "num_own": num_own})
        return parts

    def _note(self, packs: list[planner.Pack]) -> None:
        computed = sum(pack.num_tokens for pack in packs)
        in_rows = sum(len(place) for pack in packs for place in pack.places)
        noted = self._sums["train"].setdefault("computed_share", [0.0, 0.0])
        noted[0] += computed
        noted[1] += in_rows
        if not self._num_tokens:
            told = agreement.sums_of([float(in_rows), float(computed), float(len(packs))])
            self._tell(in_rows=told[0], computed=told[1], packs=told[2])

    def _plan(self, batch: dict[str, Any]) -> list[planner.Pack]:
        """Of rows whose order has all answers of an example side by side."""
        rows = padded.unpadded(batch["input_ids"], batch["attention_mask"])
        size = self._size(batch)
        by_example = [row for place in range(size) for row in rows[place::size]]
        return planner.plan(by_example, self._budget, share=self._shares, together=self.num_answers)

    def _places(self, pack: planner.Pack) -> list[int]:
        """Of the examples of a pack, in the batch."""
        return sorted({row // self.num_answers for row in pack.rows})

    def _by_packs(
        self, batch: dict[str, Any], compute: Callable[[dict[str, Any]], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What is computed of each example, [B] each, pack by pack."""
        places = [self._places(pack) for pack in self._plan(batch)]
        found = [compute(self._some(batch, some)) for some in places]
        order = torch.tensor([place for some in places for place in some]).argsort()
        return tuple(torch.cat(column)[order] for column in zip(*found, strict=True))

    @contextmanager
    def _without_noise(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
