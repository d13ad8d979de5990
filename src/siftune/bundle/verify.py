"""`siftune bundle verify`: every byte of a bundle, packed or unpacked; plain Python is enough."""

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from siftune import progress
from siftune.bundle import SUMS
from siftune.stage import UserError

BLOCK = 1 << 20
MAX_SUMS = 1 << 28  # bytes; more is no list of files
NUM_SHOWN = 10
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_DAMAGED = "it is cut off, or damaged"

Sums = dict[str, str]


def main(path: Path) -> None:
    """Compare a bundle, or the folder it was unpacked to, with its own list of sha256 sums.

    Raises:
        UserError: something is missing, changed, added, or no plain file.
    """
    if not path.exists():
        raise UserError(f"{path} is not there.")
    problems = list(_folder(path) if path.is_dir() else _archive(path))
    if problems:
        shown = "\n  ".join(problems[:NUM_SHOWN])
        more = f"\n  … {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise UserError(
            f"{path} is not what was bundled. Do not use it: copy it again, or bundle again.\n"
            f"  {shown}{more}"
        )
    print(f"{path} is whole: every file is what was bundled.")


def _archive(path: Path) -> Iterator[str]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield from _members(tar, size)
            # Nothing follows but zeros, up to a whole record.
            file.seek(tar.offset)
            rest = size - tar.offset
            is_end = 2 * tarfile.BLOCKSIZE <= rest < 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
            if size % tarfile.RECORDSIZE or not is_end or any(file.read()):
                yield _DAMAGED
    except (tarfile.TarError, EOFError, OverflowError, ValueError):
        yield _DAMAGED


def _members(tar: tarfile.TarFile, size: int) -> Iterator[str]:
    first = tar.next()
    folder, _, name = first.name.partition("/") if first else ("", "", "")
    if first is None or name != SUMS or not first.isreg() or not 0 < first.size < MAX_SUMS:
        yield f"it does not begin with {SUMS}: it is no bundle, or damaged"
        return
    sums, problems = _read_sums(b"".join(_blocks_of(tar, first)))
    if not _is_below(folder):
        problems.append(f"{folder!r} is no name of a folder")

    def blocks() -> Iterator[tuple[str, bytes]]:
        seen = set()
        for member in tar:
            name = member.name.removeprefix(f"{folder}/")
            if member.name == first.name and member.offset == first.offset:
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                problems.append(f"{name!r} is no plain file")
            elif name == member.name or name not in sums or name in seen:
                problems.append(f"{member.name!r} was added")
            else:
                seen.add(name)
                yield from ((name, block) for block in _blocks_of(tar, member))

    yield from _compare(sums, blocks(), total=size)
    yield from problems


def _folder(root: Path) -> Iterator[str]:
    listed = root / SUMS
    if not _is_plain(listed) or listed.stat().st_size > MAX_SUMS:
        yield f"it has no {SUMS}: it is no bundle that was unpacked"
        return
    sums, problems = _read_sums(listed.read_bytes())
    # A link leads elsewhere, also one among the folders above a file.
    plain = [name for name in sums if _is_plain(root / name) and _is_at_home(root, name)]

    def blocks() -> Iterator[tuple[str, bytes]]:
        for name in plain:
            with (root / name).open("rb") as file:
                yield from ((name, block) for block in _blocks(file))

    total = sum((root / name).stat().st_size for name in plain)
    yield from _compare(sums, blocks(), total=total)
    yield from problems
    # A folder that has become the checkout has files of its own.
    if not (root / ".git").exists():
        yield from (f"{name!r} was added" for name in _names(root) - sums.keys() - {SUMS})


def _compare(sums: Sums, blocks: Iterator[tuple[str, bytes]], *, total: int) -> Iterator[str]:
    digests: dict[str, Any] = {}
    shown = progress.shown(blocks, "bytes compared", size=lambda pair: len(pair[1]), total=total)
    for name, block in shown:
        digests.setdefault(name, hashlib.sha256()).update(block)
    for name, wanted in sums.items():
        if name not in digests:
            yield f"{name} is missing, or no plain file"
        elif digests[name].hexdigest() != wanted:
            yield f"{name} has changed"


def _read_sums(content: bytes) -> tuple[Sums, list[str]]:
    """The list of sums, and what is wrong with it; a name that leads elsewhere is not in it."""
    sums: Sums = {}
    problems = []
    *lines, last = content.decode("utf-8", errors="surrogateescape").split("\n")
    for line in (*lines, *([last] if last else [])):
        match = _LINE.fullmatch(line)
        if not match or not _is_below(match[2]) or match[2] in sums:
            problems.append(f"{SUMS} has the line {line!r}")
        else:
            sums[match[2]] = match[1]
    return sums, problems


def _is_below(name: str) -> bool:
    """Whether a name stays in the folder that it is looked up in."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "/".join(parts) == name and not {"..", "/"} & set(parts)


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_at_home(root: Path, name: str) -> bool:
    return (root / name).resolve() == root.resolve() / name


def _names(root: Path) -> set[str]:
    """Of all that is no folder; a link to one is none."""
    return {
        path.relative_to(root).as_posix()
        for folder, folders, others in os.walk(root)
        for name in (*folders, *others)
        if (path := Path(folder, name)).is_symlink() or not path.is_dir()
    }


def _blocks_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # of a plain file there is one
    yield from _blocks(file)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """At least one, also of an empty file."""
    yield file.read(BLOCK)
    while block := file.read(BLOCK):
        yield block
