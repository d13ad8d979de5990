"""Supervised fine-tuning with TRL: params → trainer → adapter and learning curve."""

import csv
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from siftune import batches, files, models, output_head, provenance, tokens
from siftune.chat.masking import IGNORED
from siftune.config import Lora, Sft
from siftune.stage import UserError
from siftune.tracking import Run

# What TRL calls it → what we call it.
LOGGED = {
    "loss": "train_loss",
    "eval_loss": "validation_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "eval_mean_token_accuracy": "validation_token_accuracy",
}
# In nats a token, between a batch and its rows alone; bf16 differs by less, a leak by more.
MAX_LOSS_DIFFERENCE = 0.02
CURVE = ("train_loss", "validation_loss", "learning_rate", "grad_norm", "tokens_per_second")


def lora_config(lora: Lora, new_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """The section as PEFT takes it; new rows of the embedding and the head are trained whole."""
    return LoraConfig(
        trainable_token_indices=new_rows,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )


def sft_config(sft: Sft, *, num_accumulated: int, folder: Path) -> SFTConfig:
    """The section as TRL takes it; `sft.trainer` holds TRL's own options.

    Raises:
        UserError: `sft.trainer` has an option that TRL does not know, or one that is ours to set.
    """
    ours: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": sft.seed,
        "data_seed": sft.seed,
        "learning_rate": sft.learning_rate,
        "num_train_epochs": sft.num_epochs,
        "per_device_train_batch_size": sft.micro_batch,
        "per_device_eval_batch_size": sft.micro_batch,
        "gradient_accumulation_steps": num_accumulated,
        "eval_strategy": "steps",
        "eval_steps": sft.eval_every,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),  # a log gets plain lines instead of a bar
        **_precision(),
        "dataset_kwargs": {"skip_prepare_dataset": True},  # encode has decided tokens and labels
    }
    valid = {field.name for field in fields(SFTConfig)}
    for key in sft.trainer:
        if key in ours:
            raise UserError(f"params.yaml: sft.trainer.{key}: siftune sets this one itself.")
        if key not in valid:
            raise UserError(
                f"params.yaml: sft.trainer.{key}: trl.SFTConfig has no such option. "
                f"Valid: {', '.join(sorted(valid - set(ours)))}"
            )
    try:
        return SFTConfig(**ours, **sft.trainer)
    except (TypeError, ValueError) as error:
        raise UserError(f"params.yaml: sft.trainer: {error}") from None


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sft: Sft,
    encoded: Path,
    num_new_tokens: int,
    curve: "LearningCurve",
    folder: Path,
) -> SFTTrainer:
    """A trainer on the splits in the folder `encoded`, whose numbers go to `curve`.

    Args:
        num_new_tokens: the last tokens of the tokenizer, that the base has not seen.
    """
    output_head.install_on_cpu()
    set_seed(sft.seed)  # the adapter's first weights are drawn before the trainer seeds itself
    num_accumulated = batches.accumulation(
        global_batch=sft.global_batch,
        micro_batch=sft.micro_batch,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    columns = ["input_ids", "labels"]
    trainer = SFTTrainer(
        model,
        args=sft_config(sft, num_accumulated=num_accumulated, folder=folder),
        train_dataset=tokens.read("train", encoded).select_columns(columns),
        eval_dataset=tokens.read("validation", encoded).select_columns(columns),
        processing_class=tokenizer,
        peft_config=lora_config(sft.lora, _new_rows(model, len(tokenizer), num_new_tokens)),
        callbacks=[curve],
    )
    head = trainer.model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # TRL asks for it, and PEFT's wrapper of a head with new rows has none
    trainer.remove_callback(PrinterCallback)
    return trainer


def _new_rows(
    model: PreTrainedModel, num_tokens: int, num_new_tokens: int
) -> dict[str, list[int]] | None:
    """By the names of the embedding and, where it has weights of its own, the output head."""
    if num_new_tokens == 0:
        return None
    layers = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    rows = list(range(num_tokens - num_new_tokens, num_tokens))
    return {
        name.rpartition(".")[2]: rows
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
    }


def check_batches(trainer: SFTTrainer) -> None:
    """Prove on two short conversations that a batch of both trains what each trains alone.

    A collator that hides the stop token because it is also the padding, or an option that lets one
    conversation see another, changes what is learned, and the loss still falls.

    Raises:
        UserError: other tokens are trained, or they are predicted from other text.
    """
    looked_at = [trainer.train_dataset[i] for i in range(min(50, len(trainer.train_dataset)))]
    rows = sorted(looked_at, key=lambda row: len(row["input_ids"]))[:2]
    (num_together, loss_together), *alone = (
        _trained(trainer, some) for some in (rows, *([row] for row in rows))
    )
    num_alone, loss_alone = (sum(column) for column in zip(*alone, strict=True))
    num_encoded = sum(label != IGNORED for row in rows for label in row["labels"])
    if num_together != num_encoded or num_alone != num_encoded:
        raise UserError(
            f"params.yaml: sft.trainer: in a batch, {num_together} tokens of two conversations are "
            f"trained, where encode marked {num_encoded}. An option there changes the labels."
        )
    if abs(loss_together - loss_alone) > MAX_LOSS_DIFFERENCE * num_encoded:
        raise UserError(
            "params.yaml: sft.trainer: two conversations in one batch have a loss of "
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


def save_adapter(model: PeftModel, folder: Path, *, base: str) -> None:
    """Write the adapter as safetensors; it names its base by source, not by this machine's path."""
    # Rows of new tokens are in the adapter; the base's own are not copied into it.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    settings = folder / "adapter_config.json"
    files.write_json(settings, files.read_json(settings) | {"base_model_name_or_path": base})
    (folder / "README.md").unlink()  # PEFT's empty model card; ours says what was measured


def summarise(trainer: SFTTrainer, curve: "LearningCurve") -> dict[str, float]:
    """The end of the curve, mean speed without evaluation, and the size of the adapter."""
    trained, total = trainer.model.get_nb_trainable_parameters()
    return {
        "train_loss": curve.last("train_loss"),
        "validation_loss": curve.last("validation_loss"),
        "num_steps": trainer.state.global_step,
        "num_examples": len(trainer.train_dataset),
        "tokens_per_second": curve.mean("tokens_per_second"),
        "examples_per_second": curve.mean("examples_per_second"),
        "trainable_parameters": trained,
        "trainable_share": round(trained / total, 6),
    }


class LearningCurve(TrainerCallback):
    """Collects what the trainer logs: to the run, to a plain log, and as rows for a plot."""

    def __init__(self, run: Run, *, examples_per_step: int) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self._run = run
        self._examples_per_step = examples_per_step
        self._start = self._mark = time.monotonic()
        self._marked_tokens = 0.0
        self._marked_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = self._mark = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_evaluate = True  # the last step, too

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()  # evaluation is not training time

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        values = {ours: float(logs[theirs]) for theirs, ours in LOGGED.items() if theirs in logs}
        if "loss" in logs:
            values |= self._speed(state.global_step, float(logs["num_tokens"]))
        if not values:
            return  # the trainer's closing summary
        self.rows.setdefault(state.global_step, {}).update(values)
        self._run.log(values, step=state.global_step)
        if args.disable_tqdm:
            print(self._line(values, state), flush=True)

    def write(self, path: Path) -> None:
        """The curve as CSV, a row a step; what was not logged at a step is empty."""
        with files.published_file(path) as aside, aside.open("w", newline="") as file:
            table = csv.DictWriter(file, ["step", *CURVE], extrasaction="ignore")
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
        left = elapsed / max(state.global_step, 1) * (state.max_steps - state.global_step)
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in CURVE if name in values)
        return f"step {state.global_step}/{state.max_steps}  {shown}  left {left:.0f} s"


def _precision() -> dict[str, bool]:
    dtype = models.device_dtype()
    return {
        "use_cpu": models.device().type == "cpu",
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
