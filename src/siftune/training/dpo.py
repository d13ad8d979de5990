"""Preferences with TRL: pairs of answers by DPO and its kin, single ones, labelled, by KTO."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig

from siftune import batches, output_head, tokens
from siftune.learning_curve import LearningCurve
from siftune.resume.attempt import Attempt
from siftune.resume.best import Best
from siftune.sections import Dpo
from siftune.stage import UserError
from siftune.training import adapters, around_trl, kto, options, preferring
from siftune.training.packed_preferring import PreferringInPacks
from siftune.training.preferring import Preferring

# They compare the two answers with each other only, and with no reference.
REFERENCE_FREE = ("simpo", "orpo")
# Options of TRL's other losses, which would change nothing in these.
_OF_OTHERS = ("ld_alpha", "f_divergence_type", "label_smoothing", "use_weighting")
_SHOWN = {
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "logps/chosen": "chosen_logprob",
    "logps/rejected": "rejected_logprob",
}
# What is logged besides the loss, of both splits. A margin that grows while the chosen answers get
# less likely, too, is a failure that the loss does not show.
CURVES = {
    **_SHOWN,
    **{f"eval_{theirs}": f"validation_{ours}" for theirs, ours in _SHOWN.items()},
}


class DpoTrainer(Preferring, DPOTrainer):
    """TRL's trainer, which goes on exactly where it was; also by SimPO and ORPO."""

    num_answers = 2

    def __init__(self, *args: Any, dpo: Dpo, **kwargs: Any) -> None:
        self._dpo = dpo
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        with preferring.alone(self):
            if self._dpo.loss in REFERENCE_FREE:
                return self._without_reference(model, inputs)
            return super()._compute_loss(model, inputs, return_outputs)

    def _without_reference(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The mean loss of a batch, whose rewards are β times the mean log-probability of a token.

        Not in nats over the whole answer, as those that are compared with a reference.
        """
        is_answer = inputs["completion_mask"]
        whole = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(is_answer == 0, -100),
            use_cache=False,
            fused_lm_head=True,
        ).log_probs.float().sum(dim=1)  # fmt: skip
        chosen, rejected = (whole / is_answer[:, 1:].sum(dim=1)).chunk(2)
        if self._dpo.loss == "simpo":
            assert self._dpo.gamma is not None
            losses = simpo(chosen, rejected, beta=self.beta, gamma=self._dpo.gamma)
        else:
            losses = orpo(chosen, rejected, beta=self.beta)
        margins = self.beta * (chosen - rejected).detach()
        mode = "train" if self.model.training else "eval"
        of_all = dict(zip(("chosen", "rejected"), whole.detach().chunk(2), strict=True))
        noted = {
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            **{f"logps/{name}": values for name, values in of_all.items()},
            "num_tokens": margins[:1],  # counted by compute_loss
        }
        for name, values in noted.items():
            self._metrics[mode][name] = [values.mean().item()]
        return losses.mean()

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        if self._dpo.loss in REFERENCE_FREE:
            return dataset
        # Beside the checkpoints: TRL's cache would be among the tokens, which are encode's.
        folder = self._attempt.folder
        dataset._get_cache_file_path = lambda digest: str(folder / f"reference-{digest}.arrow")
        return super()._precompute_ref_logps(dataset, name, batch_size)


class PackedDpoTrainer(PreferringInPacks, DpoTrainer):
    """The same in packs of a token budget."""


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO's losses (Meng et al. 2024, arXiv 2405.14734, equation 6), [B].

    Args:
        chosen, rejected: mean log-probability of an answer's tokens, [B].
        gamma: by how much the one reward should exceed the other.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """ORPO's losses (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7), [B].

    The loss of sft on the chosen answer, and β (the paper's λ) times that of the odds ratio.

    Args:
        chosen, rejected: mean log-probability of an answer's tokens, [B].
    """

    def log_odds(log_prob: Tensor) -> Tensor:
        return log_prob - torch.log(-torch.expm1(log_prob))

    return -chosen - beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def config(
    dpo: Dpo, *, micro_batch: int, num_accumulated: int, folder: Path
) -> DPOConfig | KTOConfig:
    """The section as TRL takes it; the arguments are those of `options.of_section`."""
    ours: dict[str, Any] = {
        "beta": dpo.beta,
        "loss_type": dpo.loss,
        "max_length": None,  # encode has cut
        "sync_ref_model": False,  # a reference that moves would be in no checkpoint
    }
    kind: Any = DPOConfig
    if dpo.loss == "kto":
        kind = KTOConfig
        # In no fixed order: see `kto.WithNeighbours`. This is what TRL wants to hear.
        ours |= {"train_sampling_strategy": "sequential", "precompute_ref_log_probs": False}
    if dpo.loss in REFERENCE_FREE:
        ours |= {name: getattr(DPOConfig, name) for name in _OF_OTHERS}
        ours |= {"precompute_ref_log_probs": True}  # so that TRL holds none; see there
    return options.of_section(
        kind, dpo, micro_batch=micro_batch, num_accumulated=num_accumulated, folder=folder, **ours
    )


def make_trainer(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    dpo: Dpo,
    encoded: Path,
    num_new_tokens: int,
    curve: LearningCurve,
    attempt: Attempt,
    folder: Path,
) -> DpoTrainer | kto.KtoTrainer:
    """A trainer on the splits in the folder `encoded`, whose numbers go to `curve`.

    Args:
        load: the model that this phase begins with. Without an adapter it is read twice: once to
            be trained, once to be compared with.
        num_new_tokens: the last tokens of the tokenizer, that the base has not seen.
        attempt: decides when to save and to stop.
        folder: TRL wants one; nothing is written there.

    Raises:
        UserError: rows that this loss cannot learn from, or options that TRL does not know.
    """
    train, validation = (examples(split, encoded, dpo.loss) for split in tokens.SPLITS)
    micro_batch = attempt.micro_batch(dpo.micro_batch)
    asked = {
        "global_batch": dpo.global_batch, "world_size": int(os.environ.get("WORLD_SIZE", "1"))
    }  # fmt: skip
    num_rows = batches.rows_at_once(dpo.phase, micro_batch=micro_batch, **asked)
    num_accumulated = batches.accumulation(dpo.phase, micro_batch=num_rows, **asked)
    args = config(dpo, micro_batch=num_rows, num_accumulated=num_accumulated, folder=folder)
    output_head.install_on_cpu()
    model = load()
    if dpo.lora:
        model = adapters.attach(
            model, dpo, num_tokens=len(tokenizer), num_new_tokens=num_new_tokens
        )
    is_kto, budget = dpo.loss == "kto", batches.budget(micro_batch)
    trainer = _kind(is_kto, budget)(
        model,
        ref_model=None if dpo.lora or args.precompute_ref_log_probs else load(),
        phase=dpo.phase,
        attempt=attempt,
        best=Best(keep=dpo.keep == "best", patience=dpo.patience),
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[curve],
        **({} if not is_kto else {"data_collator": kto.WithNeighbours(tokenizer.pad_token_id)}),
        **({} if is_kto else {"dpo": dpo}),
    )
    around_trl.settle(trainer, model, dpo.lora)
    return trainer


def _kind(is_kto: bool, budget: int | None) -> Callable[..., DpoTrainer | kto.KtoTrainer]:
    if budget is None:
        return kto.KtoTrainer if is_kto else DpoTrainer
    return partial(kto.PackedKtoTrainer if is_kto else PackedDpoTrainer, budget=budget)


def check_batches(trainer: DpoTrainer | kto.KtoTrainer) -> None:
    """Prove that packs are what their rows are alone, where there are any.

    Raises:
        UserError: they are not.
    """
    if isinstance(trainer, PreferringInPacks):
        trainer.check()


def examples(split: str, encoded: Path, loss: str) -> Dataset:
    """A split as TRL reads it: pairs, or for kto each answer alone with its label.

    Raises:
        UserError: rows with one answer, and a loss that compares two.
    """
    rows = tokens.read(split, encoded)
    table = rows.data.table
    if loss == "kto":
        return kto.labelled(table)
    num_single = table["chosen_ids"].null_count + table["rejected_ids"].null_count
    if num_single:
        raise UserError(
            f"params.yaml: dpo.loss: {loss} compares two answers to a prompt, and {num_single} of "
            f"{len(rows)} {split} rows have only one, labelled good or bad. Write dpo.loss: kto, "
            "which learns from both kinds, or take those rows out of data.sources."
        )
    return rows.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
