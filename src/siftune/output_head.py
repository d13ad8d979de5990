"""TRL's output head for the CPU: log-probabilities at the trained positions only.

TRL 1.15 computes log-probabilities in a Triton kernel; without Triton its slot for that kernel is
empty, and with Triton the kernel takes no CPU tensors. This fills the slot with plain PyTorch.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class CpuLogProb:
    """Stands in for `trl.kernels.ChunkedLogProbFunction`: same arguments, same five results."""

    @staticmethod
    def apply(
        hidden: Tensor,  # [N, H], the trained positions
        weight: Tensor,  # [V, H]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [N]
        temperature: float,
        _chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """Of each target, [N] each: log-probability, entropy in nats, `log_sum_sq_probs` (the log
        of the sum of all squared probabilities) and `mean_logits`, where `outputs` names them, and
        whether the target is the likeliest.
        """
        logits = functional.linear(hidden, weight, bias).float()
        # Each pass over them is as long as the vocabulary: none that changes nothing.
        if logit_scale != 1:
            logits = logits * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1:
            logits = logits / temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        entropy: Tensor = _Entropy.apply(log_probs)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            squares = (
                torch.logsumexp(2 * log_probs, dim=-1) if "log_sum_sq_probs" in outputs else None
            )
            mean = logits.mean(dim=-1) if "mean_logits" in outputs else None
            is_top1 = log_probs.argmax(dim=-1) == targets
        target_log_probs = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        return target_log_probs, entropy, squares, mean, is_top1


class _Entropy(torch.autograd.Function):
    """Of distributions, in nats; keeps no more than their log-probabilities, which are kept anyway.

    Nearly always it is only logged: then its gradient costs nothing.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor) -> Tensor:
        """[N, V] → [N]."""
        ctx.save_for_backward(log_probs)
        return -(log_probs.exp().mul_(log_probs)).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (log_probs,) = ctx.saved_tensors
        return log_probs.exp().mul_(log_probs + 1).mul_(-gradients[0][:, None])


def install_on_cpu() -> None:
    """Fill TRL's slot, before a trainer is made, on machines without a GPU."""
    if not torch.cuda.is_available():
        from trl.trainer import utils

        utils._ChunkedLogProbFunction = CpuLogProb
