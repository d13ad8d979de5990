"""The encoded rows of each phase on disk: one Arrow file a split, mapped into memory when read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = Path("data/tokens")
FACTS = FOLDER / "facts.json"
SPLITS = ("train", "validation")

_IDS = pa.list_(pa.int32())
_LABELLED = pa.schema([("id", pa.string()), ("input_ids", _IDS), ("labels", _IDS)])
# By phase. Of a row with one answer, good or bad, the other one's ids are null; `record` is the
# whole canonical record as JSON.
SCHEMAS = {
    "pretrain": _LABELLED,
    "sft": _LABELLED,
    "dpo": pa.schema(
        [("id", pa.string())]
        + [(name, _IDS) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    ),
    "grpo": pa.schema([("id", pa.string()), ("prompt_ids", _IDS), ("record", pa.string())]),
}

Ids = NDArray[np.int32] | list[int]
Row = tuple[str, Ids, Ids]  # id, token ids, labels


def batch(rows: list[Row]) -> pa.RecordBatch:
    """Rows of pretrain or sft as `write` takes them."""
    ends = np.cumsum([0, *(len(input_ids) for _, input_ids, _ in rows)], dtype=np.int32)

    def column(place: Literal[1, 2]) -> pa.ListArray:
        flat = np.concatenate([np.empty(0, dtype=np.int32), *(row[place] for row in rows)])
        return pa.ListArray.from_arrays(ends, flat.astype(np.int32, copy=False))

    names = pa.array([name for name, _, _ in rows], type=pa.string())
    return pa.record_batch([names, column(1), column(2)], schema=_LABELLED)


@contextmanager
def write(split: str, folder: Path, phase: str = "sft") -> Iterator[pa.RecordBatchStreamWriter]:
    """The file of a phase's split in `folder`; `write_batch` appends to it."""
    schema = SCHEMAS[phase]
    with pa.OSFile(str(path(split, folder)), "wb") as file, pa.ipc.new_stream(file, schema) as out:
        yield out


def folder_of(phase: str) -> Path:
    """Where encode leaves the rows of a phase."""
    return FOLDER / phase


def path(split: str, folder: Path) -> Path:
    """The file of a split."""
    return folder / f"{split}.arrow"


def read(split: str, folder: Path) -> "Dataset":
    """A split, with the columns of its phase."""
    from datasets import Dataset  # takes seconds, which a phase that is left out has not

    return Dataset.from_file(str(path(split, folder)))


def are_there(split: str, folder: Path) -> bool:
    """Whether a split has any row."""
    with pa.OSFile(str(path(split, folder)), "rb") as file, pa.ipc.open_stream(file) as batches:
        return any(batch.num_rows for batch in batches)


def records(split: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The whole records of a split of grpo."""
    with pa.OSFile(str(path(split, folder)), "rb") as file, pa.ipc.open_stream(file) as batches:
        for batch in batches:
            yield from map(json.loads, batch.column("record").to_pylist())
