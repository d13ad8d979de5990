"""TRL's output head for the CPU: log-probabilities at the trained positions only.

TRL 1.15 computes log-probabilities in a Triton kernel; without Triton its slot for that kernel is
empty, and with Triton the kernel takes no CPU tensors. This fills the slot with plain PyTorch.
"""

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
        logits = functional.linear(hidden, weight, bias).float() * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits / temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
            squares = (
                torch.logsumexp(2 * log_probs, dim=-1) if "log_sum_sq_probs" in outputs else None
            )
            mean = logits.mean(dim=-1) if "mean_logits" in outputs else None
            is_top1 = log_probs.argmax(dim=-1) == targets
        target_log_probs = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        return target_log_probs, entropy, squares, mean, is_top1


def install_on_cpu() -> None:
    """Fill TRL's slot, before a trainer is made, on machines without a GPU."""
    if not torch.cuda.is_available():
        from trl.trainer import utils

        utils._ChunkedLogProbFunction = CpuLogProb
