"""Whether locks, links, renaming and the clock of the file system do what stages rely on."""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from siftune.doctor.finding import OK, PROBLEM, WARNING, Finding

MOUNTS = Path("/proc/self/mountinfo")
SKEW = 5.0  # seconds
# File systems that several machines share.
SHARED = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|cifs|panfs|pvfs|orangefs|weka|9p|fuse\.sshfs")
LOCAL_LOCKS = re.compile(r"\b(localflock|nolock|local_lock=(all|flock|posix))\b")


def locks() -> Iterator[Finding]:
    """Locks, links and renaming, tried in work/."""
    work = Path("work")
    try:
        work.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=work) as folder:
            broken = [name for name, tried in TRIALS.items() if not _works(tried, Path(folder))]
            ours = time.time()
            theirs = Path(tempfile.mkstemp(dir=folder)[1]).stat().st_mtime
    except OSError as error:
        todo = "Work in a folder of your own that can be written to (in an image: bind it)."
        yield Finding(PROBLEM, "locks", f"nothing can be written in work/: {error}", todo)
        return
    kind, options = mount(work)
    elsewhere = "Clone the repository to another file system: DVC, MLflow and the stages need it."
    if broken:
        yield Finding(PROBLEM, "locks", f"{', '.join(broken)} fail in work/ ({kind})", elsewhere)
    elif LOCAL_LOCKS.search(options):
        yield Finding(
            WARNING, "locks", f"work/ ({kind}) is mounted with locks that hold on one node only",
            "Never run two jobs in this folder; let each have a clone.",
        )  # fmt: skip
    else:
        yield Finding(OK, "locks", f"locks, links and renaming work in work/ ({kind})")
    if abs(theirs - ours) > SKEW:
        yield Finding(
            WARNING, "clock", f"the file system of work/ is {theirs - ours:+.0f} s off this host",
            "Tell who runs the cluster: ages in `siftune status` are wrong by that.",
        )  # fmt: skip


def _flock(folder: Path) -> bool:
    with (folder / "flock").open("w") as one, (folder / "flock").open("w") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _fcntl(folder: Path) -> bool:
    with (folder / "fcntl").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _link(folder: Path) -> bool:
    (folder / "file").touch()
    os.link(folder / "file", folder / "link")
    return (folder / "link").stat().st_nlink == 2


def _rename(folder: Path) -> bool:
    (folder / "old").write_text("old")
    (folder / "new").write_text("new")
    (folder / "new").replace(folder / "old")
    return (folder / "old").read_text() == "new"


TRIALS: dict[str, Callable[[Path], bool]] = {
    "flock": _flock,
    "fcntl locks": _fcntl,
    "hard links": _link,
    "renaming": _rename,
}


def _works(tried: Callable[[Path], bool], folder: Path) -> bool:
    try:
        return tried(folder)
    except OSError:
        return False


def mount(path: Path) -> tuple[str, str]:
    """Type and options of the file system that holds `path`."""
    device = existing(path).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0], f"{before.split()[5]},{after.split()[-1]}"
    return "unknown", ""


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())
