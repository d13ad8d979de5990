"""Cross-entropy from hidden states, some positions at a time: no logits of a whole batch are kept.

The gradient of the hidden states is computed with the loss, while a chunk's logits are at hand, so
that they are neither kept nor computed twice (as in Liger Kernel, Hsu et al., 2024).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from siftune.throughput.layout import Layout

CHUNK = 512  # positions


@contextmanager
def instead_of_logits(head: nn.Module) -> Iterator[list[Tensor]]:
    """Within, a forward of the model computes no logits; the list gets the head's input, [1, K, H].

    A model wrapped for several processes is called as a whole, as it has to be.
    """
    seen: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(inputs[0])
        return (inputs[0][:, :0],)

    hook = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def is_plain(head: nn.Module) -> bool:
    """Whether the head is frozen, and nothing more than a matrix."""
    return type(head) is nn.Linear and head.bias is None and not head.weight.requires_grad


def nll(hidden: Tensor, head: nn.Linear, layout: Layout, softcap: float | None) -> Tensor:
    """Sum of the negative log-probabilities of all trained tokens, in nats.

    Args:
        hidden: [K, H], at `layout.sources`.
        softcap: `final_logit_softcapping` of the model.
    """
    places = layout.source_of, layout.targets
    return _ChunkedNll.apply(hidden, head.weight, *places, softcap)  # type: ignore[no-untyped-call]


def log_probs(
    hidden: Tensor, head: nn.Module, layout: Layout, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Of each trained token [T]: its log-probability in nats, and whether it is the likeliest.

    Args:
        hidden, softcap: as for `nll`.
    """
    found, are_top = [], []
    for own, source_of, chunk in _chunks(hidden, layout.source_of):
        targets = layout.targets[own]
        logits = head(chunk)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(torch.log_softmax(logits, dim=-1)[source_of, targets])
        are_top.append(logits.argmax(dim=-1)[source_of] == targets)
    return torch.cat(found), torch.cat(are_top)


def _chunks(hidden: Tensor, source_of: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some positions at a time: which trained tokens they predict, from which of them, and they."""
    starts = range(0, len(hidden), CHUNK)
    bounds = torch.searchsorted(source_of, torch.tensor([*starts, len(hidden)]).to(source_of))
    for i, start in enumerate(starts):
        own = slice(int(bounds[i]), int(bounds[i + 1]))
        yield own, source_of[own] - start, hidden[start : start + CHUNK]


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        source_of: Tensor,  # ascending
        targets: Tensor,
        softcap: float | None,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        logits = hidden.new_empty(min(len(hidden), CHUNK), len(weight))
        done = 0
        for own, sources, chunk in _chunks(hidden, source_of):
            made = torch.mm(chunk, weight.T, out=logits[: len(chunk)])
            found, of_logits = _of_chunk(made, sources, targets[own], softcap)
            total += found
            if gradient is not None:
                torch.mm(of_logits.to(weight), weight, out=gradient[done : done + len(chunk)])
            done += len(chunk)
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradient * gradients[0].to(ctx.gradient), None, None, None, None


def _of_chunk(
    logits: Tensor, source_of: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Sum of the losses, and its gradient by the logits, which takes their place in memory."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits.div_(softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(softcap)
    top = logits.amax(dim=-1, keepdim=True)
    at_targets = logits[source_of, targets].sum()
    logits.sub_(top).exp_()
    sums = logits.sum(dim=-1, keepdim=True)
    total = (sums.log() + top)[source_of].sum() - at_targets
    times = torch.bincount(source_of, minlength=len(logits))[:, None]
    logits.mul_(times / sums)
    logits.index_put_((source_of, targets), logits.new_tensor(-1.0), accumulate=True)
    return total, logits if softcap is None else logits.mul_(slope)
