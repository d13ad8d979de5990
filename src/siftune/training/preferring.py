"""Training on answers that are compared: each example counts once, in every number."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from siftune import batches
from siftune.resume import agreement
from siftune.resume.trainer import Resumable


class Preferring(Resumable):
    """What both trainers share: tokens as encode wrote them, and each example counted once.

    The loss of a step, that of the validation split and all that is logged are means over examples,
    whatever the micro batch and the number of processes; TRL's are means of means over batches,
    with rows twice where they do not divide.
    """

    loss_is_scaled_for_ga = True  # by compute_loss
    num_answers: int  # of an example, in a batch
    first_factors: dict[str, Tensor] = {}  # noqa: RUF012 (of an adapter: `adapters.save`)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self._num_tokens = 0.0
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """A micro batch's part of the mean over the global batch; in validation its own mean.

        Processes average their gradients.
        """
        num_own = inputs.pop("num_own", self._size(inputs))
        if self.model.training:
            self._num_tokens += inputs["attention_mask"].sum().item()
        loss: Tensor = super().compute_loss(model, inputs)
        self._count(loss.item(), num_own)
        if num_items_in_batch is None:
            return loss
        return loss * (num_own * self.args.world_size / num_items_in_batch)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """One batch of the validation split, without the rows that only make it even."""
        for part in self._parts(self._own(inputs, of=len(self.eval_dataset))):
            found = super().prediction_step(model, part, *args, **kwargs)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As it is, with means over examples."""
        mode = "train" if self.model.training else "eval"
        sums, self._sums[mode] = self._sums[mode], {}
        names = sorted(sums)
        flat = [number for name in names for number in sums[name]]
        *together, num_tokens = agreement.sums_of([*flat, self._num_tokens])
        means = {
            name: total / number
            for name, total, number in zip(names, together[::2], together[1::2], strict=True)
            if number
        }
        if means.keys() >= {"rewards/chosen", "rewards/rejected"}:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        if "eval_loss" in logs:
            logs["eval_loss"] = means["loss"]
        means.pop("loss", None)
        self._metrics[mode] |= {name: [mean] for name, mean in means.items()}
        if mode == "train":
            self._metrics[mode]["num_tokens"] = [num_tokens]
        super().log(logs, start_time)

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # encode has decided the tokens

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if not batch_samples:
            return None
        batch_samples[-1] = self._own(batch_samples[-1], of=len(self.train_dataset))
        before = sum(self._size(batch) for batch in batch_samples[:-1])
        (num_examples,) = agreement.sums_of([float(before + batch_samples[-1]["num_own"])])
        return num_examples

    def _own(self, batch: dict[str, Any], *, of: int) -> dict[str, Any]:
        """A batch's first rows, at least one, and how many of them are this process's own."""
        size = self._size(batch)
        is_last = self.accelerator.gradient_state.end_of_dataloader
        at_once = self.args.per_device_train_batch_size * self.args.world_size
        num_own = batches.num_own(
            size, remainder=of % at_once if is_last else 0, rank=self.args.process_index
        )
        return {**self._some(batch, range(max(num_own, 1))), "num_own": num_own}

    def _some(self, batch: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
        """These examples of a batch."""
        size = self._size(batch)
        return {
            name: torch.cat([part[list(places)] for part in values.split(size)])
            for name, values in batch.items()
            if name != "num_own"
        }

    def _parts(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """A batch as what is computed at once."""
        return [batch]

    def _size(self, batch: dict[str, Any]) -> int:
        return len(batch["input_ids"]) // self.num_answers

    def _count(self, loss: float, number: int) -> None:
        """Take what TRL noted of a micro batch into the sums, each with its number of examples."""
        mode = "train" if self.model.training else "eval"
        noted = {name: values[-1] for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        noted.pop("num_tokens")
        for name, value in {**noted, "loss": loss}.items():
            weight = self._num_in(name, number)
            total = self._sums[mode].setdefault(name, [0.0, 0.0])
            total[0] += value * weight
            total[1] += weight

    def _num_in(self, name: str, number: int) -> int:
        """How many of a micro batch's own examples are in a mean."""
        return number


@contextmanager
def alone(trainer: Any) -> Iterator[None]:
    """Within, what TRL gathers to log it is this process's own; `log` adds it up.

    Processes have unlike numbers of rows at an epoch's end, and of packs always.
    """
    everywhere = trainer.accelerator
    trainer.accelerator = _Alone(everywhere)
    try:
        yield
    finally:
        trainer.accelerator = everywhere


class _Alone:
    """Accelerate as it is, but what is gathered is this process's own."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values
