"""DVC that gets over a `kill -9`: it fails for ever on some of what that leaves half done."""

import os
import re
import time
from pathlib import Path

from siftune import files, processes

# Who reads and writes which paths now.
RWLOCK = Path(".dvc/tmp/rwlock")
# One that was killed right now may still be there.
SECONDS_TO_DIE = 3.0


def mend() -> None:
    """Remove what a killed DVC left here, and let the one of this process leave no such thing."""
    _forget_the_dead()
    _write_files_whole()
    _take_an_empty_folder_for_no_entry()


def _forget_the_dead() -> None:
    """Killed while it wrote, DVC leaves half a file. And it knows the others by process id alone.

    In a container that was started again, or on another node, something else has such an id.
    """
    try:
        named = re.findall(r'"pid": (\d+)', RWLOCK.read_text())
    except FileNotFoundError:
        return
    deadline = time.monotonic() + SECONDS_TO_DIE
    while any(_is_another_dvc(int(pid)) for pid in named):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    RWLOCK.unlink(missing_ok=True)


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
