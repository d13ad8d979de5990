"""Supervised fine-tuning with TRL: params → trainer → adapter and learning curve."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from siftune import batches, output_head, tokens
from siftune.chat.masking import IGNORED
from siftune.learning_curve import LearningCurve
from siftune.resume import agreement
from siftune.resume.attempt import Attempt
from siftune.resume.best import Best
from siftune.resume.trainer import Resumable
from siftune.sections import Training
from siftune.stage import UserError
from siftune.training import adapters, around_trl, options
from siftune.training.packed import Packed

# In nats a token, between a batch and its rows alone; bf16 differs by less, a leak by more.
MAX_LOSS_DIFFERENCE = 0.02


class SftTrainer(Resumable, SFTTrainer):
    """TRL's trainer, which goes on exactly where it was.

    Its validation loss is the mean over trained tokens, whatever the micro batch and the number of
    processes; TRL's is a mean of means over batches, with rows twice where they do not divide.
    """

    first_factors: dict[str, torch.Tensor] = {}  # noqa: RUF012 (of an adapter: `adapters.save`)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As it is, from sums that begin at zero."""
        self._validation = [0.0, 0.0]  # nats, tokens
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        """One batch of the validation split, and what it adds to the sums."""
        num_own = self._num_own(len(inputs["labels"]), of=len(self.eval_dataset))
        own = {name: value[: max(num_own, 1)] for name, value in inputs.items()}
        found = super().prediction_step(model, own, *args, **kwargs)
        if num_own:
            num_trained = int((own["labels"][:, 1:] != IGNORED).sum())
            self._validation[0] += found[0].item() * num_trained
            self._validation[1] += num_trained
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As it is, but for the validation loss."""
        if "eval_loss" in logs:
            nats, num_trained = agreement.sums_of(self._validation)
            logs["eval_loss"] = nats / num_trained
        super().log(logs, start_time)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Here the loss gets its divisor: rows that come twice are neither trained on nor counted.
        if batch_samples:
            labels = batch_samples[-1]["labels"]
            labels[self._num_own(len(labels), of=len(self.train_dataset)) :] = IGNORED
        return super()._get_num_items_in_batch(batch_samples, device)

    def _num_own(self, num_rows: int, *, of: int) -> int:
        """How many rows of a batch are not there only to make the last one even over processes."""
        is_last = self.accelerator.gradient_state.end_of_dataloader
        at_once = self.args.per_device_train_batch_size * self.args.world_size
        return batches.num_own(
            num_rows, remainder=of % at_once if is_last else 0, rank=self.args.process_index
        )


class PackedSftTrainer(Packed, SftTrainer):
    """The same in packs of a token budget."""


def config(section: Training, *, micro_batch: int, num_accumulated: int, folder: Path) -> SFTConfig:
    """The section as TRL takes it; the arguments are those of `options.of_section`."""
    return options.of_section(
        SFTConfig,
        section,
        micro_batch=micro_batch,
        num_accumulated=num_accumulated,
        folder=folder,
        dataset_kwargs={"skip_prepare_dataset": True},  # encode has decided tokens and labels
    )


def conversations(split: str, encoded: Path) -> Dataset:
    """The rows of a split as they were encoded: input_ids, labels."""
    return tokens.read(split, encoded).select_columns(["input_ids", "labels"])


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sft: Training,
    encoded: Path,
    num_new_tokens: int,
    curve: LearningCurve,
    attempt: Attempt,
    folder: Path,
    kind: type[SftTrainer] = SftTrainer,
    read: Callable[[str, Path], Dataset] = conversations,
) -> SftTrainer:
    """A trainer on the splits in the folder `encoded`, whose numbers go to `curve`.

    Args:
        num_new_tokens: the last tokens of the tokenizer, that the base has not seen.
        attempt: decides when to save and to stop.
        folder: TRL wants one; nothing is written there.
        read: a split of the folder `encoded` as rows to train on.
    """
    output_head.install_on_cpu()
    if sft.lora:
        model = adapters.attach(
            model, sft, num_tokens=len(tokenizer), num_new_tokens=num_new_tokens
        )
    micro_batch = attempt.micro_batch(sft.micro_batch)
    asked = {
        "global_batch": sft.global_batch, "world_size": int(os.environ.get("WORLD_SIZE", "1"))
    }  # fmt: skip
    num_rows = batches.rows_at_once(sft.phase, micro_batch=micro_batch, **asked)
    num_accumulated = batches.accumulation(sft.phase, micro_batch=num_rows, **asked)
    budget = batches.budget(micro_batch)
    make = partial(PackedSftTrainer, budget=budget) if budget else kind
    trainer = make(
        model,
        phase=sft.phase,
        attempt=attempt,
        best=Best(keep=sft.keep == "best", patience=sft.patience),
        args=config(sft, micro_batch=num_rows, num_accumulated=num_accumulated, folder=folder),
        train_dataset=read("train", encoded),
        eval_dataset=read("validation", encoded),
        processing_class=tokenizer,
        callbacks=[curve],
    )
    around_trl.settle(trainer, model, sft.lora)
    return trainer


def check_batches(trainer: SftTrainer) -> None:
    """Prove on two short conversations that a batch of both trains what each trains alone.

    A collator that hides the stop token because it is also the padding, or an option that lets one
    conversation see another, changes what is learned, and the loss still falls.

    Raises:
        UserError: other tokens are trained, or they are predicted from other text.
    """
    looked_at = [trainer.train_dataset[i] for i in range(min(50, len(trainer.train_dataset)))]
    rows = sorted(looked_at, key=lambda row: len(row["input_ids"]))[:2]
    if isinstance(trainer, Packed):
        trainer.check(rows)
        return
    (num_together, loss_together), *alone = (
        _trained(trainer, some) for some in (rows, *([row] for row in rows))
    )
    num_alone, loss_alone = (sum(column) for column in zip(*alone, strict=True))
    # The first token of a row is predicted from nothing.
    num_encoded = sum(label != IGNORED for row in rows for label in row["labels"][1:])
    if num_together != num_encoded or num_alone != num_encoded:
        raise UserError(
            f"params.yaml: {trainer.phase}.trainer: in a batch, {num_together} tokens of two rows "
            f"are trained, where encode marked {num_encoded}. An option there changes the labels."
        )
    if abs(loss_together - loss_alone) > MAX_LOSS_DIFFERENCE * num_encoded:
        raise UserError(
            f"params.yaml: {trainer.phase}.trainer: two rows in one batch have a loss of "
            f"{loss_together / num_encoded:.4f} a token, but {loss_alone / num_encoded:.4f} each "
            "alone: one sees the other. An option there (padding_free, packing) needs an attention "
            "that keeps them apart."
        )


def _trained(trainer: SFTTrainer, rows: list[dict[str, Any]]) -> tuple[int, float]:
    """How many tokens of a batch are trained, and the sum of their losses in nats."""
    batch = {
        name: value.to(trainer.model.device) for name, value in trainer.data_collator(rows).items()
    }
    labels = batch.pop("labels")[:, 1:]
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(**batch).logits[:, :-1].float()
    trainer.model.train(was_training)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return int((labels != IGNORED).sum()), loss.item()
