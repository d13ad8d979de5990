"""Files that are whole or absent: write aside, flush to disk, rename."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from siftune.stage import UserError

# Where in a record of ours a number may stand, whatever its size.
_WITH_NUMBERS = (b'"tools"', b'_calls"', b'"fields"')
_LONG_NUMBER = re.compile(rb"\d{19}")


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file below `folder`, by relative path, sorted."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def published_file(path: Path) -> Iterator[Path]:
    """Yield a path to write; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        _flush(aside)
        aside.replace(path)
        _flush(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; it takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    aside.chmod(0o777 & ~_umask())  # mkdtemp's folders are private
    try:
        yield aside
        for entry in [*aside.rglob("*"), aside]:
            _flush(entry)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Parse one JSON file that an earlier stage wrote.

    Raises:
        UserError: it is not there.
    """
    return json.loads(_existing(path).read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read and git can diff; NaN is an error."""
    with published_file(path) as aside:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Parse one object a line, of a file that an earlier stage wrote.

    Raises:
        UserError: it is not there.
    """
    with _existing(path).open("rb") as file:
        for line in file:
            yield parse(line)


def parse(line: bytes) -> dict[str, Any]:
    """The object of a line that we wrote."""
    # orjson is several times as fast, but reads a number of more than 64 bits as a fraction.
    has_numbers = any(key in line for key in _WITH_NUMBERS)
    exact = has_numbers and _LONG_NUMBER.search(line)
    found: dict[str, Any] = json.loads(line) if exact else orjson.loads(line)
    return found


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one object a line."""
    with published_file(path) as aside, aside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} is not there; an earlier stage writes it. Run `dvc repro`.")
    return path


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
