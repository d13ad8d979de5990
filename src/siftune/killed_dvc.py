"""DVC that gets over a `kill -9`: it fails for ever on some of what that leaves half done."""

import contextlib
import os
import re
import time
from pathlib import Path

from siftune import files, processes

# Who reads and writes which paths now.
RWLOCK = Path(".dvc/tmp/rwlock")
# Held by one that works, but for the time of a stage.
LOCK = Path(".dvc/tmp/lock")
# One that was killed right now may still be there.
SECONDS_TO_DIE = 3.0
# What it copies or links is first named so, and stands beside where it is to be.
_ASIDE = re.compile(r".*\.[\w-]{22}\.tmp", re.ASCII)


def mend() -> None:
    """Remove what a killed DVC left here, and let the one of this process leave no such thing."""
    if not _is_another_at_work():
        # DVC knows others by process id alone. In a container that was started again, or on another
        # node, something else has such an id.
        RWLOCK.unlink(missing_ok=True)
        _remove_unfinished_copies()
    _write_files_whole()
    _take_an_empty_folder_for_no_entry()


def _is_another_at_work() -> bool:
    """By what they note; for one that dies just now, this waits."""
    deadline = time.monotonic() + SECONDS_TO_DIE
    while any(_is_another_dvc(pid) for pid in _noted()):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def _noted() -> list[int]:
    """Process ids; killed while it wrote, DVC leaves half a file."""
    with contextlib.suppress(FileNotFoundError):
        return [int(pid) for pid in re.findall(r'"pid": (\d+)', RWLOCK.read_text())]
    return []


def _remove_unfinished_copies() -> None:
    """Beside outputs, where nothing else would ever remove them."""
    from dvc.lock import Lock, LockError

    if not LOCK.parent.is_dir():
        return
    with contextlib.suppress(LockError), Lock(LOCK):
        for folder, below, names in os.walk("."):
            below[:] = [name for name in below if not name.startswith(".") and name != "work"]
            for name in filter(_ASIDE.fullmatch, names):
                Path(folder, name).unlink(missing_ok=True)


def _is_another_dvc(pid: int) -> bool:
    try:
        command = (processes.PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False
    return pid not in (os.getpid(), os.getppid()) and (b"dvc" in command or b"siftune" in command)


def _write_files_whole() -> None:
    """Above all dvc.lock, which says what every stage was made of: DVC empties it, then writes."""
    from dvc.utils.serialize import _common

    dump = _common._dump_data

    def dump_whole(path: str, *arguments: object, **options: object) -> None:
        with files.published_file(Path(path)) as aside:
            dump(str(aside), *arguments, **options)

    _common._dump_data = dump_whole


def _take_an_empty_folder_for_no_entry() -> None:
    """In the run cache: made before the file in it, which DVC then takes to be named None.

    It is not removed: another job, of a shared cache, may be about to write there.
    """
    from dvc.stage.cache import StageCache

    load_entry = StageCache._load_cache

    def load(cache: StageCache, key: str, name: str | None) -> object:
        return None if name is None else load_entry(cache, key, name)

    StageCache._load_cache = load
