"""Writing a bundle in one pass: whole, or absent."""

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from siftune import files, progress, wording
from siftune.bundle import SUMS, contents
from siftune.bundle.contents import Entry
from siftune.stage import UserError

BLOCK = 1 << 20


def main(target: Path, wheels: Path | None) -> None:
    """Write the bundle of this checkout to `target`, a file or a folder that is there.

    Raises:
        UserError: something is missing, changed, or has no room; nothing is written then.
    """
    with tempfile.TemporaryDirectory() as aside:
        entries = contents.collect(wheels, Path(aside))
        name = f"siftune-{contents.commit()[:12]}"
        path = target / f"{name}.tar" if target.is_dir() else target
        num_bytes = sum(entry.path.stat().st_size for entry in entries)
        _require_room(path, num_bytes)
        with files.published_file(path) as written:
            _write(written, name, entries, num_bytes)
    print(f"{path}: {wording.size(path.stat().st_size)}, {len(entries)} files")
    if not any(entry.name.endswith(".sif") for entry in entries):
        print("It has no image: containers/image.lock knows none that is in containers/.")
    print("docs/cluster.md says how it is used where there is no network.")


def _write(path: Path, folder: str, entries: list[Entry], num_bytes: int) -> None:
    digests: dict[str, str] = {}
    with path.open("wb") as file:
        # The first file, though its content is known last: its size is known.
        sums = "".join(f"{'0' * 64}  {entry.name}\n" for entry in entries).encode()
        file.write(_header(f"{folder}/{SUMS}", len(sums), seconds=0))
        place = file.tell()
        file.write(sums + _padding(len(sums)))
        blocks = _blocks(folder, entries, digests)
        for block in progress.shown(blocks, "bytes packed", size=len, total=num_bytes):
            file.write(block)
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        _compare_images(digests)
        file.seek(place)
        file.write("".join(f"{digests[one.name]}  {one.name}\n" for one in entries).encode())


def _blocks(folder: str, entries: list[Entry], digests: dict[str, str]) -> Iterator[bytes]:
    """The tar's bytes of all entries; `digests` gets the sha256 of each."""
    for entry in entries:
        facts = entry.path.stat()
        yield _header(f"{folder}/{entry.name}", facts.st_size, seconds=int(facts.st_mtime))
        digest = hashlib.sha256()
        left = facts.st_size
        with entry.path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                left -= len(block)
                yield block
        if left:
            raise UserError(f"{entry.path} changed while it was packed: bundle again.")
        digests[entry.name] = digest.hexdigest()
        yield _padding(facts.st_size)


def _header(name: str, size: int, *, seconds: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = size, seconds
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _compare_images(digests: dict[str, str]) -> None:
    for name, wanted in contents.locked_images().items():
        if digests.get(name, wanted) != wanted:
            raise UserError(
                f"{name} is not the image of {contents.IMAGE_LOCK}: its sha256 is "
                f"{digests[name]}. Build it again, or copy both again."
            )


def _require_room(path: Path, num_bytes: int) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: a bundle is written into a folder that is.")
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{folder} has {wording.size(free)} free, and the bundle takes "
            f"{wording.size(num_bytes)}: make room, or choose another disk."
        )
