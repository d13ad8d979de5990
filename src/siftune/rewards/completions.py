"""Completions of each evaluation, to be read: only they show what a model is really paid for.

They are in `completions.jsonl`, a line an evaluation. Lines are only appended, but for those that
a training that goes on from an earlier checkpoint makes anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from siftune import files

NAME = "completions.jsonl"
PUBLISHED = Path("data") / NAME
NUM_SHOWN = 8  # of an evaluation

T = TypeVar("T")


class Completions:
    """Those of one training, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def rewind(self, step: int) -> None:
        """Forget what a later step than this wrote: the training goes on from there."""
        kept = [row for row in files.read_lines(self.path) if row["step"] <= step]
        files.write_jsonl(self.path, kept)

    def add(self, step: int, scored: list[dict[str, Any]]) -> None:
        """Some of an evaluation's completions: from the best to the worst, evenly.

        Args:
            scored: each with its `reward`, the sum of weight x score.
        """
        ranked = sorted(scored, key=lambda one: -float(one["reward"]))
        files.append_line(self.path, {"step": step, "completions": spread(ranked, NUM_SHOWN)})


def read(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Step → what was kept of its evaluation; of one that was done twice, the last."""
    rows = {row["step"]: row["completions"] for row in files.read_lines(path)}
    return dict(sorted(rows.items()))


def spread(ranked: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly from the first to the last."""
    last = len(ranked) - 1
    places = {round(part * last / (most - 1)) for part in range(most)} if ranked else set()
    return [ranked[place] for place in sorted(places)]
