"""A pack as tensors: what the model is given, what the attention needs, what the loss looks at."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from siftune.chat.masking import IGNORED
from siftune.throughput.planner import Pack, Segment


@dataclass(frozen=True)
class Layout:
    """A pack of N tokens, of which K predict something that is trained, T times in all.

    A token that rows share predicts for each of them: T counts a shared trained token once for
    each of its rows, as computing the rows alone would; K counts where the head is computed.
    """

    segments: tuple[Segment, ...]
    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N], those of the tokens in their rows
    subtree_ends: Tensor  # [N]: `Segment.subtree_end` of each token's segment
    sources: Tensor  # [K], places in the pack, ascending
    source_of: Tensor  # [T], indices of `sources`, ascending
    targets: Tensor  # [T], token ids
    row_of: Tensor  # [T], indices in the batch
    num_in_rows: int  # tokens of its rows, each counted with all of its own
    masks: dict[tuple[int, ...], Tensor] = field(default_factory=dict)  # made once for all layers

    def seen(self, num_before: int, length: int, window: int | None) -> Tensor:
        """Which tokens some of a row see, [L, P + L]: those before them, and their own.

        Args:
            num_before: P, tokens of the row right before them.
            length: L, of their own.
            window: tokens that a token sees, itself included; None: all up to itself.
        """
        sizes = (num_before, length, window or 0)
        if sizes not in self.masks:
            tokens = torch.arange(num_before + length, device=self.input_ids.device)
            distance = tokens[num_before:, None] - tokens
            is_seen = distance >= 0
            self.masks[sizes] = is_seen if window is None else is_seen & (distance < window)
        return self.masks[sizes]

    def to(self, device: torch.device | str) -> Self:
        """On another device; accelerate moves batches by this."""
        moved: dict[str, Any] = {
            one.name: value.to(device)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **moved, masks={})


def lay_out(pack: Pack, rows: Sequence[ArrayLike], labels: Sequence[ArrayLike]) -> Layout:
    """The tensors of a pack.

    Args:
        rows, labels: of the batch that `pack` was planned from; a label stands at the token that
            is to be predicted, `IGNORED` at those that are not trained.
    """
    input_ids = np.empty(pack.num_tokens, dtype=np.int64)
    positions = np.empty_like(input_ids)
    sources, targets, row_of = [], [], []
    for row, place in zip(pack.rows, pack.places, strict=True):
        input_ids[place] = rows[row]
        positions[place] = np.arange(len(place))
        predicted = np.asarray(labels[row], dtype=np.int64)[1:]
        trained = np.flatnonzero(predicted != IGNORED)
        sources.append(place[trained])
        targets.append(predicted[trained])
        row_of.append(np.full(len(trained), row))
    ends = np.concatenate([np.full(s.end - s.start, s.subtree_end) for s in pack.segments])
    predicting, wanted, rows_of = map(np.concatenate, (sources, targets, row_of))
    order = np.argsort(predicting, kind="stable")
    unique, source_of = np.unique(predicting[order], return_inverse=True)
    return Layout(
        segments=pack.segments,
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        subtree_ends=torch.from_numpy(ends),
        sources=torch.from_numpy(unique),
        source_of=torch.from_numpy(source_of),
        targets=torch.from_numpy(wanted[order]),
        row_of=torch.from_numpy(rows_of[order]),
        num_in_rows=sum(map(len, pack.places)),
    )
