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

from siftune.throughput.layout import Layout
from siftune.throughput.planner import Segment

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
    sizes = [segment.end - segment.start for segment in layout.segments]
    queries, keys, values = (torch.split(states, sizes, dim=2) for states in (query, key, value))
    found = []
    paths: list[list[int]] = []
    for i, segment in enumerate(layout.segments):
        paths.append([*(paths[segment.parent] if segment.parent >= 0 else []), i])
        seen = [torch.cat([states[j] for j in paths[i]], dim=2) for states in (keys, values)]
        mask = _mask(layout, segment, sliding_window, query)
        found.append(_attend(queries[i], *seen, mask=mask, scaling=scaling, softcap=softcap))
    return torch.cat(found, dim=2).transpose(1, 2), None


def _mask(layout: Layout, segment: Segment, window: int | None, like: Tensor) -> Tensor | None:
    """Which keys of its path each token of a segment sees, [L, P + L]; None: all up to itself."""
    num_before, length = segment.position, segment.end - segment.start
    window = window if window is not None and window < num_before + length else None
    if window is None and num_before == 0:
        return None
    sizes = (num_before, length, window or 0)
    if sizes not in layout.masks:
        keys = torch.arange(num_before + length, device=like.device)
        distance = keys[num_before:, None] - keys
        seen = distance >= 0
        layout.masks[sizes] = seen if window is None else seen & (distance < window)
    return layout.masks[sizes]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    # The CPU's kernel takes fewer heads of keys with a mask; on a GPU that ends in the slow one.
    is_grouped = softcap is None and query.device.type == "cpu"
    if not is_grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    if softcap is None:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scaling, enable_gqa=is_grouped
        )
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap))
    if mask is None:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    return (
        scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(query) @ value
    )
