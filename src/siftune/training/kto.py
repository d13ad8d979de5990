"""Single answers, labelled good or bad, with TRL: KTO (Ethayarajh et al. 2024, 2402.01306)."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch import Tensor
from trl import KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from siftune.resume import agreement
from siftune.training import preferring
from siftune.training.packed_preferring import PreferringInPacks
from siftune.training.preferring import Preferring

# What TRL notes only where a micro batch has such an answer.
_NOTED = (
    *(f"{of}/{which}" for of in ("rewards", "logps", "logits") for which in ("chosen", "rejected")),
    "rewards/margins",
)


class KtoTrainer(Preferring, KTOTrainer):
    """TRL's trainer, which goes on exactly where it was, on single answers."""

    num_answers = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.train_sampling_strategy = "random"  # see `WithNeighbours`

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As it is; what is noted of good answers is a mean over them, and so of bad ones."""
        self._labels = inputs["label"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _count(self, loss: float, number: int) -> None:
        super()._count(loss, number)
        for name in _NOTED:  # on all processes
            self._sums["train" if self.model.training else "eval"].setdefault(name, [0.0, 0.0])

    def _num_in(self, name: str, number: int) -> int:
        num_good = int(self._labels[:number].sum())
        if name.endswith("/chosen"):
            return num_good
        return number - num_good if name.endswith("/rejected") else number


class PackedKtoTrainer(PreferringInPacks, KtoTrainer):
    """The same in packs of a token budget, as if all rows of a step were one micro batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precompute_ref_logps = True  # once a step: see `_cut`

    def _cut(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """With what the loss is told of all rows at once: the reference's, and the KL."""
        of_policy = super()._compute_kl_logps
        with self._without_noise(), self.accelerator.autocast():
            rows, theirs = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            (ours,) = self._by_packs(batch, lambda part: (of_policy(self.model, part),))
        num_own = batch["num_own"]
        total, number = agreement.sums_of([(ours - theirs)[:num_own].sum().item(), float(num_own)])
        batch = batch | {"ref_logps": rows, "ref_KL_logps": torch.full_like(rows, -total / number)}
        return super()._cut(batch)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> Tensor:
        return torch.zeros_like(batch["ref_KL_logps"])  # which has the difference

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        with preferring.alone(self):
            return super()._compute_loss(model, inputs, return_outputs)


class WithNeighbours(DataCollatorForUnpairedPreference):
    """Each prompt of a batch with the answer of the next row, too: KTO's estimate of the KL.

    TRL fixes neighbours before the training, so that it must never shuffle the rows.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        others = [*examples[1:], examples[0]]
        found: dict[str, Any] = super().torch_call(
            [
                {**one, "KL_completion_ids": other["completion_ids"]}
                for one, other in zip(examples, others, strict=True)
            ]
        )
        return found


def labelled(table: pa.Table) -> Dataset:
    """The answers of all rows, in an order that mixes good and bad."""
    parts = []
    for column, label in (("chosen_ids", True), ("rejected_ids", False)):
        part = table.filter(pc.is_valid(table[column]))
        labels = pa.array([label] * len(part))
        names = ("prompt_ids", "completion_ids", "label")
        parts.append(pa.table([part["prompt_ids"], part[column], labels], names=names))
    return Dataset(InMemoryTable(pa.concat_tables(parts))).shuffle(seed=0)
