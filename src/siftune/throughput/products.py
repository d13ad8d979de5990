"""Attention over a pack on a CPU, by plain matrix products, forward and backward.

PyTorch's own kernel for CPUs reaches about half the rate of such products where rows are short, and
its backward gives no more threads work than there are heads of keys.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from siftune.throughput.layout import Layout

# Tokens that look at others at once: none of a long row is multiplied with all that come after it.
BLOCK = 128
# Tokens that are looked at: the probabilities of a block with more are computed twice, not kept.
KEPT = 512
# Tokens of a row: with longer ones PyTorch's own kernel is as fast, and then faster.
LONGEST = 1024


class _Block(NamedTuple):
    """Some tokens of a segment, and what they see, as places in the pack."""

    own: slice
    seen: list[slice]  # in the order of the row; up to the last of its own


def serves(query: Tensor, layout: Layout, softcap: float | None) -> bool:
    """Whether it computes what is asked for: on a CPU, all in fp32, logits uncapped, short rows."""
    if query.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if query.dtype not in (torch.float32, torch.float64) or softcap is not None:
        return False
    return int(layout.position_ids.max()) < LONGEST


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float,
    window: int | None,
) -> Tensor:
    """What each token finds in those of its row up to itself.

    Args:
        query: [1, H, N, D].
        key, value: [1, H / groups, N, D].
        window: tokens that a token sees, itself included.

    Returns:
        [1, N, H, D].
    """
    return _Attention.apply(query, key, value, layout, scaling, window)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        query = query[0] * scaling
        key, value = (states[0].repeat_interleave(groups, dim=0) for states in (key, value))
        out = value.new_empty(*value.shape[1::-1], value.shape[2])
        kept = []
        for block in _blocks(layout, window):
            probs = _probs(query, key, block, layout, window)
            out[block.own] = torch.bmm(probs, _gather(value, block.seen)).transpose(0, 1)
            if any(ctx.needs_input_grad) and probs.shape[2] <= KEPT:
                kept.append(probs)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout, ctx.scaling, ctx.window, ctx.groups = layout, scaling, window, groups
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *all_kept = ctx.saved_tensors
        kept = iter(all_kept)
        of_out = gradients[0][0].transpose(0, 1)
        of_query = query.new_empty(*query.shape[1::-1], query.shape[2])
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for block in _blocks(ctx.layout, ctx.window):
            keys, own = _gather(key, block.seen), of_out[:, block.own]
            if keys.shape[1] <= KEPT:
                probs = next(kept)
            else:
                probs = _probs(query, key, block, ctx.layout, ctx.window)
            of_probs = torch.bmm(own, _gather(value, block.seen).transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_probs, probs, -1, probs.dtype)
            of_query[block.own] = torch.bmm(of_scores, keys).transpose(0, 1)
            _add(of_key, block.seen, torch.bmm(of_scores.transpose(1, 2), query[:, block.own]))
            _add(of_value, block.seen, torch.bmm(probs.transpose(1, 2), own))
        of_query = of_query.mul_(ctx.scaling).transpose(0, 1)
        of_key, of_value = (
            states.view(-1, ctx.groups, *states.shape[1:]).sum(dim=1)
            for states in (of_key, of_value)
        )
        return of_query[None], of_key[None], of_value[None], None, None, None


def _blocks(layout: Layout, window: int | None) -> Iterator[_Block]:
    paths: list[list[slice]] = []
    for segment in layout.segments:
        before = paths[segment.parent] if segment.parent >= 0 else []
        paths.append([*before, slice(segment.start, segment.end)])
        for start in range(segment.start, segment.end, BLOCK):
            end = min(start + BLOCK, segment.end)
            position = segment.position + start - segment.start
            unseen = 0 if window is None else max(position - window + 1, 0)
            seen = _without([*before, slice(segment.start, end)], unseen)
            yield _Block(slice(start, end), seen)


def _without(places: list[slice], number: int) -> list[slice]:
    """Places without so many of the first tokens."""
    left = []
    for place in places:
        skipped = min(number, place.stop - place.start)
        number -= skipped
        if skipped < place.stop - place.start:
            left.append(slice(place.start + skipped, place.stop))
    return left


def _probs(query: Tensor, key: Tensor, block: _Block, layout: Layout, window: int | None) -> Tensor:
    """[H, own, seen]."""
    scores = torch.bmm(query[:, block.own], _gather(key, block.seen).transpose(1, 2))
    length = scores.shape[1]
    # Without a window, all see what is before the block.
    masked = scores if window is not None else scores[:, :, -length:]
    masked.masked_fill_(~layout.seen(masked.shape[2] - length, length, window), -torch.inf)
    return torch.softmax(scores, dim=-1)


def _gather(states: Tensor, places: list[slice]) -> Tensor:
    """[H, N, D] → [H, seen, D]."""
    parts = [states[:, place] for place in places]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _add(total: Tensor, places: list[slice], found: Tensor) -> None:
    """The reverse of `_gather`, for gradients."""
    sizes = [place.stop - place.start for place in places]
    for place, part in zip(places, torch.split(found, sizes, dim=1), strict=True):
        total[:, place] += part
