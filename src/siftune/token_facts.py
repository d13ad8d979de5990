"""Counts and examples of what was encoded, put together from batches."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any

import numpy as np
import pyarrow as pa

from siftune.chat.masking import IGNORED

BIN = 8  # tokens
NUM_LISTED = 20  # of each kind of row that is shown
NUM_WORST = 7  # of each kind of bad row
NUM_SHOWN = 6  # rows of each split, shown token by token

Row = dict[str, Any]


@dataclass
class Facts:
    """Counts and examples of one split, or of a batch of it."""

    num_rows: int = 0
    num_kept: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_trained: int = 0
    longest: int = 0
    faulty: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {part: Counter() for part in ("prompt", "answer", "total")}
    )
    shared_prefix: list[int] | None = None  # tokens
    listed: dict[str, list[Row]] = field(
        default_factory=lambda: {kind: [] for kind in ("cut", "dropped", "faulty")}
    )
    worst: list[tuple[str, float, Row]] = field(default_factory=list)  # by what, how bad
    random: list[str] = field(default_factory=list)  # the lowest ids: they are hashes

    def keep(self, batch: pa.RecordBatch, num_characters: list[int], *, num_rows: int) -> None:
        """Count what will be trained on, each with the size of its text.

        Args:
            batch: ids, tokens and labels; several may be of one row.
            num_rows: of how many rows they are.
        """
        if not batch.num_rows:
            return
        ids, labels = (batch.column(name) for name in ("input_ids", "labels"))
        flat, starts = ids.values.to_numpy(), ids.offsets.to_numpy()[:-1]
        is_trained = labels.values.to_numpy() != IGNORED
        total = np.diff(ids.offsets)
        trained = np.add.reduceat(is_trained, starts, dtype=np.int64)
        places = np.flatnonzero(is_trained)
        ends = starts + total
        first = np.append(places, len(flat))[np.searchsorted(places, starts)]
        prompt = np.minimum(first, ends) - starts
        self.num_kept += num_rows
        self.num_tokens += len(flat)
        self.num_trained += len(places)
        self.longest = max(self.longest, int(total.max()))
        for part, lengths in (("prompt", prompt), ("answer", trained), ("total", total)):
            self.lengths[part].update((lengths // BIN * BIN).tolist())
        beginnings = flat[starts[:, np.newaxis] + np.arange(prompt.min())]
        is_shared = np.logical_and.accumulate((beginnings == beginnings[0]).all(axis=0))
        self.shared_prefix = _common(self.shared_prefix, beginnings[0][is_shared].tolist())
        names = batch.column("id").to_pylist()
        self.random = sorted({*self.random, *names})[:NUM_SHOWN]
        per_character = total / np.maximum(num_characters, 1)
        for what, badness, why in (
            ("least trained", -trained, "trains {trained} of {total} tokens"),
            ("longest", total, "{total} tokens"),
            ("strange text", per_character, "{per_character:.2f} tokens a character"),
        ):
            for row in np.argsort(-badness, kind="stable")[:NUM_WORST].tolist():
                said = why.format(
                    trained=trained[row], total=total[row], per_character=per_character[row]
                )
                self.worst.append((what, float(badness[row]), {"id": names[row], "why": said}))

    def note(self, kind: str, **shown: Any) -> None:
        """Keep the first rows that were cut, dropped or refused."""
        if len(self.listed[kind]) < NUM_LISTED:
            self.listed[kind].append(shown)

    def counts(self) -> dict[str, Any]:
        """The numbers without the examples."""
        return {
            "rows": self.num_rows,
            "kept": self.num_kept,
            "cut": self.num_cut,
            "dropped": self.num_dropped,
            "faulty": self.faulty.total(),
            "tokens": self.num_tokens,
            "trained_tokens": self.num_trained,
            "trained_share": round(self.num_trained / max(self.num_tokens, 1), 4),
            "longest": self.longest,
            "shared_prefix": len(self.shared_prefix or []),
        }

    def add(self, other: "Facts") -> None:
        """Take in a batch."""
        for name in ("num_rows", "num_kept", "num_cut", "num_dropped", "num_tokens", "num_trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.faulty.update(other.faulty)
        for part, lengths in other.lengths.items():
            self.lengths[part].update(lengths)
        if other.shared_prefix is not None:
            self.shared_prefix = _common(self.shared_prefix, other.shared_prefix)
        for kind, shown in other.listed.items():
            self.listed[kind] = (self.listed[kind] + shown)[:NUM_LISTED]
        self.worst = worst(self.worst + other.worst)
        self.random = sorted({*self.random, *other.random})[:NUM_SHOWN]


def worst(found: list[tuple[str, float, Row]]) -> list[tuple[str, float, Row]]:
    """The worst of each kind."""
    kinds = dict.fromkeys(what for what, _, _ in found)
    return [
        row
        for kind in kinds
        for row in nlargest(NUM_WORST, (r for r in found if r[0] == kind), key=lambda r: r[1])
    ]


def _common(one: list[int] | None, other: list[int]) -> list[int]:
    """The beginning that two lists share; the other list where there is no first."""
    if one is None:
        return other
    pairs: Iterator[tuple[int, int]] = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]
