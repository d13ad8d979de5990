"""Tiny models and rows for the tests of siftune.throughput, and what the rows alone would give."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from siftune.throughput import attention, layout, lora, loss, planner

VOCABULARY = 97
WINDOW = 9  # tokens; the rows here are up to three times as long

# GQA everywhere (4 heads, 2 of keys), head_dim apart from hidden_size / heads where it is free.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral-sliding": ("mistral", {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": (
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 20}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("phi3", {}),
    "phi3-sliding": ("phi3", {"sliding_window": WINDOW}),
}  # fmt: skip

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip


def model(shape: str, dtype: torch.dtype = torch.float32, *, own_lora: bool = False) -> Any:
    """A random model of two layers with LoRA on all linear layers, its matrices B not at zero.

    The same weights each time; computed by PEFT, or by `throughput.lora`.
    """
    kind, special = SHAPES[shape]
    torch.manual_seed(0)
    # Eager is the definition: of the others, some leave out Gemma-2's soft-capping.
    base = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **(COMMON | special)), attn_implementation="eager"
    )
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    if own_lora:
        lora.use_in(config)
    return get_peft_model(base, config).to(dtype)


Rows = tuple[list[np.ndarray], list[np.ndarray]]  # token ids, labels


def rows(seed: int = 0) -> Rows:
    """A prefix tree of three levels, several turns, prefixes of others, equal rows, a stranger."""
    generator = np.random.default_rng(seed)

    def some(length: int) -> list[int]:
        return generator.integers(3, VOCABULARY, length).tolist()

    system, shots, turns = some(6), some(7), some(8)
    ids = [
        *(system + shots + some(length) for length in (5, 9, 1)),
        *(system + some(length) for length in (4, 8)),
        system + shots,
        system + turns,
        system + turns + some(6),
        system + turns + some(3),
        some(12),
    ]
    ids.append(list(ids[0]))
    first_trained = [9, 13, 13, 6, 6, 8, 7, 7, 16, 1, 13]  # some within what is shared
    labels = [
        [-100] * start + row[start:] for row, start in zip(ids, first_trained, strict=True)
    ]  # fmt: skip
    labels[7][11:13] = [-100, -100]  # a user's turn between two answers
    return [np.array(row) for row in ids], [np.array(row) for row in labels]


Result = tuple[float, dict[str, Tensor]]  # loss, gradient of each trained weight


def alone(model: Any, given: Rows, implementation: str = "eager") -> Result:
    """Each row by itself, the head everywhere: the mean over all trained tokens."""
    model.set_attn_implementation(implementation)
    num_trained = count(given[1])
    losses = []
    model.zero_grad()
    for ids, labels in zip(*given, strict=True):
        logits = model(input_ids=torch.tensor(ids)[None]).logits[0, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels)[1:], ignore_index=-100, reduction="sum"
            )
            / num_trained
        )
        losses[-1].backward()
    return sum(one.item() for one in losses), gradients(model)


def packed(model: Any, given: Rows, budget: int = 1000, *, share: bool = True) -> Result:
    """The same by packs of at most `budget` tokens, as training computes it."""
    attention.register()
    model.set_attn_implementation(attention.NAME)
    num_trained = count(given[1])
    total = 0.0
    model.zero_grad()
    for pack in planner.plan(given[0], budget, share=share):
        found = loss.training_loss(model, layout.lay_out(pack, *given), num_trained)
        found.backward()
        total += found.item()
    return total, gradients(model)


def count(labels: Sequence[np.ndarray]) -> int:
    return sum(int((row[1:] != -100).sum()) for row in labels)


def gradients(model: Any) -> dict[str, Tensor]:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: weight.grad.clone() for name, weight in trained.items()}


def difference(one: Result, other: Result) -> float:
    """The largest relative difference of the loss and of any weight's gradient, by its norm."""
    assert one[1].keys() == other[1].keys()
    of_gradients = [
        float(
            torch.linalg.vector_norm(one[1][name] - gradient) / torch.linalg.vector_norm(gradient)
        )
        for name, gradient in other[1].items()
    ]
    return max(abs(one[0] / other[0] - 1), *of_gradients)


def leak(monkeypatch) -> None:
    """A row's own tokens also see those of the row before it in the pack."""

    def everything(segments):
        return tuple(
            planner.Segment(s.start, s.end, s.position, max(i - 1, -1), s.subtree_end)
            for i, s in enumerate(segments)
        )

    original = planner._with_subtrees
    monkeypatch.setattr(planner, "_with_subtrees", lambda found: everything(original(found)))


def wrong_positions(monkeypatch) -> None:
    """Positions go on over the whole pack."""
    original = loss.inputs

    def running(made):
        positions = torch.arange(made.input_ids.shape[1])[None]
        return original(made) | {"position_ids": positions}

    monkeypatch.setattr(loss, "inputs", running)


def counted_once(monkeypatch) -> None:
    """A trained token that rows share counts as one."""
    original = layout.lay_out

    def once(*given):
        made = original(*given)
        pairs = torch.unique(torch.stack([made.source_of, made.targets]), dim=1)
        return replace(made, source_of=pairs[0].contiguous(), targets=pairs[1])

    monkeypatch.setattr(layout, "lay_out", once)


def lost_weight(monkeypatch) -> None:
    """Each pack is divided by its own trained tokens instead of the batch's."""
    original = loss.training_loss
    monkeypatch.setattr(
        loss, "training_loss", lambda model, made, _: original(model, made, len(made.targets))
    )
