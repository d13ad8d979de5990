"""A trainer of Hugging Face that stops between micro batches and goes on exactly where it was.

All randomness of a step is drawn anew from (seed, step, micro batch, process), and the order of the
rows from (seed, epoch): there is no state of a random generator to save, or to lose.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import Trainer, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from siftune import batches
from siftune.resume import agreement, randomness, sharded
from siftune.resume.attempt import Attempt
from siftune.resume.best import Best
from siftune.resume.checkpoints import Checkpoint
from siftune.stage import RunAgain, StartAgain, UserError

STATE = "trainer_state.json"


class _Stopped(BaseException):
    """Leaves the training loop between two micro batches."""


class Resumable(Trainer):
    """Put before the trainer that it extends: `class SftTrainer(Resumable, SFTTrainer)`.

    Args:
        phase: the section of params.yaml, for messages.
        attempt: decides when to save and to stop.
        best: what evaluations have shown.
    """

    evaluates_first = False  # before the first step, too
    gathered: dict[str, torch.Tensor] | None = None  # in the end, where weights are in shards

    def __init__(self, *args: Any, phase: str, attempt: Attempt, best: Best, **kwargs: Any) -> None:
        self.phase = phase
        self.best = best
        self._attempt = attempt
        self._micro_step = (0, 0)  # (optimiser step, micro batch in it)
        self._evaluating = False
        super().__init__(*args, **kwargs)

    @property
    def micro_batch(self) -> int | str:
        """As `micro_batch` of its section would have it."""
        return int(self.args.per_device_train_batch_size)

    def smaller_micro_batch(self) -> int | str | None:
        """What to try when the GPU's memory was too small; None: there is nothing smaller."""
        used = self.args.per_device_train_batch_size
        return batches.next_smaller(used, global_batch=used * self.args.gradient_accumulation_steps)

    def train_from(self, found: Checkpoint | None) -> None:
        """Train to the end, from a checkpoint or from the start.

        Raises:
            RunAgain: it was asked to stop; all that was done is saved.
            StartAgain: the GPU's memory was too small; with a smaller micro batch it may do.
            UserError: the loss is no number, or not even one row fits into the GPU's memory.
        """
        if found:
            self.best.load(found.folder)
        # An evaluation that was interrupted is done first.
        self.args.eval_on_start = (
            found.manifest["evaluation_due"] if found else self.evaluates_first
        )
        try:
            self.train(resume_from_checkpoint=str(found.folder) if found else None)
        except _Stopped as stop:
            if self.state.global_step > self._attempt.step:
                self._keep(evaluation_due=self._evaluating)
            self._attempt.stop.obeyed()
            raise RunAgain(
                f"stopped at step {self.state.global_step} of {self.state.max_steps} ({stop}); "
                "what was done is saved. The same command goes on from there."
            ) from None
        except torch.OutOfMemoryError:
            self._use_a_smaller_micro_batch()
        self.best.put_back(self.model)
        self.gathered = sharded.whole(self.model) if self.is_fsdp_enabled else None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro batch; here it may stop, and here its randomness begins."""
        self._stop_if_asked()
        step, micro = self._micro_step
        self._micro_step = (
            (step, micro + 1) if step == self.state.global_step else (self.state.global_step, 0)
        )
        place = (self.args.seed, *self._micro_step, self.args.process_index)
        set_seed(randomness.seed(*place))
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As it is; a stop leaves it early, and one worse too many ends the training."""
        self._evaluating = True
        found: dict[str, float] = super().evaluate(*args, **kwargs)
        self._evaluating = False
        self.best.seen(found["eval_loss"], self.state.global_step, self.model)
        if self.best.is_over:
            self.control.should_training_stop = True
            self.control.should_save = self.state.global_step > self._attempt.step
        return found

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of the validation split; here, too, it may stop."""
        if self.is_in_train:
            self._stop_if_asked()
        return super().prediction_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As it is; a loss that is no number ends the training before it is saved."""
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"the loss at step {self.state.global_step} is {loss}: what follows would be "
                f"worthless. The checkpoint of step {self._attempt.step} is kept. Lower "
                f"{self.phase}.learning_rate, warm up longer, or look at the rows with "
                "`siftune data page`."
            )
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Resumed at its last step, which may lie inside an epoch, the loop would do one more.
        if self.state.global_step >= self.state.max_steps or self.best.is_over:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        step = self.state.global_step
        due = step == self.state.max_steps or self._attempt.is_save_due(step)
        self.control.should_save = agreement.any_of(due and step > self._attempt.step)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._keep(evaluation_due=False)

    def _keep(self, *, evaluation_due: bool) -> None:
        """Publish a checkpoint of the last whole step; all processes write their part of it."""
        started, step, store = time.monotonic(), self.state.global_step, self._attempt.checkpoints
        aside = agreement.told_by_first(lambda: store.aside(step))
        self._save_state(aside)
        agreement.wait_for_all()
        facts = {
            "max_steps": self.state.max_steps,
            "world_size": self.args.world_size,
            "micro_batch": self.micro_batch,
            "evaluation_due": evaluation_due,
        }

        def publish() -> None:
            # The history is in metrics.jsonl, with times that differ from run to run.
            replace(self.state, log_history=[], stateful_callbacks={}).save_to_json(
                str(aside / STATE)
            )
            self.best.save(aside)
            store.publish(aside, step, facts)

        agreement.told_by_first(publish)
        self._attempt.saved(step, seconds=time.monotonic() - started)

    def _save_state(self, aside: Path) -> None:
        if self.is_fsdp_enabled:
            sharded.save(self.model, self.optimizer, aside, rank=self.args.process_index)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), aside / SCHEDULER_NAME)
        else:
            self.save_model(str(aside), _internal_call=True)
            self._save_optimizer_and_scheduler(str(aside))
        self._save_scaler(str(aside))

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            return  # with the optimiser, which is made later
        if not isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(folder, model)
            return
        # By name: beside a reference in a folder of its own (TRL's "ref"), Hugging Face would
        # restore that one alone, and go on from the adapter's first weights without a word.
        for name in self.model.peft_config:
            where = folder if name == "default" else str(Path(folder, name))
            weights = load_peft_weights(where, device="cpu")
            set_peft_model_state_dict(self.model, weights, adapter_name=name)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        parts = [(self.lr_scheduler, SCHEDULER_NAME)]
        if self.is_fsdp_enabled:
            rank = self.args.process_index
            sharded.load(self.model, self.optimizer, Path(checkpoint), rank=rank)
        else:
            parts.append((self.optimizer, OPTIMIZER_NAME))
        for part, name in parts:
            # Mapped, so that all processes of a node share the pages; Hugging Face's own way
            # cannot read into several processes without GPUs.
            path = Path(checkpoint, name)
            part.load_state_dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True))

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        # Weights only: the tokenizer is in models/tokenizer, and the arguments would be a pickle.
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **options)
        Path(str(output_dir), "README.md").unlink(missing_ok=True)  # PEFT's, and empty

    def _stop_if_asked(self) -> None:
        reason = self._attempt.stop.reason()
        if agreement.any_of(reason is not None):
            raise _Stopped(reason or "another process was asked to")

    def _use_a_smaller_micro_batch(self) -> None:
        used, smaller = self.micro_batch, self.smaller_micro_batch()
        if smaller is None:
            raise UserError(
                f"GPU out of memory at step {self.state.global_step}, with one row at a time. "
                f"Set {self.phase}.trainer.gradient_checkpointing, lower encode.max_length or "
                f"{self.phase}.lora.rank, or take a GPU with more memory. Checkpoints are kept."
            ) from None
        self._attempt.fit(smaller)
        raise StartAgain(
            f"GPU OUT OF MEMORY at step {self.state.global_step} with a micro batch of {used}. "
            f"Going on from step {self._attempt.step} with a micro batch of {smaller} and more "
            f"accumulation: the global batch is the same. Set {self.phase}.micro_batch to it for "
            "next time."
        ) from None
