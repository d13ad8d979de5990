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
_INVERSE = np.uint64(pow(int(_ODD), -1, 2**64))
_AT_ONCE = 100  # texts
_PLANE = 0x10000  # characters; all but rare ones


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
    # Arrays of a few texts stay in the processor's cache.
    some = [_runs(texts[at : at + _AT_ONCE], num_words) for at in range(0, len(texts), _AT_ONCE)]
    hashes = [np.empty(0, dtype=np.uint64), *(hashes for hashes, _ in some)]
    counts = [np.empty(0, dtype=np.int64), *(counts for _, counts in some)]
    return Runs(np.concatenate(hashes), np.cumsum(np.concatenate(counts)))


def _runs(texts: list[str], num_words: int) -> tuple[Hashes, NDArray[np.int64]]:
    found, lengths = _word_hashes(texts)
    counts = np.maximum(lengths - num_words + 1, 0)
    if not counts.any():
        return np.empty(0, dtype=np.uint64), counts
    rolled = np.zeros(len(found) - num_words + 1, dtype=np.uint64)
    for place, weight in enumerate(_powers(_ODD, num_words)):
        rolled += found[place : place + len(rolled)] * weight
    # Runs that begin in one text and end in the next are none.
    starts = np.cumsum(lengths) - lengths
    inside = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    return rolled[inside], counts


def _word_hashes(texts: list[str]) -> tuple[Hashes, NDArray[np.int64]]:
    """A hash of each of the `words` of all texts together, and how many each text has.

    All characters at once: several times as fast as to find the words and hash them one by one.
    """
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join(lowered).encode("utf-32-le"), dtype=np.uint32)
    kinds = _kinds(_PLANE if codes.max(initial=0) < _PLANE else sys.maxunicode + 1)[codes]
    begins = kinds == _OWN_WORD
    begins[0:1] |= kinds[0:1] == _PART
    begins[1:] |= (kinds[1:] == _PART) & (kinds[:-1] != _PART)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.empty(0, dtype=np.uint64), np.zeros(len(texts), dtype=np.int64)
    # Each character by the power of its place in the text, then each word by that of its start.
    size = 1 << len(codes).bit_length()
    values = (codes + np.uint64(1)) * _powers(_ODD, size)[: len(codes)]
    values *= kinds != _OTHER
    hashes = np.add.reduceat(values, starts) * _powers(_INVERSE, size)[starts]
    hashes = (hashes ^ (hashes >> np.uint64(31))) * _ODD
    hashes ^= hashes >> np.uint64(29)  # or exchanged letters of two words would not show
    ends = np.cumsum([len(text) + 1 for text in lowered])
    return hashes, np.diff(np.searchsorted(starts, ends), prepend=0)


_OTHER, _PART, _OWN_WORD = range(3)


@cache
def _kinds(number: int) -> NDArray[np.uint8]:
    """Of each of the first characters of Unicode: part of a word, a word of its own, or none."""
    kinds = np.frombuffer(bytes(map(str.isalnum, map(chr, range(number)))), dtype=np.uint8).copy()
    kinds[0x3400:0xA000] = _OWN_WORD
    return kinds


@cache
def _powers(base: np.uint64, number: int) -> Hashes:
    """Powers modulo 2^64, from the zeroth on."""
    powers = np.full(number, base)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
