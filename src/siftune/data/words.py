"""Texts as words, and runs of words as numbers: what repetitions and leaks are found by."""

import re
import sys
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORDS = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LONGEST = 64  # characters of a word whose order counts


def words(text: str) -> list[str]:
    """Words in lower case, and Chinese characters one by one."""
    return _WORDS.findall(text.lower())


class Runs(NamedTuple):
    """Hashes of the runs of several texts; those of text i are `hashes[ends[i - 1]:ends[i]]`."""

    hashes: Hashes
    ends: NDArray[np.int64]


def runs(texts: list[str], num_words: int) -> Runs:
    """A hash of every `num_words` words that follow each other; none of a shorter text.

    Equal runs have equal hashes, in every run of the program.
    """
    found, lengths = _word_hashes(texts)
    counts = np.maximum(lengths - num_words + 1, 0)
    if not counts.any():
        return Runs(np.empty(0, dtype=np.uint64), np.cumsum(counts))
    rolled = np.zeros(len(found) - num_words + 1, dtype=np.uint64)
    for place, weight in enumerate(_powers(num_words)):
        rolled += found[place : place + len(rolled)] * weight
    # Runs that begin in one text and end in the next are none.
    starts = np.cumsum(lengths) - lengths
    inside = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return Runs(rolled[inside], np.cumsum(counts))


def _word_hashes(texts: list[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """A hash of each of the `words` of all texts together, and how many each text has.

    All characters at once: several times as fast as to find the words and hash them one by one.
    """
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join(lowered).encode("utf-32-le"), dtype=np.uint32)
    kinds = _kinds()[codes]
    begins = kinds == _OWN_WORD
    begins[0:1] |= kinds[0:1] == _PART
    begins[1:] |= (kinds[1:] == _PART) & (kinds[:-1] != _PART)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, dtype=np.uint64), np.zeros(len(texts), dtype=np.int64)
    word = np.cumsum(begins) - 1
    place = np.minimum(np.arange(len(codes)) - starts[word], _LONGEST - 1)
    values = (codes + np.uint64(1)) * _powers(_LONGEST)[place]
    values[kinds == _OTHER] = 0
    hashes = np.add.reduceat(values, starts)
    hashes = (hashes ^ (hashes >> np.uint64(31))) * _ODD
    hashes ^= hashes >> np.uint64(29)  # or exchanged letters of two words would not show
    ends = np.cumsum([len(text) + 1 for text in lowered])
    return hashes, np.diff(np.searchsorted(starts, ends), prepend=0)


_OTHER, _PART, _OWN_WORD = range(3)


@cache
def _kinds() -> NDArray[np.uint8]:
    """Of each character: part of a word, a word of its own, or none."""
    kinds = np.frombuffer(
        bytes(chr(code).isalnum() for code in range(sys.maxunicode + 1)), dtype=np.uint8
    ).copy()
    kinds[0x3400:0xA000] = _OWN_WORD
    return kinds


@cache
def _powers(number: int) -> Hashes:
    """Powers of an odd number, modulo 2^64: the order counts."""
    return np.array([pow(int(_ODD), power, 2**64) for power in range(number)], np.uint64)
