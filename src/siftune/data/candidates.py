"""Rows that passed the checks: their texts wait on disk, numbers of fixed size in memory."""

from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from siftune import files
from siftune.data import checks, rows


class Candidates:
    """Rows that passed the checks, on disk, with their numbers in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets = array("q")
        self._numbers = {name: array("Q") for name in ("ids", "groups")}
        self._splits = array("b")
        self._sources = array("h")
        self._bands: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, examined: rows.Examined) -> None:
        """Take the kept rows of a batch."""
        place = self._file.tell()
        for line in examined.lines:
            self._offsets.append(place)
            place += len(line)
        self._file.write(b"".join(examined.lines))
        self._numbers["ids"].extend(examined.ids)
        self._numbers["groups"].extend(examined.groups)
        self._splits.extend(examined.splits)
        self._sources.extend([examined.source] * len(examined.lines))
        if examined.bands is not None:
            self._bands.append(examined.bands)

    @property
    def ids(self) -> NDArray[np.uint64]:
        """A hash of each row's content."""
        return np.array(self._numbers["ids"], dtype=np.uint64)

    @property
    def groups(self) -> NDArray[np.uint64]:
        """A hash of each row's group."""
        return np.array(self._numbers["groups"], dtype=np.uint64)

    @property
    def splits(self) -> NDArray[np.int8]:
        """Each row's split, as its index in SPLITS."""
        return np.array(self._splits, dtype=np.int8)

    @property
    def sources(self) -> NDArray[np.int16]:
        """Each row's source, as its index in data.sources."""
        return np.array(self._sources, dtype=np.int16)

    @property
    def bands(self) -> NDArray[np.uint64]:
        """Each row's MinHash bands."""
        return np.concatenate(self._bands)

    def lines(self) -> Iterator[bytes]:
        """The record of each row, as it stands on disk."""
        self._file.seek(0)
        for line in self._file:
            yield line.partition(b"\t")[2]

    def row(self, number: int) -> tuple[str, dict[str, Any]]:
        """Place and record of one row."""
        self._file.seek(self._offsets[number])
        place, _, body = self._file.readline().partition(b"\t")
        return place.decode(), files.parse(body)

    def text(self, number: int) -> str:
        """All that one row says."""
        return checks.text_of(self.row(number)[1])

    def place(self, number: int) -> str:
        """File and line of one row."""
        return self.row(number)[0]
