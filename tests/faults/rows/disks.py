"""A disk that is full, fails, or cannot be written any more."""

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from promise import Silent, must
from trial import HANG, Trial, become_read_only
from workspace import NUM_STEPS, SAVE_EVERY

WHICH = (
    "full at a save", "full at metrics", "full at export", "I/O error at a save",
    "read-only at a save", "I/O error at metrics",
)  # fmt: skip
CAUSE = {"full": "the disk is full", "I/O": "I/O error", "read": "read-only"}
FILLER = Path("filler")


def fails(trial: Trial) -> None:
    """WHICH[seed % 6], then room is made, and the next start finishes."""
    draw = random.Random(trial.seed)
    which = WHICH[trial.seed % len(WHICH)]
    if which.startswith("full"):
        trial.on_own_disk()
        trial.copy(name="disk/workspace")
    else:
        trial.copy()
    step = SAVE_EVERY * draw.randrange(1, NUM_STEPS // SAVE_EVERY)
    running = trial.start(patch=_patch(which, step, draw))
    code = running.wait(HANG)
    told = f"{which}, step {step}"
    must(code != 0, f"{told}: exit 0", Silent)
    must(code == 78, f"{told}: it ended with {code}: {running.err[-900:]}")
    must("Traceback" not in running.err, f"{told}: a traceback", Silent)
    last = running.err.strip().splitlines()[-1]
    cause = CAUSE[which.split()[0].partition("-")[0]]
    must(last.startswith("siftune: ") and cause in last, f"{told}: no cause in {last!r}", Silent)
    expected = {"export": NUM_STEPS, "save": step - SAVE_EVERY, "metrics": step - SAVE_EVERY}
    newest = trial.newest()
    must(newest == expected[which.split()[-1]], f"{told}: the newest is that of step {newest}")
    must(not (trial.folder / "models/sft").exists(), f"{told}: a part was published")
    (trial.folder / FILLER).unlink(missing_ok=True)
    trial.finish(resumed_from=newest)


def _patch(which: str, step: int, draw: random.Random) -> Callable[[], None]:
    room = draw.choice((0, 1, 4096, 20_000, 60_000))

    def patch() -> None:
        from siftune import history
        from siftune.resume.checkpoints import Store
        from siftune.training import adapters

        action = {
            "full": lambda: fill(0 if "metrics" in which else room),
            "I/O": lambda: fsync_fails(draw),
            "read-only": lambda: become_read_only(Path.cwd()),
        }[which.split()[0]]
        if "save" in which:
            aside = Store.aside

            def before_save(self: Store, at: int) -> Path:
                if at == step:
                    action()
                return aside(self, at)

            Store.aside = before_save
        elif "metrics" in which:
            append = history.append

            def before_append(folder: Path, values: dict, *, step: int) -> None:
                if step == at_step:
                    action()
                append(folder, values, step=step)

            at_step = step
            history.append = before_append
        else:
            save = adapters.save

            def before_export(*args: object, **kwargs: object) -> None:
                fill(min(room, 20_000))
                save(*args, **kwargs)

            adapters.save = before_export

    return patch


def fill(room: int) -> None:
    """Leave so many bytes on the disk of the current folder."""
    with FILLER.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
        file.truncate(max(file.tell() - room, 0))


def fsync_fails(draw: random.Random) -> None:
    """From a number of flushes on: a failing disk is seen there at the latest."""
    left = draw.randrange(6)
    fsync = os.fsync

    def failing(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    os.fsync = failing
