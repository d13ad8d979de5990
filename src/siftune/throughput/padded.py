"""A batch of padded rows computed as one pack, for losses that know padded rows only.

TRL's losses of preferences and of rewards look at log-probabilities of padded rows. Here the layers
below the output head are given those rows as a pack, and what they make of it is put where the rows
have it: so all of these losses stay TRL's own. The head is computed where a loss looks, as before.
"""

from functools import wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from torch.nn import functional

from siftune.chat.masking import IGNORED
from siftune.throughput import attention, limits, planner
from siftune.throughput.layout import lay_out


def compute_as_packs(model: Any) -> None:
    """Let a causal language model compute each batch of rows as a pack.

    It does while its attention is `attention.NAME`; with another it computes rows as ever.

    Args:
        model: as it is, or with an adapter; its forward gets `input_ids` and `attention_mask`, of
            rows padded on either side.
    """
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = bare.base_model
    of_rows = layers.forward

    @wraps(of_rows)
    def forward(*args: Any, **inputs: Any) -> Any:
        if layers.config._attn_implementation != attention.NAME:
            return of_rows(*args, **inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        rows = unpadded(ids, mask)
        share = not limits.has_dropout(layers)
        (pack,) = planner.plan(rows, sum(map(len, rows)), share=share)
        layout = lay_out(pack, rows, [np.full_like(row, IGNORED) for row in rows]).to(ids.device)
        found = of_rows(
            input_ids=layout.input_ids, position_ids=layout.position_ids, layout=layout, **inputs
        )
        found.last_hidden_state = _padded(found.last_hidden_state[0], pack, mask)
        return found

    layers.forward = forward


def unpadded(ids: Tensor, mask: Tensor) -> list[NDArray[np.int64]]:
    """The tokens of each row of a batch, [B, T] both."""
    return [row[seen] for row, seen in zip(ids.cpu().numpy(), _is_seen(mask), strict=True)]


def _padded(states: Tensor, pack: planner.Pack, mask: Tensor) -> Tensor:
    """[N, H] of a pack → [B, T, H] of its rows; anything where they are padded."""
    places = np.zeros(mask.shape, dtype=np.int64)
    seen = _is_seen(mask)
    for row, place in zip(pack.rows, pack.places, strict=True):
        places[row, seen[row]] = place
    # Plain indexing would add up the gradients of shared tokens in an order of its own each time.
    return functional.embedding(torch.from_numpy(places).to(states.device), states)


def _is_seen(mask: Tensor) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = mask.cpu().numpy().astype(bool)
    return found
