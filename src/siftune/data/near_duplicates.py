"""Near duplicates: MinHash (Broder 1997) with banding finds candidates, their texts decide."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import rensa
from numpy.typing import NDArray

from siftune.data import kinds
from siftune.data.words import runs, words

# 8 bands of 8 hashes: of the pairs that are 0.9 alike 99 % are candidates, of those 0.5 alike 3 %.
NUM_BANDS = 8
_HASHES_PER_BAND = 8
_SEED = 1
_SALT = np.uint64(0xC2B2AE3D27D4EB4F)
_SHINGLE = 3  # words, or Chinese characters

Bands = NDArray[np.uint64]  # [rows, NUM_BANDS]


class Pair(NamedTuple):
    """Row numbers of a row and an earlier one that is `similarity` alike (Jaccard, of shingles)."""

    row: int
    first: int
    similarity: float


def bands(texts: list[str], phases: list[str]) -> Bands:
    """The texts' MinHash, a number a band: texts that share one may be near duplicates.

    Those of two phases share none: what is trained again in another way is no duplicate.
    """
    found = runs(texts, _SHINGLE)
    offsets = np.concatenate([[0], found.ends]).astype(np.uint64)
    num_hashes = NUM_BANDS * _HASHES_PER_BAND
    sketches = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        found.hashes, offsets, num_hashes, _SEED
    )
    hashes = np.array(sketches.to_rows(), dtype=np.uint64).reshape(-1, NUM_BANDS, _HASHES_PER_BAND)
    # Folded by odd multipliers, modulo 2^64.
    weights = np.arange(1, 2 * _HASHES_PER_BAND, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    folded: Bands = (hashes * weights).sum(axis=2, dtype=np.uint64)
    salts = [list(kinds.ROWS).index(phase) for phase in phases]
    return folded + np.array(salts, dtype=np.uint64)[:, None] * _SALT


def find(found: Bands, text_of: Callable[[int], str], similarity: float) -> Iterator[Pair]:
    """Rows that are at least so similar to an earlier row, each once, in no order.

    Args:
        found: each row's bands.
        text_of: the text of a row.
        similarity: from 0 (nothing shared) to 1.
    """
    paired: set[int] = set()
    for band in range(found.shape[1]):
        for first, row in _candidates(found[:, band]):
            if row in paired or first in paired:
                continue
            alike = _jaccard(text_of(first), text_of(row))
            if alike >= similarity:
                paired.add(row)
                yield Pair(row, first, round(alike, 3))


def _candidates(column: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of the first row with a value and each later one that has it."""
    order = np.argsort(column, kind="stable")
    values = column[order]
    same = np.flatnonzero(values[1:] == values[:-1]) + 1
    first = -1
    previous = -2
    for position in same.tolist():
        if position != previous + 1:
            first = int(order[position - 1])
        previous = position
        yield first, int(order[position])


def _jaccard(one: str, other: str) -> float:
    left, right = _shingles(one), _shingles(other)
    # Texts of fewer words have no shingle, and are alike only if they are equal.
    return len(left & right) / len(left | right) if left | right else float(one == other)


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(zip(*(found[place:] for place in range(_SHINGLE)), strict=False))
