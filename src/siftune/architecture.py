"""Whether the base can be trained here: a model that writes text, with a tokenizer."""

import json
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from siftune import sources
from siftune.sections import Model
from siftune.stage import UserError

# The parts that models have besides that for text.
_OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "speech_config")


def require_fit(model: Model) -> None:
    """Refuse what could not be trained, by its small files: no weight is fetched or loaded.

    Raises:
        UserError: the architecture is unknown to this transformers, reads more than text, or does
            not write from left to right; the weights are quantised; the configuration or the
            tokenizer cannot be read. As for `sources.model_files`.
    """
    folder = sources.model_files(model.source, model.revision, weights=False)
    if folder.suffix == ".gguf":  # its reader refuses what it does not know
        return
    problem = _problem(folder)
    if problem:
        raise UserError(
            f"params.yaml: model.source: {model.source} {problem} What can be trained is a model "
            "that reads and writes text, from left to right, with weights of 16 or 32 bits."
        )
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise _unreadable(model, "configuration", error) from None
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise _unreadable(model, "tokenizer", error) from None


def _problem(folder: Path) -> str | None:
    """What is wrong with the kind of model, in a sentence that follows the model's name."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, TypeError, KeyError):
        return "has no config.json that names its model_type."
    if kind not in CONFIG_MAPPING_NAMES:
        own = " Python of its own, as it brings it, is never run." if "auto_map" in config else ""
        return f"is of the type {kind!r}, unknown to transformers {transformers.__version__}.{own}"
    other = [part for part in _OTHER_SENSES if part in config]
    if other:
        return f"reads more than text (its configuration has a {other[0]})."
    written = (config.get("architectures") or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)])[0]
    if written not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return f"is a {written or kind}."
    if quantised := config.get("quantization_config"):
        return (
            f"has weights that are quantised already ({quantised.get('quant_method')}), which no "
            "adapter can be merged with. Name the model that it was made from; load.quantise "
            "loads that in 4 or 8 bits for a training."
        )
    return None


def _unreadable(model: Model, what: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:300]
    return UserError(
        f"params.yaml: model.source: the {what} of {model.source} cannot be read by transformers "
        f"{transformers.__version__}: {said}"
    )
