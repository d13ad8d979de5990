"""Rows of a batch → packs that a model is given one after the other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from siftune.chat.masking import IGNORED
from siftune.throughput import layout, planner

Rows = dict[str, list[NDArray[np.int64]]]  # input_ids and labels of each


def collate(rows: list[dict[str, Any]]) -> Rows:
    """What a dataloader yields; it is planned once it is known which rows of it count."""
    return {
        name: [np.asarray(row[name], dtype=np.int64) for row in rows]
        for name in ("input_ids", "labels")
    }


def packs(rows: Rows, budget: int, *, num_own: int, share: bool) -> list[layout.Layout]:
    """The packs of a batch, at least one.

    Args:
        budget, share: those of `planner.plan`.
        num_own: the first so many rows count. Without any, one is computed that trains nothing:
            the processes of a training come to each exchange of gradients together.
    """
    ids = rows["input_ids"][: max(num_own, 1)]
    labels = rows["labels"][:num_own] or [np.full_like(ids[0], IGNORED)]
    return [layout.lay_out(pack, ids, labels) for pack in planner.plan(ids, budget, share=share)]
