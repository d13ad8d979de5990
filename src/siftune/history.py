"""Numbers over steps: `metrics.jsonl` of a run, the truth that MLflow mirrors.

Lines are only ever appended. `{"step": 4, "time": …, "train_loss": 1.2}` holds values at a step;
`{"rewind": 2}` says that all above it at later steps than 2 is void: the stage went on from there.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siftune import files

NAME = "metrics.jsonl"


def append(folder: Path, values: Mapping[str, float], *, step: int) -> None:
    """Append values at a step; on disk before this returns."""
    files.append_line(folder / NAME, {"step": step, "time": time.time(), **values})


def rewind(folder: Path, step: int) -> list[dict[str, Any]]:
    """Declare void what is at later steps; the rows that stand."""
    rows = read(folder)
    kept = [row for row in rows if row["step"] <= step]
    if len(kept) < len(rows):
        files.append_line(folder / NAME, {"rewind": step})
    return kept


def read(folder: Path) -> list[dict[str, Any]]:
    """Each step once, in order: {"step", "time", name: value, …}; the time is of its first line."""
    rows: dict[int, dict[str, Any]] = {}
    for line in files.read_lines(folder / NAME):
        if "rewind" in line:
            rows = {step: row for step, row in rows.items() if step <= line["rewind"]}
        else:
            row = rows.setdefault(line["step"], line)
            row.update({name: value for name, value in line.items() if name != "time"})
    return [rows[step] for step in sorted(rows)]


class Reader:
    """Reads a history while another process appends to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._offset = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """The whole lines that were appended since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # half a line, of a writer that was killed
                found.append(json.loads(line))
        return found
