"""What only the whole data set shows: rows that repeat another, or that stand in a test."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siftune import files, parallel
from siftune.data import checks, containers, leaks, near_duplicates, rows
from siftune.data.candidates import Candidates
from siftune.data.words import Hashes, runs, words
from siftune.sections import Prepare
from siftune.stage import UserError

# Items of benchmarks, for no training row to contain.
HELD_OUT = Path("eval/held_out")
BATCH = 1000  # rows
NUM_LISTED = 20  # near duplicates and leaks that are shown

# row → why it is rejected after all, and the detail
Refused = dict[int, tuple[str, str]]


class Whole(NamedTuple):
    """Rejected rows, and examples of those that take a look to be believed."""

    refused: Refused
    near_duplicates: list[dict[str, Any]]
    leaks: list[dict[str, Any]]


def find(candidates: Candidates, settings: Prepare) -> Whole:
    """All rows to reject, each for the first reason that holds.

    Raises:
        UserError: a file of eval/held_out cannot be read.
    """
    whole = Whole({}, [], [])
    _crossing(candidates, whole)  # the first, so that a held-out row stays and its twin goes
    _repeated(candidates, whole)
    if settings.near_duplicates is not None and len(candidates):
        _similar(candidates, settings.near_duplicates, whole)
    if settings.leak_words is not None:
        _leaking(candidates, settings.leak_words, whole)
    return whole


def _repeated(candidates: Candidates, whole: Whole) -> None:
    rows_left = np.setdiff1d(np.arange(len(candidates)), list(whole.refused))
    _, firsts, inverse = np.unique(
        candidates.ids[rows_left], return_index=True, return_inverse=True
    )
    first_of = firsts[inverse]
    for index in np.flatnonzero(first_of != np.arange(len(first_of))).tolist():
        first = candidates.place(int(rows_left[first_of[index]]))
        whole.refused[int(rows_left[index])] = ("repeats another row", first)


def _crossing(candidates: Candidates, whole: Whole) -> None:
    """A group that files put into several splits stays in the last of them."""
    groups, splits = candidates.groups, candidates.splits
    for split in range(len(rows.SPLITS) - 1):
        held_out = np.unique(groups[splits > split])
        for row in np.flatnonzero((splits == split) & np.isin(groups, held_out)).tolist():
            whole.refused.setdefault(row, ("same prompt as a held-out row", ""))


def _similar(candidates: Candidates, similarity: float, whole: Whole) -> None:
    splits = candidates.splits
    pairs = near_duplicates.find(candidates.bands, candidates.text, similarity)
    for pair in sorted(pairs):
        # A row that repeats another is no news, and a row whose twin is gone has none.
        if pair.row in whole.refused or pair.first in whole.refused:
            continue
        # The earlier row stays, but a held-out one before one of training.
        is_later_split = splits[pair.row] > splits[pair.first]
        gone, stays = (pair.first, pair.row) if is_later_split else (pair.row, pair.first)
        first = candidates.place(stays)
        whole.refused[gone] = ("near duplicate of another row", first)
        if len(whole.near_duplicates) < NUM_LISTED:
            shown = {"place": candidates.place(gone), "first": first}
            whole.near_duplicates.append({**shown, "similarity": pair.similarity})


def _leaking(candidates: Candidates, num_words: int, whole: Whole) -> None:
    is_test = candidates.splits == rows.SPLITS.index("test")
    tests = [row for row in np.flatnonzero(is_test).tolist() if row not in whole.refused]

    def items() -> Iterator[tuple[str, str]]:
        yield from ((candidates.place(row), candidates.text(row)) for row in tests)
        yield from _held_out()

    texts = (text for _, text in items())
    batched = iter(lambda: list(islice(texts, BATCH)), [])
    hashes = [runs(batch, num_words).hashes for batch in batched]
    held_out = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
    if not len(held_out):
        return
    shared = partial(_shared, num_words=num_words, held_out=held_out)
    training = (
        (row, body)
        for row, body in enumerate(candidates.lines())
        if not is_test[row] and row not in whole.refused
    )
    batches = iter(lambda: list(islice(training, BATCH)), [])
    found = [pair for batch in parallel.in_order(shared, batches) for pair in batch]
    for row, position in leaks.leaking(found, num_words).items():
        text = candidates.text(row)
        told = leaks.run_at(text, num_words, position)
        whole.refused[row] = (f"shares {num_words} words with a test item", told)
        if len(whole.leaks) < NUM_LISTED:
            item = next(place for place, said in items() if told in " ".join(words(said)))
            shown = {"place": candidates.place(row), "shares_with": item}
            whole.leaks.append({**shown, "words": told})


def _shared(
    batch: list[tuple[int, bytes]], *, num_words: int, held_out: Hashes
) -> list[tuple[int, leaks.Shared]]:
    found = runs([checks.text_of(files.parse(body)) for _, body in batch], num_words)
    each = np.split(found.hashes, found.ends[:-1])
    common = [leaks.shared(hashes, held_out) for hashes in each]
    return [(row, one) for (row, _), one in zip(batch, common, strict=True) if len(one.runs)]


def _held_out() -> Iterator[tuple[str, str]]:
    if not any(path.is_file() and path.suffix != ".md" for path in HELD_OUT.rglob("*")):
        return
    for file in containers.find(HELD_OUT, "**"):
        for row in containers.read(file, root=HELD_OUT):
            if isinstance(row, containers.Unreadable):
                raise UserError(f"{HELD_OUT}/{row.place}: {row.fault}")
            texts = [value for value in row.values.values() if isinstance(value, str)]
            yield f"{HELD_OUT}/{row.place}", "\n".join(texts)
