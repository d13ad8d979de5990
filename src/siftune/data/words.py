"""Texts as words, and runs of words as numbers: what repetitions and leaks are found by."""

import re
from functools import cache
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_ONLY_WORDS = {code: " " for code in range(128) if not chr(code).isalnum()}
_WORDS = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]")


def words(text: str) -> list[str]:
    """Words in lower case, and Chinese characters one by one."""
    if text.isascii():  # several times as fast, and the same
        return text.lower().translate(_ONLY_WORDS).split()
    return _WORDS.findall(text.lower())


class Runs(NamedTuple):
    """Hashes of the runs of several texts; those of text i are `hashes[ends[i - 1]:ends[i]]`."""

    hashes: Hashes
    ends: NDArray[np.int64]


def runs(texts: list[str], num_words: int) -> Runs:
    """A hash of every `num_words` words that follow each other; none of a shorter text.

    Equal runs have equal hashes, in every run of the program.
    """
    found = [list(map(_HASH_OF.__getitem__, words(text))) for text in texts]
    lengths = np.array([len(hashes) for hashes in found], dtype=np.int64)
    flat = np.fromiter(chain.from_iterable(found), dtype=np.int64).view(np.uint64)
    counts = np.maximum(lengths - num_words + 1, 0)
    if not counts.any():
        return Runs(np.empty(0, dtype=np.uint64), np.cumsum(counts))
    rolled = np.zeros(len(flat) - num_words + 1, dtype=np.uint64)
    for place, weight in enumerate(_weights(num_words)):
        rolled += flat[place : place + len(rolled)] * weight
    # Runs that begin in one text and end in the next are none.
    starts = np.cumsum(lengths) - lengths
    inside = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return Runs(rolled[inside], np.cumsum(counts))


class _HashOf(dict[str, int]):
    """Each word's hash, computed once; Python's own differs from run to run."""

    MOST = 500_000

    def __missing__(self, word: str) -> int:
        if len(self) >= self.MOST:
            self.clear()
        digest = blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        number = int.from_bytes(digest, signed=True)
        return self.setdefault(word, number)


_HASH_OF = _HashOf()


@cache
def _weights(num_words: int) -> Hashes:
    """Powers of an odd number, modulo 2^64: the order of the words counts."""
    return np.array([pow(0x9E3779B97F4A7C15, k, 2**64) for k in range(num_words)], np.uint64)
