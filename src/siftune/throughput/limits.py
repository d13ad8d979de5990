"""What is computed differently, or not at all, when tokens are shared: refused before training."""

from typing import Any

import torch

from siftune.stage import UserError

# Tokens of these see each other through the attention function alone, which passes on what the
# forward is given; tests/test_throughput_exactness.py proves each.
FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")


def check(model: torch.nn.Module, longest: int) -> None:
    """Refuse a model whose packed training would not be exactly that of its rows alone.

    Args:
        model: with its adapter.
        longest: tokens of the longest row.

    Raises:
        UserError: says what is in the way.
    """
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise UserError(
            f"Tokens are shared in models of the families {', '.join(FAMILIES)}; this one is "
            f"{config.model_type}."
        )
    if getattr(config, "use_bidirectional_attention", False):
        raise UserError("This model sees later tokens too: rows with one beginning share nothing.")
    dropouts = {
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p > 0
    }  # fmt: skip
    if dropouts or getattr(config, "attention_dropout", 0.0) > 0:
        where = min(dropouts, default="config.json: attention_dropout")
        raise UserError(
            f"{where}: a shared token would get one dropout for all its rows, where each row has "
            "its own. Set dropout to 0, or train without sharing."
        )
    rope = getattr(config, "rope_parameters", None) or {}
    original = getattr(config, "original_max_position_embeddings", None)
    original = rope.get("original_max_position_embeddings", original)
    if rope.get("rope_type") in ("dynamic", "longrope") and original and longest > original:
        raise UserError(
            f"Beyond {original} tokens this model turns its positions by the longest row of a "
            f"batch, and a row has {longest}: what is computed together would change the result."
        )
