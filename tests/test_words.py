"""Runs of words as numbers are equal where the words are, and only there."""

import random

import numpy as np
import pytest

from siftune.data.words import runs, words

TEXTS = [
    "Hello, hello world_wide 12 café",
    "臺灣的夏天很熱,abc中文 x",
    "",
    "...",
    "a",
    "İstanbul ẞ ﬁn Ⅳ",
    "x" * 200 + " y",
    "naïve\u0301 中\u3400\u9fff𠮷 b",
]


def slow(text: str, num_words: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[i : i + num_words]) for i in range(len(found) - num_words + 1)]


@pytest.mark.parametrize("num_words", [1, 2, 3, 13])
def test_runs_are_those_of_the_words(num_words):
    dice = random.Random(num_words)
    pieces = [*"abcde", "ab", "ba", "中", "文", "é", "12", " ", ", ", "\n", "_", "-"]
    many = TEXTS + ["".join(dice.choices(pieces, k=dice.randint(0, 60))) for _ in range(300)]
    found = runs(many, num_words)
    each = np.split(found.hashes, found.ends[:-1])
    expected = [slow(text, num_words) for text in many]
    assert [len(one) for one in each] == [len(one) for one in expected]
    of_hash: dict[int, tuple[str, ...]] = {}
    for hashes, told in zip(each, expected, strict=True):
        for number, run in zip(hashes.tolist(), told, strict=True):
            assert of_hash.setdefault(number, run) == run
    assert len(of_hash) == len({run for one in expected for run in one})


def test_letters_that_change_places_show():
    one, other = runs(["xy z", "xz y"], 2).hashes
    assert one != other


def test_a_text_is_hashed_alike_wherever_it_stands():
    alone = runs(["a b c d"], 3).hashes
    among = runs(["q", "a b c d", "r s t"], 3)
    assert np.array_equal(np.split(among.hashes, among.ends[:-1])[1], alone)


def test_what_stands_before_the_first_word_does_not_count():
    plain, quoted = (runs([mark + "a b c d " * 40], 3).hashes for mark in ("", '"... '))
    assert np.array_equal(plain, quoted)
