"""TRL's output head for the CPU: log-probabilities at the trained positions only.

TRL 1.15 computes the SFT loss in a Triton kernel; without Triton its slot for that kernel is
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
        _outputs: tuple[str, ...],
    ) -> tuple[Tensor, Tensor, None, None, Tensor]:
        """Log-probability of each target, entropy in nats, whether the target is the likeliest."""
        logits = functional.linear(hidden, weight, bias).float() * logit_scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_probs = torch.log_softmax(logits / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
            is_top1 = log_probs.argmax(dim=-1) == targets
        target_log_probs = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        return target_log_probs, entropy, None, None, is_top1


def install_on_cpu() -> None:
    """Fill TRL's slot, before a trainer is made, on machines without a GPU."""
    if not torch.cuda.is_available():
        from trl.trainer import utils

        utils._ChunkedLogProbFunction = CpuLogProb
