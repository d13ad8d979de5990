"""Files that are whole or absent: write aside, flush to disk, rename."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from siftune import disk, processes
from siftune.stage import UserError

# Where in a record of ours a number may stand, whatever its size.
_WITH_NUMBERS = (b'"tools"', b'_calls"', b'"fields"')
_LONG_NUMBER = re.compile(rb"\d{19}")

_OLD = ".old.tmp"


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
    """Yield a path to write; it takes the place of `path` when the block ends without an error.

    Killed at any point, this leaves the old file whole or the new one. What a dead writer left
    beside it is removed by the next writer.
    """
    with disk.writing(path):
        aside = _aside(path)
        try:
            yield aside
            flush(aside)
            aside.replace(path)
            flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; it takes the place of `path` when the block ends without an error.

    Killed at any point, this leaves the old folder whole, the new one, or none; never a part.
    """
    with disk.writing(path):
        aside = _aside(path)
        old = aside.with_suffix(_OLD)
        aside.mkdir()
        try:
            yield aside
            flush_folder(aside)
            _exchange(aside, path, old)
            flush(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        # Out of its place first: half of it must never stand there.
        shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Parse one JSON file that an earlier stage wrote.

    Raises:
        UserError: it is not there.
    """
    return json.loads(existing(path).read_text(encoding="utf-8"))


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
    with existing(path).open("rb") as file:
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


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object to a log of lines; on disk before this returns."""
    with disk.writing(path), path.open("ab+") as file:
        # A writer that was killed may have left half a line: what follows stands on its own.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that `append_line` wrote; none where there is no file."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(
            ValueError, RecursionError
        ):  # half a line, of a writer that was killed
            found.append(json.loads(line))
    return found


def existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} is not there; an earlier stage writes it. Run `dvc repro`.")
    return path


def flush_folder(folder: Path) -> None:
    """Wait until a folder and all below it are on disk."""
    for entry in [*folder.rglob("*"), folder]:
        flush(entry)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _aside(path: Path) -> Path:
    """Where to write what will be `path`; leftovers of dead writers are removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(\.old)?\.tmp")
    for entry in path.parent.iterdir():
        match = own.fullmatch(entry.name)
        if match and _is_over(int(match[1])):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_over(writer: int) -> bool:
    return writer == os.getpid() or processes.start_time(writer) is None


def _exchange(aside: Path, path: Path, old: Path) -> None:
    try:
        if path.exists():
            path.rename(old)
        aside.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
