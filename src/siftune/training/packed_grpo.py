"""GRPO in packs: the completions of a prompt share it, and it is computed once."""

from typing import Any

import pyarrow.compute as pc
import torch
from torch import Tensor
from transformers import set_seed
from trl import GRPOTrainer

from siftune.resume import agreement, randomness
from siftune.stage import UserError
from siftune.throughput import attention, padded, planner
from siftune.training.packed import MAX_LOSS_DIFFERENCE, InPacks
from siftune.training.preferring import alone

# Losses that TRL divides by the tokens of the whole step, and by those of a micro batch; the others
# are means over its rows.
OF_THE_STEP, OF_TOKENS = ("dapo", "cispo", "vespo"), ("bnpo",)
SHOWN = {"entropy", "kl"}  # means over tokens


class RewardedInPacks(InPacks):
    """Put before a GRPO trainer: `class A(RewardedInPacks, GrpoTrainer)`.

    All completions of a step are made at once, and then cut into packs to learn from; the losses
    are TRL's, on padded rows.
    """

    _step: int  # of TRL: micro batches of this process

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """As that of `InPacks`; changes how the model computes rows."""
        padded.compute_as_packs(model)
        self._longest_completion = kwargs["args"].max_completion_length
        self._noted: dict[str, float] = {}
        super().__init__(model, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step, which is one micro batch to TRL, however many packs it has."""
        step = self._step
        loss = super().training_step(*args, **kwargs)
        self._step = step + 1
        names = sorted(self._noted)
        *sums, number = agreement.sums_of([*(self._noted[n] for n in names), self._num_learned])
        for name, total in zip(names, sums, strict=True):
            self._metrics["train"][name] = [total / number]
        self._noted = {}
        return loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A pack's part of the loss of all completions of this process."""
        if not self.model.training:
            found: Tensor = super().compute_loss(model, inputs, *args, **kwargs)
            return found
        with alone(self):
            loss: Tensor = super().compute_loss(model, inputs, *args, **kwargs)
        number = inputs["completion_mask"].sum().item()
        for name in SHOWN & self._metrics["train"].keys():
            (value,) = self._metrics["train"].pop(name)
            self._noted[name] = self._noted.get(name, 0.0) + value * number
        return loss * inputs["weight"]

    def check(self) -> None:
        """Prove on two prompts, each before itself and the other, that packs make them as likely.

        Raises:
            UserError: they are not.
        """
        looked_at = [
            self.train_dataset[i]["prompt"] for i in range(min(50, len(self.train_dataset)))
        ]
        a, b = (sorted(looked_at, key=len) * 2)[:2]
        rows = [torch.tensor(ids) for ids in (a + a, a + b, b + a, b + b)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.args.device)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones_like(row) for row in rows], batch_first=True
        )
        mask, seen = mask.to(self.args.device), ids.shape[1] // 2
        model: Any = self.accelerator.unwrap_model(self.model)
        with torch.no_grad():
            in_packs, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, seen)
            model.set_attn_implementation(self._attention_alone)
            by_rows, *_ = self._get_per_token_logps_and_entropies(model, ids, mask, seen)
            model.set_attn_implementation(attention.NAME)
        difference = ((in_packs - by_rows).abs() * mask[:, -seen:]).sum() / mask[:, -seen:].sum()
        if difference > MAX_LOSS_DIFFERENCE[model.dtype]:
            raise UserError(
                f"{self._key}: the log-probabilities of prompts in packs are {difference:.4f} a "
                "token from those of each row alone: these versions of the libraries do not keep "
                "them apart. Write a number of rows."
            )

    def _sizes(self, split: Any) -> tuple[int, int]:
        prompt = pc.max(pc.list_value_length(split.data.column("prompt"))).as_py()
        longest = int(prompt or 0) + self._longest_completion
        return longest, longest

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs if "weight" in inputs else super()._prepare_inputs(inputs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.accelerator.unwrap_model(self.model)
        model.set_attn_implementation(self._attention_alone)
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            model.set_attn_implementation(attention.NAME)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """As it is, pack by pack: of a step, all are asked at once."""
        of_part = super()._get_per_token_logps_and_entropies
        packs = self._plan(input_ids, attention_mask)
        rows = [list(pack.rows) for pack in packs]
        kwargs["batch_size"] = None
        found = [
            of_part(model, input_ids[some], attention_mask[some], *args, **kwargs) for some in rows
        ]
        order = torch.tensor([row for some in rows for row in some]).argsort()
        return tuple(
            None if column[0] is None else torch.cat(column)[order]
            for column in zip(*found, strict=True)
        )

    def _cut(self, batch: Any) -> list[dict[str, Any]]:
        """The completions to a step's prompts, in packs."""
        self._stop_if_asked()
        self.model.train()
        set_seed(
            randomness.seed(self.args.seed, self.state.global_step, 0, self.args.process_index)
        )
        made = super()._prepare_inputs(batch)
        ids = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
        mask = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
        packs = self._plan(ids, mask)
        self._num_learned = made["completion_mask"].sum().item()
        in_rows = sum(len(place) for pack in packs for place in pack.places)
        numbers = [in_rows, sum(pack.num_tokens for pack in packs), len(packs)]
        told = agreement.sums_of([float(number) for number in numbers])
        self._metrics["train"]["computed_share"] = [told[1] / told[0]]
        if not self._step:
            self._tell(in_rows=told[0], computed=told[1], packs=told[2])
        return [self._part(made, list(pack.rows)) for pack in packs]

    def _plan(self, ids: Tensor, mask: Tensor) -> list[planner.Pack]:
        return planner.plan(padded.unpadded(ids, mask), self._budget, share=self._shares)

    def _part(self, made: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        """These rows, and their weight in what is a mean over a micro batch."""
        num_rows, mask = len(made["completion_ids"]), made["completion_mask"]
        part = {name: value[rows] if value.ndim else value for name, value in made.items()}
        weight = len(rows) / num_rows
        if self.loss_type in OF_THE_STEP:
            weight = 1.0
        elif self.loss_type in OF_TOKENS:
            weight = (part["completion_mask"].sum() / mask.sum()).item()
        return {**part, "weight": weight}


def check_batches(trainer: GRPOTrainer) -> None:
    """Prove that packs are what their rows are alone, where there are any.

    Raises:
        UserError: they are not.
    """
    if isinstance(trainer, RewardedInPacks):
        trainer.check()
