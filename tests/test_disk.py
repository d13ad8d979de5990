"""Disks that are really full or read-only, as the libraries tell it."""

import errno
import os
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest

from siftune import disk

FULL = Path("/dev/full")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full. Make room there"),
        (errno.EDQUOT, "quota on this disk is used up"),
        (errno.EROFS, "read-only file system. Make it writable"),
        (errno.EIO, "I/O error). Look at the kernel's log"),
    ],
)
def test_a_fault_is_told_with_its_file_and_what_to_do(code, words):
    told = disk.explain(OSError(code, os.strerror(code), "models/a.bin"))
    assert told.startswith("models/a.bin: ")
    assert words in told
    assert told.endswith("then start it again: nothing that was published is lost.")
    assert "TMPDIR" not in told


def test_other_errors_are_not_its_business():
    assert disk.explain(OSError(errno.ENOENT, "no such file", "a")) is None
    assert disk.explain(RuntimeError("CUDA out of memory")) is None
    # A terminal that is gone.
    assert disk.explain(OSError(errno.EIO, os.strerror(errno.EIO))) is None


def test_what_torch_says_of_a_write_that_failed_is_understood():
    said = "PytorchStreamWriter failed writing file data/0: file write failed"
    assert "the disk is full" in disk.explain(RuntimeError(said))


def test_a_cause_is_found_below_what_a_library_made_of_it():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/x")
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("could not download") from full
    assert disk.explain(caught.value).startswith("cache/x: the disk is full")
    caught.value.__cause__ = None
    assert disk.explain(caught.value) is None


def test_a_write_is_told_with_the_file_that_was_written():
    with pytest.raises(OSError, match="No space") as caught, disk.writing(Path("out.json")):
        FULL.write_text("x")
    assert disk.explain(caught.value).startswith("out.json: the disk is full")


def test_where_temporary_files_are_full_another_place_is_named():
    place = str(Path(tempfile.gettempdir()) / "tmp1" / "x")
    told = disk.explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place))
    assert f"set TMPDIR, now {tempfile.gettempdir()}, to another disk" in told
    assert "TMPDIR" in disk.explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A real file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_what_safetensors_torch_and_sqlite_say_is_understood(small_disk):
    import torch
    from safetensors.torch import save_file

    tensor = {"a": torch.zeros(2**20)}
    table = sqlite3.connect(small_disk / "a.db")
    table.execute("create table a (b)")

    writers = {
        "model.safetensors": lambda path: save_file(tensor, path),
        "optimizer.pt": lambda path: torch.save(tensor, path),
        "a.db": lambda path: table.execute("insert into a values (zeroblob(4000000))"),
    }
    for name, write in writers.items():
        path = small_disk / name
        with pytest.raises(Exception) as caught, disk.writing(path):  # noqa: PT011
            write(path)
        told = disk.explain(caught.value)
        assert told is not None, caught.value
        assert told.startswith(f"{path}: the disk is full"), name
        if name != "a.db":
            path.unlink(missing_ok=True)
