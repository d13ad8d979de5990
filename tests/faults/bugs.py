"""Bugs that the trials must see: a suite that cannot fail shows nothing."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """Put into each forked child of one trial, which must then be lost or silent."""

    put: Callable[[], None]
    row: str
    seed: int


def optimiser_is_forgotten() -> None:
    from siftune.resume.trainer import Resumable

    Resumable._load_optimizer_and_scheduler = lambda *_: None


def bytes_are_not_compared() -> None:
    from siftune import files
    from siftune.resume import checkpoints

    def verify(folder):
        return checkpoints.Checkpoint(folder, files.read_json(folder / checkpoints.MANIFEST))

    checkpoints.verify = verify


def a_stop_exits_0() -> None:
    from siftune import stage

    stage.RUN_AGAIN = 0


def the_lock_is_always_granted() -> None:
    from siftune import lock

    def acquire(stage: str) -> None:
        lock.FILE.parent.mkdir(exist_ok=True)
        lock.FILE.unlink(missing_ok=True)
        lock._create(lock._myself(stage))

    lock._acquire = acquire


BUGS = {
    bug.put.__name__.replace("_", " "): bug
    for bug in (
        Bug(optimiser_is_forgotten, "clock", 2),
        Bug(bytes_are_not_compared, "corrupt", 1),
        Bug(a_stop_exits_0, "stop", 1),
        Bug(the_lock_is_always_granted, "jobs", 2),
    )
}
