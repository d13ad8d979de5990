"""Attention over a pack: each segment by itself, its keys after those of the segments before it.

A row's own tokens attend to the shared tokens once computed, followed by their own; no mask is
ever as large as the pack. Registered with transformers (`AttentionInterface`), which makes no mask
of its own for an attention that it does not know. The layout reaches it as a keyword of the
model's forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from siftune.throughput import products
from siftune.throughput.layout import Layout

NAME = "siftune_shared_prefix"


def register() -> None:
    """Make `NAME` known to transformers, for `model.set_attn_implementation`."""
    AttentionInterface.register(NAME, shared_prefix_attention)


@contextmanager
def instead(model: Any, name: str) -> Iterator[None]:
    """Within, the model attends by what is registered as `name`."""
    register()
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, N, D]
    key: Tensor,  # [1, H / groups, N, D]
    value: Tensor,
    _attention_mask: None,
    *,
    scaling: float,
    layout: Layout,
    dropout: float = 0.0,
    sliding_window: int | None = None,  # tokens that a token sees, itself included
    softcap: float | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of each row as if it were alone: [1, N, H, D]."""
    assert dropout == 0.0, "a shared token would get one dropout for all its rows"
    if products.serves(query, layout, softcap):
        return products.attend(query, key, value, layout, scaling, sliding_window), None
    sizes = [segment.end - segment.start for segment in layout.segments]
    queries, keys, values = (torch.split(states, sizes, dim=2) for states in (query, key, value))
    found = []
    paths: list[list[int]] = []
    for i, segment in enumerate(layout.segments):
        paths.append([*(paths[segment.parent] if segment.parent >= 0 else []), i])
        seen = [torch.cat([states[j] for j in paths[i]], dim=2) for states in (keys, values)]
        is_windowed = sliding_window is not None and sliding_window < segment.position + sizes[i]
        is_causal = segment.position == 0 and not is_windowed and softcap is None
        mask = None if is_causal else layout.seen(segment.position, sizes[i], sliding_window)
        found.append(_attend(queries[i], *seen, mask=mask, scaling=scaling, softcap=softcap))
    return torch.cat(found, dim=2).transpose(1, 2), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,  # None: all up to itself, without a softcap
    scaling: float,
    softcap: float | None,
) -> Tensor:
    # With fewer heads of keys and a mask, a GPU would take its slow kernel.
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scaling
        )
    assert mask is not None
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
    return (
        scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(query) @ value
    )
