"""Measure that merged = base + adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from siftune.models import device, load_model
from siftune.training import adapters, phases

Logits = list[Tensor]  # one [positions, vocabulary] a prompt


def load_trained(
    base: Path, trained: Sequence[Path], *, num_tokens: int
) -> PreTrainedModel | PeftModel:
    """The last of what was trained side by side with what it was trained on, not merged.

    Args:
        trained: what each phase left, in their order; the last is an adapter or all weights.
        num_tokens: as for `models.load_model`.
    """
    *earlier, last = trained
    if not adapters.is_adapter(last):
        return load_model(last)
    started = phases.start(base, earlier, num_tokens=num_tokens)
    return PeftModel.from_pretrained(started, str(last)).eval()


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> Logits:
    """The model's logits at every position of each row of token ids, in fp32 on the CPU."""
    return [
        model(input_ids=torch.tensor([ids], device=device())).logits[0].float().cpu()
        for ids in rows
    ]


def distance(reference: Logits, other: Logits) -> dict[str, Any]:
    """How far `other` is from `reference`, over all positions.

    Returns:
        `max_logit_difference`; `mean_kl` in nats a token, KL(reference ‖ other); `top1_agreement`
        as a share; `num_positions`.
    """
    pairs = list(zip(reference, other, strict=True))
    num_positions = sum(len(expected) for expected, _ in pairs)
    kl = num_agreed = 0.0
    for expected, found in pairs:
        # In fp64: a sum over the vocabulary in fp32 is only exact to 1e-7.
        log_p, log_q = (torch.log_softmax(one.double(), dim=-1) for one in (expected, found))
        kl += (log_p.exp() * (log_p - log_q)).sum().item()
        num_agreed += (expected.argmax(dim=-1) == found.argmax(dim=-1)).sum().item()
    return {
        "max_logit_difference": max((one - two).abs().max().item() for one, two in pairs),
        "mean_kl": max(kl / num_positions, 0.0),
        "top1_agreement": num_agreed / num_positions,
        "num_positions": num_positions,
    }
