"""The encoded conversations on disk: one Arrow file a split, mapped into memory when read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

FOLDER = Path("data/tokens")
FACTS = FOLDER / "facts.json"
SPLITS = ("train", "validation")

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
    ]
)

Ids = NDArray[np.int32] | list[int]
Row = tuple[str, Ids, Ids]  # id, token ids, labels


def batch(rows: list[Row]) -> pa.RecordBatch:
    """Encoded conversations as `write` takes them."""
    ends = np.cumsum([0, *(len(input_ids) for _, input_ids, _ in rows)], dtype=np.int32)

    def column(place: Literal[1, 2]) -> pa.ListArray:
        flat = np.concatenate([np.empty(0, dtype=np.int32), *(row[place] for row in rows)])
        return pa.ListArray.from_arrays(ends, flat.astype(np.int32, copy=False))

    names = pa.array([name for name, _, _ in rows], type=pa.string())
    return pa.record_batch([names, column(1), column(2)], schema=_SCHEMA)


@contextmanager
def write(split: str, folder: Path) -> Iterator[pa.RecordBatchStreamWriter]:
    """The file of a split in `folder`; `write_batch` appends to it."""
    with pa.OSFile(str(path(split, folder)), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as out:
        yield out


def path(split: str, folder: Path = FOLDER) -> Path:
    """The file of a split."""
    return folder / f"{split}.arrow"


def read(split: str, folder: Path) -> Any:
    """A split as `datasets.Dataset`: id, input_ids, labels."""
    return Dataset.from_file(str(path(split, folder)))
