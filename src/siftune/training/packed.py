"""Training in packs with shared prefixes: what a step learns is what it learns from padded rows.

The trainer's batches are those of the global batch, so that steps, the order of the rows and the
ends of epochs stay what they are; `siftune.throughput` cuts each into packs of a token budget.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
import torch
from transformers import PreTrainedModel

from siftune import models
from siftune.chat.masking import IGNORED
from siftune.resume import agreement
from siftune.resume.trainer import Resumable
from siftune.stage import UserError
from siftune.throughput import attention, collator, limits, loss, memory
from siftune.throughput.layout import Layout

# In nats a token, between rows in packs and each of them alone.
MAX_LOSS_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.02, torch.float16: 0.02}


class InPacks(Resumable):
    """What trainers in packs have in common: a batch of a step in parts within a budget."""

    def __init__(self, model: Any, *args: Any, budget: int, **kwargs: Any) -> None:
        """Refuse what would not be exact, and change the attention of `model` and its reference.

        Args:
            budget: tokens of a pack.

        Raises:
            UserError: with the key of params.yaml.
        """
        self._budget = budget
        self._key = f"params.yaml: {kwargs['phase']}.micro_batch"
        self._attention_alone = model.config._attn_implementation
        splits = kwargs["train_dataset"], kwargs["eval_dataset"]
        longest, least = (max(sizes) for sizes in zip(*map(self._sizes, splits), strict=True))
        self._least_budget = least
        limits.check(model, longest, key=self._key)
        if least > budget:
            raise UserError(
                f"{self._key}: {budget} tokens, but {self._what_stays_together} has {least}: "
                f'write "{least} tokens" or more, or cut rows with encode.max_length.'
            )
        if models.device().type == "cpu":
            memory.keep_freed()
        attention.register()
        for one in (model, kwargs.get("ref_model")):
            if one is not None:
                one.set_attn_implementation(attention.NAME)
        super().__init__(model, *args, **kwargs)

    @property
    def _what_stays_together(self) -> str:
        return "a row"

    @property
    def micro_batch(self) -> str:
        """As params.yaml has it."""
        return f"{self._budget} tokens"

    def smaller_micro_batch(self) -> str | None:
        """Half of it, but room for what stays together; None: it has no more than that."""
        smaller = max(self._budget // 2, self._least_budget)
        return f"{smaller} tokens" if smaller < self._budget else None

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """All parts of a batch, one after the other; gradients are exchanged with the last."""
        parts = self._parts(inputs)
        losses = []
        for part in parts[:-1]:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        losses.append(super().training_step(model, parts[-1], num_items_in_batch))
        return torch.stack(losses).sum()

    def _sizes(self, split: Any) -> tuple[int, int]:
        """Tokens of the longest row of a split, and the most that have to be in one pack."""
        raise NotImplementedError

    def _cut(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """A batch as what is computed at once, at least one part."""
        raise NotImplementedError

    def _parts(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        parts = self._cut(batch)
        # Each is asked whether to stop, and those of all processes end together, with the exchange
        # of gradients; who has fewer waits before the first.
        if self.is_in_train:
            for _ in range(agreement.most(len(parts)) - len(parts)):
                self._stop_if_asked()
        return parts

    @property
    def _shares(self) -> bool:
        # A shared token would get one dropout for all its rows, where each has its own.
        return not limits.has_dropout(self.model)

    def _tell(self, *, in_rows: float, computed: float, packs: float, also: str = "") -> None:
        """What the first step computes, on all processes."""
        if agreement.is_first():
            print(
                f"Packs: the first step has {in_rows:.0f} tokens in rows, {computed:.0f} computed "
                f"in {packs:.0f} pack(s){also}"
                f"{'' if self._shares else '; nothing is shared, because of dropout'}.",
                flush=True,
            )


class Packed(InPacks):
    """Put before a trainer of rows with `input_ids` and `labels`: `class A(Packed, SftTrainer)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=collator.collate, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], float]:
        """The one batch of a step, as packs, and how many tokens all processes train in it."""
        rows = next(epoch_iterator)
        packs = self._packs(rows, of=self.train_dataset)
        num_trained, in_rows, computed, at_head, num_packs = agreement.sums_of(
            [float(sum(column)) for column in zip(*(_counts(pack) for pack in packs), strict=True)]
        )
        if not self._total_train_tokens:
            also = f", the output head at {at_head:.0f}"
            self._tell(in_rows=in_rows, computed=computed, packs=num_packs, also=also)
        self._total_train_tokens += in_rows
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["train"]["computed_share"] = [computed / in_rows]
        return [{"packs": packs}], max(num_trained, 1.0)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """A pack's part of the mean over the global batch; processes average their gradients."""
        part = loss.training_loss(model, inputs["pack"], num_items_in_batch)
        return part * self.args.world_size

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One batch of the validation split, and what it adds to the sums."""
        if self.is_in_train:
            self._stop_if_asked()
        packs = self._packs(inputs, of=self.eval_dataset)
        nats, num_trained = self._nats(model, packs), sum(len(pack.targets) for pack in packs)
        self._validation[0] += nats
        self._validation[1] += num_trained
        mean = torch.tensor(nats / max(num_trained, 1), device=self.args.device)
        return mean, None, None

    def check(self, rows: list[dict[str, Any]]) -> None:
        """Prove on a few rows that together in packs they have the loss of each alone.

        Each is there twice: what rows share counts for each of them.

        Raises:
            UserError: it is another.
        """
        together = collator.collate([*rows, *rows])
        model: Any = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        num_trained = 2 * sum(label != IGNORED for row in rows for label in row["labels"][1:])
        in_packs = self._nats(model, self._made(together, len(together["labels"]))) / num_trained
        model.set_attn_implementation(self._attention_alone)
        alone = 2 * sum(_nats_alone(model, row) for row in rows) / num_trained
        model.set_attn_implementation(attention.NAME)
        model.train(was_training)
        if abs(in_packs - alone) > MAX_LOSS_DIFFERENCE[model.dtype]:
            raise UserError(
                f"{self._key}: {len(rows)} rows together in packs have a loss of "
                f"{in_packs:.4f} a token, but {alone:.4f} each alone: these versions of the "
                "libraries do not keep them apart. Write a number of rows."
            )

    def _sizes(self, split: Any) -> tuple[int, int]:
        longest = int(pc.max(pc.list_value_length(split.data.column("input_ids"))).as_py() or 0)
        return longest, longest

    def _cut(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"pack": pack} for pack in batch["packs"]]

    def _packs(self, rows: collator.Rows, *, of: Any) -> list[Layout]:
        return self._made(rows, self._num_own(len(rows["labels"]), of=len(of)))

    def _made(self, rows: collator.Rows, num_own: int) -> list[Layout]:
        made = collator.packs(rows, self._budget, num_own=num_own, share=self._shares)
        return [pack.to(self.args.device) for pack in made]

    def _nats(self, model: Any, packs: list[Layout]) -> float:
        """Sum of the losses of all trained tokens."""
        with torch.no_grad():
            return sum(loss.training_loss(model, pack, 1).item() for pack in packs)


def _counts(pack: Layout) -> tuple[int, int, int, int, int]:
    """Tokens trained, in rows, computed, at the head; one pack."""
    computed = pack.input_ids.shape[1]
    return len(pack.targets), pack.num_in_rows, computed, len(pack.sources), 1


def _nats_alone(model: PreTrainedModel, row: dict[str, Any]) -> float:
    device = model.device
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]], device=device)).logits[0, :-1]
    labels = torch.tensor(row["labels"][1:], device=device)
    return torch.nn.functional.cross_entropy(
        logits.float(), labels, ignore_index=IGNORED, reduction="sum"
    ).item()
