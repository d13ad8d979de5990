"""The same attention as FlexAttention's block masks, for GPUs that it is fast on."""

from typing import Any

from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from siftune.throughput.layout import Layout


def visible(layout: Layout, window: int | None = None) -> Any:
    """FlexAttention's `mask_mod`: a token sees those before it that its own subtree hangs from.

    Args:
        window: tokens that a token sees, itself included; None: all.
    """
    ends, positions = layout.subtree_ends, layout.position_ids[0]

    def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < ends[key])
        if window is None:
            return seen
        return seen & (positions[query] - positions[key] < window)

    return mask_mod


def block_mask(layout: Layout, window: int | None = None) -> BlockMask:
    """For `attention_mask` of a model whose attention is `flex_attention`."""
    size = layout.input_ids.shape[1]
    device = layout.input_ids.device
    return create_block_mask(visible(layout, window), None, None, size, size, device=str(device))
