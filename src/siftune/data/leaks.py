"""Test items inside training rows: shared runs of words, as GPT-3 was checked (Brown et al. 2020).

A run that many training rows share (an instruction that stands in each of them) is no leak.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from siftune.data.words import Hashes, words

# GPT-3's rule: a run found in more training rows than this is boilerplate.
MAX_ROWS = 10


class Shared(NamedTuple):
    """Runs of a text that are in a held-out item, and where they begin, in words."""

    positions: NDArray[np.int64]
    runs: Hashes


def shared(found: Hashes, held_out: Hashes) -> Shared:
    """Which runs of a text, by position, are in `held_out`, a sorted array without repetitions."""
    if not len(held_out):
        return Shared(np.empty(0, dtype=np.int64), held_out)
    places = np.searchsorted(held_out, found)
    places[places == len(held_out)] = 0
    positions = np.flatnonzero(held_out[places] == found)
    return Shared(positions, found[positions])


def leaking(rows: list[tuple[int, Shared]], num_words: int) -> dict[int, int]:
    """Training rows that leak → the position of one run that tells it.

    A run that touches boilerplate is no evidence: its other words are too few.

    Args:
        rows: row number and what it shares with held-out items, of rows that share any.
    """
    frequency = Counter(run for _, found in rows for run in set(found.runs.tolist()))
    evidence = {}
    for row, (positions, runs) in rows:
        common = np.array([frequency[run] > MAX_ROWS for run in runs.tolist()])
        boilerplate = positions[common]
        for position in positions[~common].tolist():
            if not np.any(np.abs(boilerplate - position) < num_words):
                evidence[row] = position
                break
    return evidence


def run_at(text: str, num_words: int, position: int) -> str:
    """The words of the run at a position."""
    return " ".join(words(text)[position : position + num_words])
