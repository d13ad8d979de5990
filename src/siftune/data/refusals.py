"""What only the whole data set shows: rows that repeat another, or that stand in a test."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siftune import parallel
from siftune.config import Prepare
from siftune.data import containers, leaks, near_duplicates, rows
from siftune.data.candidates import Candidates
from siftune.data.words import Hashes, runs, words
from siftune.stage import UserError

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
        UserError: a file of `prepare.held_out` cannot be read.
    """
    whole = Whole({}, [], [])
    _repeated(candidates, whole)
    _crossing(candidates, whole)
    if settings.near_duplicates is not None and len(candidates):
        _similar(candidates, settings.near_duplicates, whole)
    if settings.leak_words is not None:
        _leaking(candidates, settings.leak_words, settings.held_out, whole)
    return whole


def _repeated(candidates: Candidates, whole: Whole) -> None:
    _, firsts, inverse = np.unique(candidates.ids, return_index=True, return_inverse=True)
    first_of = firsts[inverse]
    for row in np.flatnonzero(first_of != np.arange(len(first_of))).tolist():
        whole.refused[row] = ("repeats another row", candidates.place(int(first_of[row])))


def _crossing(candidates: Candidates, whole: Whole) -> None:
    """A group that files put into several splits stays in the last of them."""
    groups, splits = candidates.groups, candidates.splits
    for split in range(len(rows.SPLITS) - 1):
        held_out = np.unique(groups[splits > split])
        for row in np.flatnonzero((splits == split) & np.isin(groups, held_out)).tolist():
            whole.refused.setdefault(row, ("same prompt as a held-out row", ""))


def _similar(candidates: Candidates, similarity: float, whole: Whole) -> None:
    pairs = near_duplicates.find(candidates.bands, candidates.text, similarity)
    for pair in sorted(pairs):
        # A row that repeats another is no news, and a row whose twin is gone has none.
        if pair.row in whole.refused or pair.first in whole.refused:
            continue
        first = candidates.place(pair.first)
        whole.refused[pair.row] = ("near duplicate of another row", first)
        if len(whole.near_duplicates) < NUM_LISTED:
            shown = {"place": candidates.place(pair.row), "first": first}
            whole.near_duplicates.append({**shown, "similarity": pair.similarity})


def _leaking(candidates: Candidates, num_words: int, files: list[str], whole: Whole) -> None:
    is_test = candidates.splits == rows.SPLITS.index("test")
    tests = [row for row in np.flatnonzero(is_test).tolist() if row not in whole.refused]

    def items() -> Iterator[tuple[str, str]]:
        yield from ((candidates.place(row), candidates.text(row)) for row in tests)
        yield from _held_out(files)

    texts = (text for _, text in items())
    batched = iter(lambda: list(islice(texts, rows.BATCH)), [])
    hashes = [runs(batch, num_words).hashes for batch in batched]
    held_out = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]))
    if not len(held_out):
        return
    shared = partial(_shared, num_words=num_words, held_out=held_out)
    training = (
        (row, body)
        for row, (_, body) in enumerate(candidates.lines())
        if not is_test[row] and row not in whole.refused
    )
    batches = iter(lambda: list(islice(training, rows.BATCH)), [])
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
    found = runs([rows.text_of(rows.parsed(body)) for _, body in batch], num_words)
    each = np.split(found.hashes, found.ends[:-1])
    common = [leaks.shared(hashes, held_out) for hashes in each]
    return [(row, one) for (row, _), one in zip(batch, common, strict=True) if len(one.runs)]


def _held_out(paths: list[str]) -> Iterator[tuple[str, str]]:
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise UserError(f"params.yaml: prepare.held_out: {name} does not exist.")
        for file in containers.find(path, "**"):
            for row in containers.read(file, root=path.parent):
                if isinstance(row, containers.Unreadable):
                    raise UserError(f"params.yaml: prepare.held_out: {row.place}: {row.fault}")
                texts = [value for value in row.values.values() if isinstance(value, str)]
                yield row.place, "\n".join(texts)
