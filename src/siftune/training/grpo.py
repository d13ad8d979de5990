"""GRPO with TRL: prompts → completions → rewards → an adapter that earns more.

Shao et al. 2024 (arXiv 2402.03300); the completions of one prompt are compared with each other.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import GRPOConfig, GRPOTrainer

from siftune import batches, files, output_head, tokens
from siftune.learning_curve import LearningCurve
from siftune.resume import agreement, randomness
from siftune.resume.attempt import Attempt
from siftune.resume.best import Best
from siftune.resume.checkpoints import Checkpoint
from siftune.resume.trainer import Resumable
from siftune.rewards import completions, scoring
from siftune.rewards.choosing import Chosen
from siftune.sections import Grpo, Reward
from siftune.stage import UserError
from siftune.tracking import Run
from siftune.training import adapters, around_trl, options
from siftune.training.packed_grpo import RewardedInPacks

# In the place of a step, for the randomness of an evaluation: the same at every step.
VALIDATION = 2**32 - 1


class GrpoTrainer(Resumable, GRPOTrainer):
    """TRL's trainer, which goes on exactly where it was.

    Completions are drawn from the weights and from (seed, step) alone. An evaluation answers each
    prompt of the validation split once, always by the same random numbers; its loss is the negative
    mean reward, since GRPO's own says nothing.
    """

    evaluates_first = True  # what the base earns
    first_factors: dict[str, torch.Tensor] = {}  # noqa: RUF012 (of an adapter: `adapters.save`)

    def __init__(self, *args: Any, completions: completions.Completions, **kwargs: Any) -> None:
        self.completions = completions
        super().__init__(*args, **kwargs)

    def train_from(self, found: Checkpoint | None) -> None:
        """As it is; completions of later steps than this checkpoint's are made anew."""
        if agreement.is_first():
            self.completions.rewind(found.step if found else 0)
        super().train_from(found)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As it is, from sums that begin at zero."""
        self._num_batches = self._num_scored = 0
        self._sums = torch.zeros(len(self.reward_funcs), dtype=torch.float64)
        self._scored: list[dict[str, Any]] = []
        found: dict[str, float] = super().evaluate(*args, **kwargs)
        if agreement.is_first():
            self.completions.add(self.state.global_step, self._scored)
        return found

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """One batch of the validation split."""
        place = (self.args.seed, VALIDATION, self._num_batches, self.args.process_index)
        set_seed(randomness.seed(*place))
        self._num_batches += 1
        return super().prediction_step(*args, **kwargs)

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As it is; an evaluation spares it."""
        if not self.model.training:
            return torch.zeros((), device=self.args.device)
        loss: torch.Tensor = super().compute_loss(model, *args, **kwargs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As it is, but for the means over the validation split."""
        if "eval_loss" in logs:
            means = (self._sums / self._num_scored).tolist()
            reward = float(np.dot(means, self.reward_weights.tolist()))
            logs["eval_loss"] = -reward
            self._metrics["eval"]["reward"] = [reward]
            for name, mean in zip(self.reward_func_names, means, strict=True):
                self._metrics["eval"][f"rewards/{name}/mean"] = [mean]
        super().log(logs, start_time)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], None, dict[str, Any]]:
        return prompts, None, {}  # encode has decided them

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return randomness.ByEpoch(super()._get_train_sampler(dataset))

    def _generate_single_turn(self, prompt_ids: list[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise UserError(
                f"GPU out of memory at step {self.state.global_step}, while {len(prompt_ids)} "
                f"completions of up to {self.max_completion_length} tokens were generated: those "
                "of a step are made at once, whatever the micro batch. Lower grpo.global_batch, "
                "grpo.max_new_tokens or encode.max_length, train on more GPUs, or write "
                "grpo.generate: vllm. Checkpoints are kept."
            ) from None

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[str], ids: Any
    ) -> torch.Tensor:
        scores: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, ids)
        if not self.model.training:
            self._note(scores[: self._num_own(len(scores))].cpu().double(), inputs, completions)
        return scores

    def _note(
        self, scores: torch.Tensor, inputs: list[dict[str, Any]], completions: list[str]
    ) -> None:
        """Add the scores of all processes, [rows, rewards]; keep the completions of this one."""
        self._sums += scores.sum(dim=0)
        self._num_scored += len(scores)
        rewards = scores @ self.reward_weights.double()
        for row, one, text in zip(range(len(scores)), inputs, completions, strict=False):
            self._scored.append(
                {
                    "id": one["id"],
                    "prompt": json.loads(one["record"])["messages"][-1]["content"],
                    "completion": scoring.seen(self.processing_class, one["prompt"], text),
                    "reward": rewards[row].item(),
                    "scores": dict(zip(self.reward_func_names, scores[row].tolist(), strict=True)),
                }
            )

    def _num_own(self, num_rows: int) -> int:
        """How many rows of all processes are not there only to make the last batch even."""
        at_once = self.args.eval_batch_size * self.args.world_size
        is_last = self.accelerator.gradient_state.end_of_dataloader
        remainder = len(self.eval_dataset) % at_once if is_last else 0
        return batches.num_own(num_rows, remainder=remainder, rank=0)

    # Completions that several steps learn from are in no checkpoint: it stops, and saves, only
    # where new ones are made next.

    def _stop_if_asked(self) -> None:
        if self._needs_new_completions():
            super()._stop_if_asked()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        is_over = self.state.global_step == self.state.max_steps or self.best.is_over
        if is_over or self._needs_new_completions():
            super()._save_checkpoint(model, trial)

    def _needs_new_completions(self) -> bool:
        return self.state.global_step % self.num_iterations == 0


class PackedGrpoTrainer(RewardedInPacks, GrpoTrainer):
    """The same, which learns in packs of a token budget."""


def config(
    grpo: Grpo, *, micro_batch: int, num_accumulated: int, folder: Path, longest_prompt: int = 0
) -> GRPOConfig:
    """The section as TRL takes it; the arguments are those of `options.of_section`.

    Args:
        longest_prompt: in tokens; vLLM keeps room for no more.
    """
    longest = longest_prompt + grpo.max_new_tokens
    uses_vllm = grpo.generate == "vllm"
    return options.of_section(
        GRPOConfig,
        grpo,
        micro_batch=micro_batch,
        num_accumulated=num_accumulated,
        folder=folder,
        num_generations=grpo.num_generations,
        num_generations_eval=1,
        max_completion_length=grpo.max_new_tokens,
        reward_weights=[reward.weight for reward in grpo.rewards],
        steps_per_generation=num_accumulated,  # all completions of a step at once
        generation_batch_size=None,
        per_device_eval_batch_size=micro_batch * num_accumulated,  # as many at once as in training
        remove_unused_columns=False,
        log_completions=False,  # ours are in completions.jsonl
        use_vllm=uses_vllm,
        vllm_mode="colocate",
        vllm_max_model_length=longest if uses_vllm else None,
    )


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    grpo: Grpo,
    chosen: list[Chosen],
    encoded: Path,
    num_new_tokens: int,
    curve: LearningCurve,
    attempt: Attempt,
    folder: Path,
) -> GrpoTrainer:
    """A trainer on the splits in the folder `encoded`, whose numbers go to `curve`.

    Args:
        chosen: the functions of `grpo.rewards`, in their order.
        num_new_tokens: the last tokens of the tokenizer, that the base has not seen.
        attempt: decides when to save and to stop; completions to read are in its folder.
        folder: TRL wants one; nothing is written there.

    Raises:
        UserError: the batches do not divide, or the training split has too few prompts for a step.
    """
    output_head.install_on_cpu()
    if grpo.lora:
        model = adapters.attach(
            model, grpo, num_tokens=len(tokenizer), num_new_tokens=num_new_tokens
        )
    asked = {
        "global_batch": grpo.global_batch, "world_size": int(os.environ.get("WORLD_SIZE", "1"))
    }  # fmt: skip
    wanted = attempt.micro_batch(grpo.micro_batch)
    micro_batch = batches.rows_at_once(grpo.phase, micro_batch=wanted, **asked)
    num_accumulated = batches.accumulation(grpo.phase, micro_batch=micro_batch, **asked)
    train, validation = (_prompts(split, encoded) for split in tokens.SPLITS)
    batches.require_prompts(grpo, num_prompts=len(train))
    budget = batches.budget(wanted)
    make = partial(PackedGrpoTrainer, budget=budget) if budget else GrpoTrainer
    trainer = make(
        model,
        reward_funcs=[scoring.for_trl(reward, tokenizer) for reward in chosen],
        phase=grpo.phase,
        attempt=attempt,
        best=Best(keep=grpo.keep == "best", patience=grpo.patience),
        completions=completions.Completions(attempt.folder),
        args=config(
            grpo,
            micro_batch=micro_batch,
            num_accumulated=num_accumulated,
            folder=folder,
            longest_prompt=max(map(len, train["prompt"])),
        ),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[curve],
    )
    around_trl.settle(trainer, model, grpo.lora)
    return trainer


def curves(rewards: list[Reward]) -> dict[str, str]:
    """What these rewards have logged besides the loss: what TRL calls it → what we call it."""
    both = {
        "reward": "reward",
        **{f"rewards/{one.name}/mean": f"rewards/{one.name}" for one in rewards},
        "completions/mean_length": "completion_tokens",
        "completions/clipped_ratio": "share_cut",
    }
    return {
        **both,
        "frac_reward_zero_std": "share_of_equal_groups",
        "entropy": "entropy",
        "kl": "kl",
        **{f"eval_{theirs}": f"validation_{ours}" for theirs, ours in both.items()},
    }


def publish(trainer: GrpoTrainer, curve: LearningCurve, run: Run) -> None:
    """Completions to read, and what the validation split earned before and after, by reward."""
    if not agreement.is_first():
        return
    with files.published_file(completions.PUBLISHED) as aside:
        shutil.copyfile(trainer.completions.path, aside)
    run.artifact(completions.PUBLISHED)
    kept = trainer.best.step if trainer.best.keep else trainer.state.global_step
    names = ["reward", *(f"rewards/{name}" for name in trainer.reward_func_names)]
    run.report(
        validation_rewards={
            name.removeprefix("rewards/"): {
                when: curve.rows[step][f"validation_{name}"]
                for when, step in (("before", 0), ("after", kept))
            }
            for name in names
        }
    )


def _prompts(split: str, encoded: Path) -> Any:
    """A split as TRL reads it: id, prompt (token ids), record (JSON)."""
    return tokens.read(split, encoded).rename_column("prompt_ids", "prompt")
