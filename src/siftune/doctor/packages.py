"""This Python: its version, what is installed against the lock, and what leaks in from the home."""

import os
import re
import site
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from siftune.doctor import place
from siftune.doctor.finding import OK, PROBLEM, WARNING, Finding

OLDEST, TOO_NEW = (3, 11), (3, 14)
NUM_SHOWN = 4
# name==version, a condition, and hashes on the next lines
_PINNED = re.compile(r"^([\w.-]+)==([^\s;\\]+) *(;[^\\\n]*)?", re.M)


def installed() -> Iterator[Finding]:
    """The packages that trainings use, or only this doctor."""
    here = f"Python {sys.version.split()[0]} ({sys.prefix})"
    if place.on_cluster() and not place.in_image() and not has_stack():
        told = f"{here}, without the packages: params, model and data are seen in the image only"
        yield Finding(OK, "Python", told)
        return
    if not OLDEST <= sys.version_info[:2] < TOO_NEW:
        todo = "Take Python 3.11, 3.12 or 3.13, or run it in the image."
        yield Finding(PROBLEM, "Python", here, todo)
        return
    lock = place.LOCKS / (f"{place.variant()}.txt" if place.in_image() else "stack.txt")
    if not has_stack():
        told = f"{here} has not the packages of {lock}: params, model and data are not looked at"
        yield Finding(PROBLEM, "Python", told, "`make demo` installs them.")
        return
    differing = list(_differing(lock))
    if not differing:
        yield Finding(OK, "Python", f"{here}, packages as in {lock}")
        return
    shown = ", ".join(differing[:NUM_SHOWN]) + (" ..." if len(differing) > NUM_SHOWN else "")
    again = "Build the image again" if place.in_image() else "Remove .venv and run `make demo`"
    yield Finding(
        WARNING, "Python", f"{here}: {len(differing)} packages are not as in {lock}: {shown}",
        f"{again}: the versions decide the result.",
    )  # fmt: skip


def has_stack() -> bool:
    """Whether this Python can read the params and load a model."""
    try:
        return bool(version("pydantic") and version("torch"))
    except PackageNotFoundError:
        return False


def leaks() -> Iterator[Finding]:
    """Packages of the user's home, or of PYTHONPATH, that come before the locked ones."""
    home = site.getusersitepackages()
    ours = Path("src").resolve()
    others = [
        folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if folder and Path(folder).resolve() != ours and Path(folder).is_dir()
    ]  # fmt: skip
    if home in sys.path:
        yield Finding(
            PROBLEM, "~/.local", f"packages of {home} are seen, and may replace the locked ones",
            "export PYTHONNOUSERSITE=1",
        )  # fmt: skip
    elif others:
        yield Finding(
            WARNING, "~/.local", f"PYTHONPATH adds {', '.join(others)}",
            "unset PYTHONPATH; a module of the cluster may have set it.",
        )  # fmt: skip
    else:
        there = "is not looked at" if Path(home).is_dir() else "has no packages"
        yield Finding(OK, "~/.local", f"{home} {there}")


def _differing(lock: Path) -> Iterator[str]:
    for name, wanted, condition in _PINNED.findall(lock.read_text()):
        try:
            found = version(name)
        except PackageNotFoundError:
            # One that some machines need only may be left out here.
            if not condition:
                yield f"{name} is missing"
            continue
        if found.partition("+")[0] != wanted.partition("+")[0]:
            yield f"{name} {found} ({wanted})"
