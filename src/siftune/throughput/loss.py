"""The loss of a pack: what its rows alone would have, from logits where something is trained."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from siftune.throughput import head
from siftune.throughput.layout import Layout


def inputs(layout: Layout) -> dict[str, Any]:
    """What a causal language model's forward takes; the attention must be `attention.NAME`."""
    return {
        "input_ids": layout.input_ids,
        "position_ids": layout.position_ids,
        "logits_to_keep": layout.sources,
        "layout": layout,
        "use_cache": False,
    }


def token_log_probs(logits: Tensor, layout: Layout) -> Tensor:
    """Log-probability of each trained token of each row, in nats: [T], at least fp32.

    Args:
        logits: [1, K, V], at `layout.sources`.
    """
    logits = logits[0].to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(logits, dim=-1)[layout.source_of, layout.targets]


def training_loss(model: Any, layout: Layout, num_trained: float) -> Tensor:
    """Cross-entropy in nats of a pack's trained tokens, as its part of the global batch's mean.

    The sum over all packs of a global batch, on all processes, is the mean over its trained
    tokens; so are the gradients, whatever the packs.

    Args:
        model: as it is, or wrapped for several processes.
        num_trained: of the whole global batch.
    """
    bare = extract_model_from_parallel(model)
    output_head = bare.get_output_embeddings()
    if not head.is_plain(output_head):
        logits = model(**inputs(layout)).logits
        return -token_log_probs(logits, layout).sum() / num_trained
    with head.instead_of_logits(output_head) as seen:
        model(**inputs(layout))
    softcap = getattr(bare.config, "final_logit_softcapping", None)
    hidden = seen[0][0].to(output_head.weight.dtype)
    return head.nll(hidden, output_head, layout, softcap) / num_trained
