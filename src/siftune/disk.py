"""A disk that is full or fails: recognised whichever library says it, and told in one line."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What is wrong, and what to do, by errno.
FAULTS = {
    errno.ENOSPC: ("the disk is full", "Make room there"),
    errno.EDQUOT: ("your quota on this disk is used up", "Make room there, or ask for more quota"),
    errno.EROFS: (
        "it is on a read-only file system",
        "Make it writable (in a container: bind it writable)",
    ),
    errno.EIO: (
        "the disk or its connection fails (I/O error)",
        "Look at the kernel's log or ask who runs this machine, and mend it",
    ),
}
# Libraries that hide the errno: what they say instead.
_SAYINGS = {
    **{os.strerror(code): code for code in FAULTS},
    "database or disk is full": errno.ENOSPC,  # SQLite
    "disk I/O error": errno.EIO,  # SQLite
    # torch.save does not tell why it could not write; a full disk is by far the commonest reason.
    "PytorchStreamWriter failed writing file": errno.ENOSPC,
    "inline_container.cc": errno.ENOSPC,
}
_NOTE = "While writing "


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Let an error of the block say that it was about writing `path`.

    The system's own errors name a file when it is opened, not when it is written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        error.add_note(f"{_NOTE}{path}")
        raise


def explain(error: BaseException) -> str | None:
    """One line for an error that a disk is the cause of; None for any other."""
    place = None
    for cause in _chain(error):
        place = place or _place(cause)
        code = _code(cause)
        if code is not None:
            fault, advice = FAULTS[code]
            here = f"{Path.cwd()} or {tempfile.gettempdir()}"
            return (
                f"{place or f'a file below {here}'}: {fault}. {advice}{_elsewhere(place)}, then "
                "start it again: nothing that was published is lost."
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        # Without a file it may be a terminal that is gone, which is an I/O error, too.
        is_disk = error.errno in FAULTS and (error.errno != errno.EIO or error.filename is not None)
        return error.errno if is_disk else None
    said = str(error)
    return next((code for saying, code in _SAYINGS.items() if saying in said), None)


def _place(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.filename is not None:
        return os.fsdecode(error.filename2 or error.filename)
    notes = getattr(error, "__notes__", [])
    return next((note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)), None)


def _elsewhere(place: str | None) -> str:
    temporary = tempfile.gettempdir()
    if place is None or Path(temporary) in Path(place).parents:
        return f" (or set TMPDIR, now {temporary}, to another disk)"
    return ""
