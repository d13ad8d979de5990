"""LoRA by PEFT: the section → an adapter on a base, and what was trained → files."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.loftq_utils import replace_lora_weights_loftq
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from siftune import batches, files, models
from siftune.sections import Lora, Model, Training
from siftune.stage import UserError
from siftune.throughput import lora as fast_lora
from siftune.training import engine, requirements
from siftune.training.origin import SETTINGS, WEIGHTS

ALL_LINEAR = "all-linear"
_FACTOR = re.compile(r"\.lora_([AB])\.")


def embeddings(model: PreTrainedModel) -> dict[str, str]:
    """The names of the embedding and the output head, by the last part of each."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, one in model.named_modules() if any(one is layer for layer in layers)]
    return {name.rpartition(".")[2]: name for name in names}


def is_adapter(folder: Path) -> bool:
    """Whether a training left an adapter there, or else all weights."""
    return (folder / SETTINGS).exists()


def require(model: PreTrainedModel, lora: Lora) -> None:
    """Refuse targets and modules that this architecture does not have; weights are not needed.

    Raises:
        UserError: with the names that it has.
    """
    layers = dict(model.named_modules())
    head = model.get_output_embeddings()
    linear = {name for name, one in layers.items() if isinstance(one, nn.Linear | Conv1D)}
    linear -= {name for name, one in layers.items() if one is head}
    targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    is_regex = isinstance(lora.targets, str)
    for target in targets:
        found = linear if target == ALL_LINEAR else _matching(target, layers, is_regex=is_regex)
        if not found or not found <= linear:
            wrong = f"no layer is called {target}" if not found else f"{min(found - linear)} is not"
            raise UserError(
                f"params.yaml: lora.targets: {wrong} among the linear layers of this model that "
                f"LoRA can adapt. Valid: {ALL_LINEAR}, or of {_listed(linear)}. The embedding and "
                "the output head are trained whole, in lora.modules_to_save."
            )
    for module in lora.modules_to_save:
        found = _matching(module, layers, is_regex=False)
        if not found:
            with_weights = {
                name for name, one in layers.items() if [*one.parameters(recurse=False)]
            }
            raise UserError(
                f"params.yaml: lora.modules_to_save: no module of this model is called {module}. "
                f"It has {_listed(with_weights)}."
            )
        if lora.targets != ALL_LINEAR and module in lora.targets:
            raise UserError(
                f"params.yaml: lora.modules_to_save: {module} is in lora.targets, too: either."
            )


def require_fit(folder: Path, base: Model) -> None:
    """Refuse an adapter whose weights are not those that PEFT would look for on this base.

    Only headers and shapes are read.

    Raises:
        UserError: with the first weight that is missing, too many, or of another shape.
    """
    assert base.adapter
    told = f"params.yaml: model.adapter: {base.adapter.source} does not fit {base.source}: "
    config = PeftConfig.from_pretrained(str(folder))
    # What PEFT would compute from weights, or warn of: `origin` has looked at the name.
    config.init_lora_weights, config.base_model_name_or_path = False, None
    empty = models.load_model(models.folder_of(base.source, base.revision), device_map="meta")
    try:
        adapted = get_peft_model(empty, config, low_cpu_mem_usage=True)
        with safe_open(folder / WEIGHTS, "pt") as opened:
            has = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (ValueError, SafetensorError) as error:
        raise UserError(told + " ".join(str(error).split())[:300]) from None
    needs = {
        name: tuple(weight.shape)
        for name, weight in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    for name in sorted(has.keys() | needs.keys()):
        if has.get(name) != needs.get(name):
            raise UserError(
                f"{told}{name} is {has.get(name, 'not there')}, and this base takes "
                f"{needs.get(name, 'no such weight')}. Take the model that it was trained on. One "
                "that holds a whole embedding for new tokens has to be merged into its base first."
            )


def attach(
    model: PreTrainedModel, section: Training, *, num_tokens: int, num_new_tokens: int
) -> PeftModel:
    """The section's adapter on its base; its first weights are drawn from the section's seed.

    Args:
        num_tokens: of the tokenizer.
        num_new_tokens: the last of these, which the base has not seen. Their rows of the embedding
            and the head are trained whole.
    """
    lora = section.lora
    assert lora
    set_seed(section.seed)
    config = _config(model, lora, _new_rows(model, num_tokens, num_new_tokens))
    if fast_models := engine.start(section.load):
        return _by_unsloth(fast_models, model, config, section.seed)
    if batches.budget(section.micro_batch) and not section.load.quantise:
        fast_lora.use_in(config)
    adapter: PeftModel = get_peft_model(model, config)
    # TRL compares with a copy of the adapter: PiSSA and its kin would take it from the base anew.
    config.init_lora_weights = True
    if lora.init == "loftq":
        replace_lora_weights_loftq(adapter, model.name_or_path)
        scaling = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        for name, weight in adapter.named_parameters():
            if ".lora_B." in name:  # PEFT forgets that the product is scaled
                weight.data /= scaling
    return adapter


def first_factors(model: PeftModel, lora: Lora) -> dict[str, Tensor]:
    """Both factors before training, where they take something from the base; else nothing.

    PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) subtract their first product from the base;
    that of LoftQ (Li et al. 2023) stands for what quantisation has lost of it.
    """
    if lora.init in requirements.STAYS:
        return {}
    return {
        name: weight.detach().cpu().clone()
        for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if _FACTOR.search(name)
    }


def save(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    base: str,
    first: dict[str, Tensor],
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write an adapter on the base as it was fetched; without an adapter, all weights.

    Args:
        base: its source, in place of this machine's path.
        weights: gathered from shards (`resume.sharded`); None: the model has them.
        first: `first_factors`. What was learned is what the product is more than theirs, and is
            written as an adapter of twice the rank: `B A - B₀ A₀ = [B -B₀] [A A₀]ᵀ`.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=weights)
        return
    # Rows of new tokens are in the adapter; the base's own are not copied into it. Nor is the
    # adapter that TRL compares with.
    model.save_pretrained(
        str(folder),
        selected_adapters=["default"],
        save_embedding_layers=False,
        state_dict=weights,
    )
    settings = files.read_json(folder / SETTINGS) | {"base_model_name_or_path": base}
    if first:
        trained = load_file(folder / WEIGHTS)
        save_file(
            {name: _learned(name, weight, first) for name, weight in trained.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        more = math.sqrt(2) if settings["use_rslora"] else 2
        settings |= {
            "init_lora_weights": True,
            "r": 2 * settings["r"],
            "lora_alpha": more * settings["lora_alpha"],
        }
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # PEFT's set has another order in every process
    files.write_json(folder / SETTINGS, settings)
    (folder / "README.md").unlink()  # PEFT's empty model card; ours says what was measured


def _learned(name: str, weight: Tensor, first: dict[str, Tensor]) -> Tensor:
    factor = _FACTOR.search(name)
    if not factor:
        return weight
    if factor[1] == "A":
        return torch.cat([weight, first[name]], dim=0)
    return torch.cat([weight, -first[name]], dim=1)


def _config(model: PreTrainedModel, lora: Lora, new_rows: dict[str, list[int]]) -> LoraConfig:
    whole = {name.rpartition(".")[2] for name in lora.modules_to_save}
    ties = bool(model.config.tie_word_embeddings and whole & set(embeddings(model)))
    rows = {} if ties else {name: rows for name, rows in new_rows.items() if name not in whole}
    return LoraConfig(
        trainable_token_indices=rows or None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        init_lora_weights=True if lora.init in ("default", "loftq") else lora.init,
        modules_to_save=lora.modules_to_save or None,
        ensure_weight_tying=ties,
        task_type="CAUSAL_LM",
    )


def _by_unsloth(fast_models: Any, model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    return fast_models.get_peft_model(
        model,
        r=config.r,
        target_modules=config.target_modules,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        ensure_weight_tying=config.ensure_weight_tying,
        use_gradient_checkpointing=False,  # TRL's option decides, as with the other engine
        random_state=seed,
    )


def _new_rows(model: PreTrainedModel, num_tokens: int, num_new_tokens: int) -> dict[str, list[int]]:
    """Rows of tokens that the base has not seen, in each layer with weights of its own."""
    if num_new_tokens == 0:
        return {}
    rows = list(range(num_tokens - num_new_tokens, num_tokens))
    head = model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    return {
        last: rows
        for last, name in embeddings(model).items()
        if not (tied and model.get_submodule(name) is head)
    }


def _matching(name: str, layers: dict[str, nn.Module], *, is_regex: bool) -> set[str]:
    """As PEFT matches: a regular expression as a whole, a name of a list at the end."""
    if is_regex:
        return {one for one in layers if re.fullmatch(name, one)}
    return {one for one in layers if one == name or one.endswith(f".{name}")}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
