"""The chain of phases: each starts from the base with what all phases before it have trained."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from siftune import files, models, shards
from siftune.sections import PHASES
from siftune.stage import UserError
from siftune.training import adapters, folding, left_out, origin


def before(phase: str | None = None) -> list[Path]:
    """What was trained on the base before this phase, in order; None: after all phases.

    That is the adapter that is given with the base, if one is, and what the earlier phases left.
    No weights are loaded.

    Raises:
        UserError: what a phase leaves is not there, or was trained from something else. As for
            `origin.given`.
    """
    names = list(PHASES)
    earlier = names[: names.index(phase)] if phase else names
    found = [given] if (given := origin.given()) else []
    for name in earlier:
        folder = left_out.published(name)
        if not folder.is_dir():
            raise UserError(f"{folder} is not there. Run `dvc repro {name}`.")
        if left_out.holds_weights(folder):
            _refuse_another_start(name, folder)
            found.append(folder)
    return found


def start(
    base: Path,
    trained: Sequence[Path],
    *,
    num_tokens: int,
    dtype: torch.dtype | None = None,
    **how: Any,
) -> PreTrainedModel:
    """As `models.load_model`, after the phases that left `trained`; these are merged in memory."""
    if not trained:
        return models.load_model(base, num_tokens=num_tokens, dtype=dtype, **how)
    model = merged(base, trained, num_tokens=num_tokens, **how)
    return model.to(dtype or models.device_dtype()).to(models.device()).eval()


def merged(base: Path, trained: Sequence[Path], *, num_tokens: int, **how: Any) -> PreTrainedModel:
    """The base with what each phase trained, on the CPU in the base's own dtype.

    A sum is made in fp32, and rounded to that dtype after each phase: so this is what the next one
    began from.

    Args:
        num_tokens, how: as for `models.load_model`.
    """
    model = models.load_model(base, num_tokens=num_tokens, dtype="auto", **how).cpu()
    for folder in trained:
        model = _after(model, folder)
    return model


def write(base: Path, trained: Sequence[Path], target: Path, *, num_tokens: int) -> PreTrainedModel:
    """`merged` in files of the folder `target`, one weight in memory at a time.

    Returns:
        The model that was written; its weights may not be there.
    """
    empty = models.load_model(base, num_tokens=num_tokens, dtype="auto", device_map="meta")
    source = shards.of_folder(base)
    try:
        if not shards.fit(source, empty):
            raise folding.OnlyTogetherError(f"transformers converts the weights in {base}")
        folds = [folding.of(folder, empty) for folder in trained]
    except folding.OnlyTogetherError as why:
        print(f"Merged with all weights in memory: {why}.")
        model = merged(base, trained, num_tokens=num_tokens)
        model.save_pretrained(target)
        return model

    def value_of(name: str) -> Tensor:
        in_model = empty.get_parameter(name)
        weight = shards.read(source, name).to(in_model.dtype)
        if weight.shape != in_model.shape:
            weight = models.with_room(weight, len(in_model))
        for fold in folds:
            weight = fold(name, weight)
        return weight

    shards.write(empty, value_of, source, target)
    empty.config.save_pretrained(target)
    empty.generation_config.save_pretrained(target)
    return empty


def written(base: Path, trained: Sequence[Path], target: Path, *, num_tokens: int) -> Path:
    """`write`, with the tokenizer, once for all processes of a training and all its starts."""
    with target.with_suffix(".lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not target.exists():
            with files.published_folder(target) as aside:
                write(base, trained, aside, num_tokens=num_tokens)
                models.load_tokenizer().save_pretrained(aside)
    return target


@torch.no_grad()
def _after(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    try:
        fold = folding.of(folder, model)
    except folding.OnlyTogetherError:
        return _together(model, folder)
    for name, weight in model.named_parameters():
        weight.data = fold(name, weight.data)
    return model


def _together(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    if not adapters.is_adapter(folder):
        whole = models.load_model(folder, dtype=torch.float32)
        model.load_state_dict(whole.state_dict())
        return model
    dtype = model.dtype
    adapter = PeftModel.from_pretrained(model.float(), str(folder))
    after: PreTrainedModel = adapter.merge_and_unload(safe_merge=True).to(dtype)
    return after


def _refuse_another_start(phase: str, folder: Path) -> None:
    if not adapters.is_adapter(folder):
        return
    theirs = files.read_json(folder / origin.SETTINGS)["base_model_name_or_path"]
    ours = origin.name(phase)
    if theirs != ours:
        raise UserError(
            f"{folder} is an adapter for {theirs}, and {phase} begins from {ours} here: what it "
            f"learned does not fit there. Run `dvc repro {phase}` to train it on {ours}, or put "
            "params.yaml back."
        )
