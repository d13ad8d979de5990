"""What is computed differently, or not at all, when tokens are shared: refused before training."""

from typing import Any

import torch

from siftune.stage import UserError

# Tokens of these see each other through the attention function alone, which passes on what the
# forward is given; tests/test_throughput_exactness.py proves each.
FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")


def has_dropout(model: torch.nn.Module) -> bool:
    """Whether tokens get dropout, each its own: then packs may not share any."""
    return any(isinstance(one, torch.nn.Dropout) and one.p > 0 for one in model.modules())


def check(model: torch.nn.Module, longest: int, *, key: str) -> None:
    """Refuse a model whose packed training would not be exactly that of its rows alone.

    Args:
        model: with its adapter.
        longest: tokens of the longest row.
        key: where a token budget is set.

    Raises:
        UserError: says what is in the way.
    """
    if found := obstacle(model.config, longest):
        raise UserError(f"{key}: no packs here, only a number of rows, such as 4: {found}")


def obstacle(config: Any, longest: int) -> str | None:
    """What keeps rows of up to `longest` tokens from being computed in packs; None: nothing."""
    if config.model_type not in FAMILIES:
        return f"packs are for the families {', '.join(FAMILIES)}; this is {config.model_type}."
    if getattr(config, "use_bidirectional_attention", False):
        return "this model sees later tokens too."
    if getattr(config, "attention_dropout", 0.0) > 0:
        return "attention_dropout in its config.json is more than 0."
    rope = getattr(config, "rope_parameters", None) or {}
    original = getattr(config, "original_max_position_embeddings", None)
    original = rope.get("original_max_position_embeddings", original)
    if rope.get("rope_type") in ("dynamic", "longrope") and original and longest > original:
        return (
            f"beyond {original} tokens this model turns its positions by the longest row of a "
            f"batch, and a row has {longest}."
        )
    return None
