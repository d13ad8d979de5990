"""From raw rows to records, a batch at a time: what each worker process does alone."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from siftune.data import checks, containers, formats, kinds, near_duplicates, scripts
from siftune.data.faults import Fault
from siftune.sections import Data, Prepare
from siftune.stage import UserError

SPLITS = ("train", "validation", "test")
NUM_EXAMPLES = 3  # shown of each reason and warning


class File(NamedTuple):
    """A file of one source, the format of its rows, and the split that its name gives them."""

    path: Path
    root: Path
    source: int
    format: str
    split: str | None


class Batch(NamedTuple):
    """Rows of one file, in order."""

    file: File
    block: containers.Block


class Rejected(NamedTuple):
    """Why a row is not used."""

    place: str
    reason: str
    detail: str
    row: Any


@dataclass
class Examined:
    """What became of a batch; the lists before `rejected` have an entry a kept row."""

    source: int
    lines: list[bytes] = field(default_factory=list)  # place, tab, record as JSON
    ids: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # not kept longer than the batch
    phases: list[str] = field(default_factory=list)
    bands: NDArray[np.uint64] | None = None
    rejected: list[Rejected] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    characters: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.lines) + len(self.rejected)

    def warn(self, what: str, place: str, **shown: str) -> None:
        """Count a warning, and keep the first ones as examples."""
        self.warnings[what] += 1
        examples = self.examples.setdefault(what, [])
        if len(examples) < NUM_EXAMPLES:
            examples.append({"place": place, **shown})


def find(data: Data) -> list[File]:
    """All files of all sources, in order, with the format of their rows.

    Raises:
        UserError: there is none, or the first row of one is of no known format.
    """
    found = []
    for number, source in enumerate(data.sources):
        root = folder(data, number)
        for path in containers.find(root, source.files):
            split = source.split or _held_out_split(path.relative_to(_above(root)))
            automatic = source.format == "auto"
            known = _detect(path, root, source.columns) if automatic else source.format
            found.append(File(path, root, number, known, split))
    return found


def folder(data: Data, number: int) -> Path:
    """Where the files of a source are: data.path, or below it where several were fetched."""
    fetched = data.sources[number].source != "local"
    return Path(data.path) / str(number) if fetched and len(data.sources) > 1 else Path(data.path)


def batches(found: list[File]) -> Iterator[Batch]:
    """All rows of all files."""
    for file in found:
        for block in containers.blocks(file.path, root=_above(file.root)):
            yield Batch(file, block)


def examine(batch: Batch, data: Data, prepare: Prepare) -> Examined:
    """Convert and check the rows of a batch."""
    columns = {str(ours): name for ours, name in data.sources[batch.file.source].columns.items()}
    tags = (data.reasoning_tags[0], data.reasoning_tags[1])
    examined = Examined(batch.file.source)
    for row in containers.rows(batch.block):
        try:
            if isinstance(row, containers.Unreadable):
                raise row.fault
            record, notes = formats.convert(row.values, batch.file.format, columns, tags)
            record, text, warned = checks.examine(record, prepare, tags)
        except Fault as fault:
            values = row.text if isinstance(row, containers.Unreadable) else row.values
            examined.rejected.append(
                Rejected(row.place, fault.reason, fault.detail, _writable(values))
            )
            continue
        for note in notes:
            examined.warn(note, row.place)
        for what, said, repaired in warned:
            examined.warn(what, row.place, text=said, repaired=repaired)
        examined.texts.append(text)
        examined.phases.append(kinds.phase_of(record))
        _keep(record, row.place, batch.file.split, prepare, examined)
    examined.characters = scripts.characters("".join(examined.texts))
    if prepare.near_duplicates is not None and examined.texts:
        examined.bands = near_duplicates.bands(examined.texts, examined.phases)
    examined.texts.clear()
    return examined


def split_of(group: int, shares: Prepare) -> str:
    """The split of a group, from its hash alone: adding rows never moves a row to another split."""
    position = group / 2**64
    if position < shares.test:
        return "test"
    return "validation" if position < shares.test + shares.validation else "train"


def _keep(
    record: dict[str, Any], place: str, split: str | None, prepare: Prepare, examined: Examined
) -> None:
    group = str(record.pop("group"))
    number = _number(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest())
    said = _as_json(record)
    digest = hashlib.sha256(said).digest()
    head = orjson.dumps({"id": digest.hex()[:16], "group": group})
    examined.lines.append(b"%b\t%b,%b\n" % (place.encode(), head[:-1], said[1:]))
    examined.ids.append(_number(digest))
    examined.groups.append(number)
    examined.splits.append(SPLITS.index(split or split_of(number, prepare)))


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


def _held_out_split(path: Path) -> str | None:
    """Files of training rows hold the other splits, too, where no file does."""
    told = containers.default_split(path)
    return None if told == "train" else told


def _as_json(record: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(record)
    except TypeError:  # a number of more than 64 bits
        return json.dumps(record, ensure_ascii=False).encode()


def _detect(path: Path, root: Path, columns: dict[Any, str]) -> str:
    """The format of the first row that can be read; of a file without one, any."""
    rows = (row for row in containers.read(path, root=_above(root)))
    first = next((row for row in rows if isinstance(row, containers.RawRow)), None)
    if first is None:
        return "columns"
    found = formats.detect(first.values, dict(columns))
    if found is None:
        raise UserError(
            f"{first.place}: nobody knows what a row with the columns "
            f"{', '.join(map(str, first.values))} means. Say it in params.yaml: "
            "data.sources.format (alpaca, sharegpt, messages, …), or data.sources.columns, "
            "for example {prompt: QUESTION_COLUMN, response: ANSWER_COLUMN}."
        )
    return found


def _above(root: Path) -> Path:
    return root.parent if root.is_file() else root


def _writable(values: Any) -> Any:
    """What JSON in UTF-8 cannot hold (NaN, dates, lone surrogates) as text."""
    text = json.dumps(values, ensure_ascii=False, default=str)
    clean = text.encode("utf-8", "backslashreplace").decode()
    return json.loads(clean, parse_constant=str)
