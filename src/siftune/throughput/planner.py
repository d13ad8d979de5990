"""Rows → packs: which rows are computed together, and which of their tokens only once.

Rows that begin with the same tokens share them, as a prefix tree: sorted rows have all that they
share in common with a neighbour, so a tree over a run of sorted rows needs
`sum(lengths) - sum(shared with the row before)` tokens, and a batch is cut into such runs. Rows in
another order have a tree, too, which may miss some of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]

# In tokens. A shared prefix costs a few more calls in each layer, a further pack a further pass
# over the weights; bench/throughput.py measures both.
MIN_SAVED = 32
PACK_COST = 64


@dataclass(frozen=True)
class Segment:
    """Tokens that follow each other in the pack and belong to the same rows: a node of the tree."""

    start: int  # in the pack
    end: int
    position: int  # of its first token in each of its rows
    parent: int  # index of the segment before it in its rows; -1 at their beginning
    subtree_end: int  # where in the pack the last of what follows it ends; all of it is in between


@dataclass(frozen=True)
class Pack:
    """Tokens of several rows, each shared one once; a segment comes before all that follows it."""

    rows: tuple[int, ...]  # their indices in the batch
    places: tuple[Ids, ...]  # for each of them: where in the pack its tokens are
    segments: tuple[Segment, ...]  # in the order of the pack, without gaps

    @property
    def num_tokens(self) -> int:
        """That are computed."""
        return self.segments[-1].end


def plan(
    rows: Sequence[ArrayLike], budget: int, *, share: bool = True, together: int = 1
) -> list[Pack]:
    """Cut a batch into packs; the same rows give the same packs, whatever the machine.

    A prefix is shared where that saves at least `MIN_SAVED` tokens. Rows are kept together so that
    the fewest tokens are computed, and then in few packs.

    Args:
        rows: token ids of each, at least one.
        budget: tokens that a pack may have.
        share: False: rows are packed, but each has all its tokens to itself.
        together: so many rows that follow each other stay in one pack: 2 for pairs of answers.

    Raises:
        ValueError: a row has no tokens, or rows that stay together have more than the budget.
    """
    ids = [np.asarray(row, dtype=np.int64) for row in rows]
    if any(len(row) == 0 for row in ids):
        raise ValueError("a row has no tokens")
    order = _order(ids, together)
    sorted_ids = [ids[i] for i in order]
    lengths = np.array([len(row) for row in sorted_ids])
    shared = _worth_sharing(_common(sorted_ids)) if share else np.zeros(len(ids), dtype=np.int64)
    firsts = np.arange(0, len(ids), together)
    sizes = np.add.reduceat(lengths - shared, firsts) + shared[firsts]
    if sizes.max() > budget:
        raise ValueError(f"a row has {sizes.max()} tokens, and the budget is {budget}")
    runs = [
        (first * together, last * together) for first, last in _cuts(sizes, shared[firsts], budget)
    ]
    return [
        _pack(order[first:last], lengths[first:last], shared[first:last]) for first, last in runs
    ]


def _order(ids: Sequence[Ids], together: int) -> list[int]:
    """Rows by their tokens, but those that stay together side by side."""
    keys = [row.astype(">i8").tobytes() for row in ids]
    groups = [range(first, first + together) for first in range(0, len(ids), together)]
    in_order = [sorted(group, key=keys.__getitem__) for group in groups]
    return [i for group in sorted(in_order, key=lambda group: keys[group[0]]) for i in group]


def _common(ids: Sequence[Ids]) -> Ids:
    """Tokens that each sorted row has in common with the one before it; 0 for the first."""
    found = [0]
    for before, row in pairwise(ids):
        both = min(len(before), len(row))
        differ = np.flatnonzero(before[:both] != row[:both])
        found.append(int(differ[0]) if len(differ) else both)
    return np.array(found, dtype=np.int64)


def _worth_sharing(common: Ids) -> Ids:
    """As `_common`, but only what saves enough: `MIN_SAVED` tokens for each segment of its own."""
    shared = np.zeros_like(common)
    waiting = [(0, len(common), 0)]  # first and last + 1 of some rows; tokens that all share so far
    while waiting:
        first, last, depth = waiting.pop()
        if last - first == 1:
            continue
        inner = common[first + 1 : last]
        least = int(inner.min())
        saved = (least - depth) * (last - first - 1)
        depth = least if saved >= MIN_SAVED else depth
        cuts = [first, *(first + 1 + np.flatnonzero(inner == least)), last]
        shared[cuts[1:-1]] = depth
        waiting += [(int(low), int(high), depth) for low, high in pairwise(cuts)]
    return shared


def _cuts(lengths: Ids, shared: Ids, budget: int) -> list[tuple[int, int]]:
    """Runs of rows within the budget, of the least cost together (dynamic programming).

    What stays together is one here: its own tokens, and what its first row shares with the last
    before it.
    """
    own = np.concatenate([[0], np.cumsum(lengths - shared)])
    best = np.zeros(len(lengths) + 1)
    cut_before = np.zeros(len(lengths) + 1, dtype=np.int64)
    for last in range(1, len(lengths) + 1):
        # The first row of a pack has nobody before it to share with.
        tokens = own[last] - own[:last] + shared[:last]
        costs = np.where(tokens <= budget, best[:last] + tokens + PACK_COST, np.inf)
        cut_before[last] = np.argmin(costs)
        best[last] = costs[cut_before[last]]
    runs = []
    last = len(lengths)
    while last:
        runs.append((int(cut_before[last]), last))
        last = int(cut_before[last])
    return runs[::-1]


def _pack(rows: Sequence[int], lengths: Ids, shared: Ids) -> Pack:
    """The prefix tree of sorted rows, depth first. `shared[0]` is about a row that is not here."""
    places = [np.empty(length, dtype=np.int64) for length in lengths]
    segments: list[Segment] = []
    end = 0
    waiting = [(0, len(rows), 0, -1)]  # first and last + 1 of some rows; tokens placed; parent
    while waiting:
        first, last, depth, parent = waiting.pop()
        inner = shared[first + 1 : last]
        stop = int(inner.min() if len(inner) else lengths[first])
        if stop > depth:
            start, end = end, end + stop - depth
            for place in places[first:last]:
                place[depth:stop] = np.arange(start, end)
            segments.append(Segment(start, end, depth, parent, end))
            parent = len(segments) - 1
        if len(inner):
            cuts = [first, *(first + 1 + np.flatnonzero(inner == stop)), last]
            below = [(int(low), int(high), stop, parent) for low, high in pairwise(cuts)]
            waiting += below[::-1]
    return Pack(tuple(rows), tuple(places), _with_subtrees(segments))


def _with_subtrees(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    ends = [segment.end for segment in segments]
    for i, segment in reversed(list(enumerate(segments))):
        if segment.parent >= 0:
            ends[segment.parent] = max(ends[segment.parent], ends[i])
    return tuple(
        replace(segment, subtree_end=end) for segment, end in zip(segments, ends, strict=True)
    )
