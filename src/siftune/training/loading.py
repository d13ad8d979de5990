"""The base for a training: engine, dtype, attention and quantisation, and which were chosen."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from siftune import models
from siftune.sections import Load, Training
from siftune.stage import UserError
from siftune.training import adapters, engine, phases, requirements


def base(
    folder: Path,
    section: Training,
    *,
    num_tokens: int,
    earlier: Sequence[Path] = (),
    scratch: Path | None = None,
) -> PreTrainedModel:
    """The base as the section wants it; what is impossible is refused before weights are read.

    Weights that are trained themselves are fp32, whatever is computed in; those below an adapter
    are in the dtype that is computed in.

    Args:
        earlier: what phases before this one trained (`phases`); the base is that with the base.
        scratch: where that is written if it can only be loaded from a folder.

    Raises:
        UserError: this machine or this architecture cannot do what params say.
    """
    load = section.load
    requirements.require_machine(load)
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    attention = _attention(load, settings)
    skeleton = _skeleton(settings, attention, load)
    if section.lora:
        adapters.require(skeleton, section.lora)
    dtype = requirements.dtype_of(load) if section.lora else torch.float32
    fast_models = engine.start(load)
    if earlier and (load.quantise or fast_models):
        assert scratch
        folder, earlier = phases.written(folder, earlier, scratch, num_tokens=num_tokens), ()
    if fast_models:
        return _by_unsloth(fast_models, folder, load, settings, num_tokens)
    how: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    if load.quantise:
        how |= {"quantization_config": _quantised(load), "device_map": _this_gpu()}
    return phases.start(folder, earlier, num_tokens=num_tokens, dtype=dtype, **how)


def facts(model: PreTrainedModel, load: Load) -> dict[str, Any]:
    """What was chosen, for the log: engine, device, dtypes, attention, quantisation."""
    return {
        "engine": load.engine,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "computes_in": _name(requirements.dtype_of(load)),
        "weights_in": load.quantise or _name(model.dtype),
        "attention": model.config.get_text_config()._attn_implementation,
    }


def _attention(load: Load, settings: PreTrainedConfig) -> str | None:
    """None: what transformers takes for this architecture, which is sdpa where it can."""
    if load.attention != "auto":
        return load.attention
    # Only eager caps the logits of attention, as Gemma 2 was trained with.
    caps = getattr(settings.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if caps else None


def _skeleton(settings: PreTrainedConfig, attention: str | None, load: Load) -> PreTrainedModel:
    """The layers without weights: what is wrong with them is known before those are read."""
    how = {"attn_implementation": attention} if attention else {}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings, **how)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"params.yaml: load.attention: {load.attention} cannot be had for this model here: "
            f"{' '.join(str(error).split())[:300]} Valid: auto, sdpa, eager."
        ) from None


def _quantised(load: Load) -> BitsAndBytesConfig:
    if load.quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=load.quantise,
        bnb_4bit_use_double_quant=load.double_quantise,
        bnb_4bit_compute_dtype=requirements.dtype_of(load),
    )


def _this_gpu() -> dict[str, int]:
    return {"": int(os.environ.get("LOCAL_RANK", "0"))}  # quantised weights cannot be moved later


def _by_unsloth(
    fast_models: Any, folder: Path, load: Load, settings: PreTrainedConfig, num_tokens: int
) -> PreTrainedModel:
    model, _ = fast_models.from_pretrained(
        model_name=str(folder),
        max_seq_length=settings.get_text_config().max_position_embeddings,
        dtype=requirements.dtype_of(load),
        load_in_4bit=load.quantise in requirements.FOUR_BIT,
        load_in_8bit=load.quantise == "int8",
        quantization_config=_quantised(load) if load.quantise else None,
        use_gradient_checkpointing=False,  # TRL's option decides, as with the other engine
        fix_tokenizer=False,
        use_exact_model_name=True,
        local_files_only=True,
        device_map=_this_gpu(),
    )
    models.make_room(model, num_tokens)
    return model


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
