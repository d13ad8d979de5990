"""Raw rows in, canonical records out: every row is kept or rejected with a reason. No torch here.

A canonical record is `{"id", "group", "messages": [{"role", "content"}, …]}`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from siftune.config import Data, Prepare
from siftune.stage import UserError

SPLITS = ("train", "validation", "test")
FORMATS = (".jsonl", ".json", ".parquet")


class RawRow(NamedTuple):
    """A row as it was read, and where: file name and line (or position), counted from 1."""

    values: dict[str, Any]
    place: str


class Rejected(NamedTuple):
    """Why a row is not used."""

    place: str
    reason: str
    row: dict[str, Any]


def read(path: Path) -> Iterator[RawRow]:
    """Rows of a .jsonl, .json or .parquet file, or of all such files in a folder, sorted by name.

    Raises:
        UserError: no such file, or one that cannot be parsed (with its line).
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in FORMATS)
        if not found:
            raise UserError(f"params.yaml: data.path: {path} holds no {', '.join(FORMATS)} file.")
        for file in found:
            yield from read(file)
    elif path.suffix == ".jsonl":
        yield from _read_lines(path)
    elif path.suffix == ".json":
        yield from _rows(path, _parse(path.read_text(encoding="utf-8"), place=path.name))
    elif path.suffix == ".parquet":
        import pyarrow.parquet

        yield from _rows(path, pyarrow.parquet.read_table(path).to_pylist())
    else:
        raise UserError(f"params.yaml: data.path: {path} is none of {', '.join(FORMATS)}.")


def canonical(rows: Iterable[RawRow], data: Data) -> Iterator[dict[str, Any] | Rejected]:
    """One record, or one rejection, for each row, in order."""
    seen: dict[str, str] = {}
    for row in rows:
        reason = _fault(row.values, data)
        if reason is None:
            record = _record(row.values, data)
            first = seen.setdefault(record["id"], row.place)
            if first == row.place:
                yield record
                continue
            reason = f"same conversation as {first}"
        yield Rejected(row.place, reason, row.values)


def split_of(group: str, shares: Prepare) -> str:
    """The split of a group, from its hash alone: adding rows never moves a row to another split."""
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if position < shares.test:
        return "test"
    return "validation" if position < shares.test + shares.validation else "train"


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path.name}:{number}"
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8 ({error.reason}). Convert the file.") from None
            values = _parse(text, place=place)
            if not isinstance(values, dict):
                raise UserError(f"{place}: a line must hold one JSON object, not {line[:40]!r}.")
            yield RawRow(values, place)


def _rows(path: Path, rows: Any) -> Iterator[RawRow]:
    if not isinstance(rows, list):
        raise UserError(f"{path.name}: must hold a list of rows, not a {type(rows).__name__}.")
    for number, values in enumerate(rows, start=1):
        if not isinstance(values, dict):
            raise UserError(f"{path.name}: row {number} is no JSON object: {str(values)[:40]!r}.")
        yield RawRow(values, f"{path.name}#{number}")


def _parse(text: str, *, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {error}") from None


def _fault(values: dict[str, Any], data: Data) -> str | None:
    for key, column in (("prompt", data.prompt), ("response", data.response)):
        if column not in values:
            return f"no column {column!r} (data.{key}); it has {', '.join(map(str, values))}"
        if not isinstance(values[column], str):
            return f"column {column!r} is no text"
        if not values[column].strip():
            return f"column {column!r} is empty"
    if data.group is not None and not isinstance(values.get(data.group), str):
        return f"no text in column {data.group!r} (data.group)"
    return None


def _record(values: dict[str, Any], data: Data) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": values[data.prompt].strip()},
        {"role": "assistant", "content": values[data.response].strip()},
    ]
    content = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    return {
        "id": hashlib.sha256(content.encode()).hexdigest()[:16],
        "group": values[data.group] if data.group else messages[0]["content"],
        "messages": messages,
    }
