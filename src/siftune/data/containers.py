"""Files in, rows out, one at a time: a file may be larger than memory.

A file's ending says what it holds, its first bytes whether it is compressed. Each line of it that
is not empty becomes a row or an `Unreadable`; a file that is wrong as a whole is a `UserError`.
"""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from siftune.data import arrow_rows, csv_rows, text_rows
from siftune.data.faults import Fault
from siftune.stage import UserError

ROWS = {
    ".jsonl": text_rows.json_lines,
    ".ndjson": text_rows.json_lines,
    ".json": text_rows.json_rows,
    ".csv": csv_rows.comma_separated,
    ".tsv": csv_rows.tab_separated,
    ".parquet": arrow_rows.parquet,
    ".arrow": arrow_rows.arrow,
}
PLAIN_TEXT = {".txt": text_rows.passages, ".md": text_rows.passages}
READERS = ROWS | PLAIN_TEXT
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
Item = TypeVar("Item", bytes, text_rows.Found)

BLOCK_LINES = 1000
BLOCK_ROWS = 200
BLOCK_BYTES = 8 * 2**20
BUFFER = 2**20
SMALL_BUFFER = 2**16  # what stands before a damaged place is still read
BOM = b"\xef\xbb\xbf"
ENDINGS = f"{', '.join(READERS)}, each also with .gz or .zst"

# What tells about data, in data sets from a hub or saved by `datasets`, and is none.
NOT_DATA = re.compile(
    r"state\.json|dataset_infos?\.json|dataset_dict\.json|cache-.*\.arrow"
    r"|(readme|licen[cs]e|notice|changelog)\b.*\.(md|txt)",
    re.IGNORECASE,
)

_CONVERT = "convert it: iconv -f {0} -t UTF-8 OLD > NEW"
_UNPACK = "unpack it first"
# How a file begins that is not what its name says; what it is; what to do.
FOREIGN = (
    (rb"\xff\xfe\0\0|\0\0\xfe\xff|[^\0]\0\0\0|\0\0\0[^\0]", "UTF-32", _CONVERT.format("UTF-32")),
    (rb"\xff\xfe|\xfe\xff|([^\0]\0){2}|(\0[^\0]){2}", "UTF-16", _CONVERT.format("UTF-16")),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "compressed twice", _UNPACK),
    (rb"PK\x03\x04", "a zip archive or an Excel sheet", f"{_UNPACK}, or save it as CSV"),
    (rb"BZh\d1AY|\xfd7zXZ\0|7z\xbc\xaf", "packed in another way than gzip or zstd", _UNPACK),
    (rb"PAR1[\x15\x19]", "a Parquet file", "name it .parquet"),
    (rb"ARROW1\0\0", "an Arrow file", "name it .arrow"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the data", "run `git lfs pull` there"),
    (rb"%PDF-", "a PDF file", "export its text"),
)  # fmt: skip
WEB_PAGE = (rb"\s*<(!doctype )?html", "a web page, perhaps of a failed download", "fetch it again")

Split = Literal["train", "validation", "test"]
SPLITS: dict[str, Split] = {
    "train": "train", "training": "train",
    "valid": "validation", "validation": "validation", "val": "validation", "dev": "validation",
    "eval": "validation", "evaluation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


class RawRow(NamedTuple):
    """A row as JSON could hold it, and where: file.jsonl:12 (line) or file.parquet#12 (row)."""

    values: dict[str, Any]
    place: str


class Unreadable(NamedTuple):
    """A line or row that is none; `text` is how it begins."""

    place: str
    fault: Fault
    text: str


class Block(NamedTuple):
    """Some rows of a file: lines of JSON, from line `first` on, or rows that are parsed."""

    name: str
    first: int
    lines: list[bytes]
    found: list[text_rows.Found]


def find(root: Path, pattern: str) -> list[Path]:
    """The data files below a folder, by relative path; or `root` itself where it is a file.

    Hidden files, cards and licences are left out; so are .txt and .md files beside files of rows:
    what is plain text there tells about the rows. A pattern for .txt finds them.

    Raises:
        UserError: nothing is found, or something outside of `root`.
    """
    if root.is_file():
        _kind(root)
        return [root]
    if not root.is_dir():
        raise UserError(f"params.yaml: data.path: {root} is neither a file nor a folder.")
    if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UserError(_bad_pattern(pattern, f"must be a pattern below {root} (data.path)"))
    try:
        # Until Python 3.13, ** alone finds folders only.
        matched = list(root.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(_bad_pattern(pattern, str(error))) from None
    found = sorted((p for p in matched if _is_data(p, root)), key=lambda p: _name(p, root))
    if any(_ending(path) in ROWS for path in found):
        found = [path for path in found if _ending(path) in ROWS]
    if not found:
        raise UserError(
            _bad_pattern(pattern, f"finds no data file in {root} (data.path). Valid: {ENDINGS}")
        )
    return found


def default_split(path: Path) -> Split | None:
    """The split that a file's name tells, else that of a folder above it in the path given.

    `train`, `training`, `dev`, … count as whole words; a name with words of two splits tells none.
    """
    for part in reversed(path.parts):
        told = {SPLITS[word] for word in re.findall("[a-z]+", part.lower()) if word in SPLITS}
        if told:
            return told.pop() if len(told) == 1 else None
    return None


def read(path: Path, *, root: Path) -> Iterator[RawRow | Unreadable]:
    """The rows of a file; places name it relative to `root`. Bytes decide on gzip and zstd.

    A .json file may be an array, an object with one list of rows, or JSON lines. Of .txt and .md,
    up to 1 MB is one row, {"text": …}; what is larger is cut at blank lines into rows of about
    100 kB. What Parquet and Arrow hold and JSON does not becomes text, and NaN becomes null.

    Raises:
        UserError: the file cannot be read, or from some place on.
    """
    for block in blocks(path, root=root):
        yield from rows(block)


def blocks(path: Path, *, root: Path) -> Iterator[Block]:
    """The rows of a file in portions, of which lines of JSON are not parsed yet: `rows` does that.

    Raises:
        UserError: as for `read`.
    """
    name = _name(path, root)
    reader = READERS[_kind(path)]
    read = _Counted()
    try:
        with _opened(path, name) as file:
            if reader is text_rows.json_lines:
                for lines in _portions(read.counting(text_rows.lines(file))):
                    yield Block(name, read.number - len(lines) + 1, lines, [])
                    read.num_rows += sum(not line.isspace() for line in lines)
            else:
                found = read.counting(reader(file, name))
                while portion := list(islice(found, BLOCK_ROWS)):
                    yield Block(name, 0, [], portion)
                    read.num_rows += len(portion)
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read after {read.place(name)}: {error}. It may be damaged or cut "
            "off: fetch or write it again."
        ) from None
    if not read.num_rows:
        raise UserError(f"{name}: holds no rows. Take it away, or write it again.")


class _Counted:
    """How far a file is read."""

    def __init__(self) -> None:
        self.number = 0  # of lines, or of rows
        self.num_rows = 0
        self._last: bytes | text_rows.Found = b""

    def counting(self, items: Iterator[Item]) -> Iterator[Item]:
        for self._last in items:
            self.number += 1
            yield self._last

    def place(self, name: str) -> str:
        if not self.number:
            return "its beginning"
        at = self._last.at if isinstance(self._last, text_rows.Found) else f":{self.number}"
        return name + at


def rows(block: Block) -> Iterator[RawRow | Unreadable]:
    """The rows of a portion, parsed."""
    for at, values, text in block.found or text_rows.objects(block.lines, block.first):
        place = block.name + at
        if isinstance(values, Fault):
            yield Unreadable(place, values, text)
        else:
            yield RawRow(values, place)


def _portions(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    portion: list[bytes] = []
    size = 0
    for line in lines:
        portion.append(line)
        size += len(line)
        if len(portion) == BLOCK_LINES or size >= BLOCK_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


@contextmanager
def _opened(path: Path, name: str) -> Iterator[io.BufferedReader]:
    """The file, decompressed, past its byte order mark."""
    ending = _ending(path)
    with ExitStack() as stack:
        file: io.BufferedReader = io.BufferedReader(io.FileIO(path), BUFFER)
        stack.enter_context(file)
        compression = next((c for m, c in COMPRESSIONS.items() if _head(file).startswith(m)), None)
        if compression:
            import pyarrow

            unpacked = pyarrow.CompressedInputStream(file, compression)
            file = stack.enter_context(io.BufferedReader(unpacked, SMALL_BUFFER))
        if compression and ending in (".parquet", ".arrow"):  # not read from front to back
            whole = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, whole)
            whole.seek(0)
            file = cast(io.BufferedReader, whole)
        for begin, what, remedy in (*FOREIGN, *((WEB_PAGE,) if ending in ROWS else ())):
            if remedy != f"name it {ending}" and re.match(begin, _head(file), re.IGNORECASE):
                raise UserError(f"{name}: is {what}. Please {remedy}.")
        if _head(file).startswith(BOM):
            file.read(len(BOM))
        yield file


def _head(file: io.BufferedReader) -> bytes:
    return file.peek(64)[:64]


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return os.path.splitext(name)[1]


def _kind(path: Path) -> str:
    ending = _ending(path)
    if ending not in READERS:
        raise UserError(f"params.yaml: data.path: {path} ends in none of {ENDINGS}.")
    return ending


def _is_data(path: Path, root: Path) -> bool:
    """Whether a search should find this path.

    Raises:
        UserError: it is a link to nothing, or to something outside of `root`.
    """
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    if hidden or _ending(path) not in READERS or NOT_DATA.fullmatch(path.name):
        return False
    if path.is_symlink() and not path.exists():
        raise UserError(f"params.yaml: data.path: {path} is a link to nothing.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"params.yaml: data.path: {path} is a link to {path.resolve()}, outside of {root}. "
            "Copy the file there, or set data.path to the folder that holds it."
        )
    return path.is_file()


def _name(path: Path, root: Path) -> str:
    name = path.name if path == root else path.relative_to(root).as_posix()
    return os.fsencode(name).decode("utf-8", "replace")


def _bad_pattern(pattern: str, problem: str) -> str:
    return f"params.yaml: data.sources.files: {pattern!r} {problem}."
