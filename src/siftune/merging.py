"""Fold what was trained into its base, and measure that merged = base + adapter."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from siftune.models import device, load_model
from siftune.training import adapters

Logits = list[Tensor]  # one [positions, vocabulary] a prompt


def load_trained(base: Path, trained: Path, *, num_tokens: int) -> PreTrainedModel | PeftModel:
    """Base and adapter side by side, not merged; or all weights, where these were trained.

    Args:
        num_tokens: as for `models.load_model`.
    """
    if not adapters.is_adapter(trained):
        return load_model(trained)
    return PeftModel.from_pretrained(load_model(base, num_tokens=num_tokens), str(trained)).eval()


def merge(base: Path, trained: Path, *, num_tokens: int) -> PreTrainedModel:
    """What was trained as one model in the base's own dtype; a sum itself is made in fp32."""
    stored = load_model(base, num_tokens=num_tokens, dtype="auto").cpu()
    dtype = stored.dtype
    if not adapters.is_adapter(trained):
        stored.load_state_dict(load_model(trained, dtype=torch.float32).state_dict())
        return stored
    merged = PeftModel.from_pretrained(stored.float(), str(trained)).merge_and_unload(
        safe_merge=True
    )
    return merged.to(dtype)


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
