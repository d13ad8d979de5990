"""How a stage script starts and ends: exit codes, signals, no traceback for a user's mistake."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from siftune import disk, processes

FINISHED = 0
RUN_AGAIN = 75  # EX_TEMPFAIL: what was done is saved; the same command goes on from there
START_AGAIN = 76  # of one process of several, to the one that started them (`ranks`)
STOPPED_AT_ONCE = 77  # only of a rank, to its launcher: RUN_AGAIN, and nothing is being saved
DO_NOT_RETRY = 78  # EX_CONFIG: bad params or data; the same input fails again

# Names the file in which `siftune repro` finds how a stage ended: DVC ends with 255 for them all.
ENDED = "SIFTUNE_ENDED"

# A cluster's warnings before it kills, and Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

# In a file, a bar that redraws itself is thousands of lines.
NO_BARS = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

# Nothing is sent anywhere that the user did not ask for.
QUIET_LIBRARIES = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class UserError(ValueError):
    """What the user can mend. The message says what is wrong, where, what is valid, what to do."""


class RunAgain(Exception):  # noqa: N818 (it is no error)
    """The stage ends before its end, with nothing lost: the same command goes on from there."""


class StartAgain(Exception):  # noqa: N818 (it is no error)
    """The stage can only go on in a new process: at once, and with nothing lost."""


def announce_stop() -> None:
    """Say, from a signal's handler, that this process was told to stop; `lock` shows it."""
    global _is_stopping
    _is_stopping = True


def announce_job_end() -> None:
    """Say that this process stops because its Slurm job ends: that job is to be queued again."""
    global _does_job_end
    _does_job_end = True


def is_stopping() -> bool:
    """Whether this process was told to stop."""
    return _is_stopping


def run(main: Callable[[], None], *, ends_with_dvc: bool = True) -> NoReturn:
    """Run a stage's `main` and exit with the code that Slurm wrappers and DVC act on.

    Args:
        ends_with_dvc: a stage that DVC runs gets SIGTERM when that DVC ends.
    """
    surroundings = QUIET_LIBRARIES if sys.stderr.isatty() else QUIET_LIBRARIES | NO_BARS
    for name, value in surroundings.items():
        os.environ.setdefault(name, value)
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        if ends_with_dvc:
            processes.end_with_starter()
        main()
    except _Stopped as stopped:
        code = STOPPED_AT_ONCE if processes.LAUNCHER in os.environ else RUN_AGAIN
        _end(code, f"stopped by {stopped}; start it again to go on")
    except RunAgain as reason:
        _end(RUN_AGAIN, str(reason))
    except StartAgain as reason:
        _start_again(str(reason))
    except UserError as error:
        _end(DO_NOT_RETRY, str(error))
    except Exception as error:
        told = disk.explain(error)
        if told is None:
            note_end(1, f"{type(error).__name__}: {error}")
            raise
        _end(DO_NOT_RETRY, told)
    sys.exit(FINISHED)


def note_end(code: int, message: str) -> None:
    """Tell `siftune repro`, if that started this, how this process ends and why."""
    pass_on_note(
        {
            "stage": Path(sys.argv[0]).stem,
            "rank": os.environ.get("RANK") if processes.LAUNCHER in os.environ else None,
            "code": code,
            "message": message,
            "job_ends": _does_job_end,
        }
    )


def pass_on_note(row: dict[str, object]) -> None:
    """Tell `siftune repro`, if that started this, what `note_end` wrote in another process."""
    path = os.environ.get(ENDED)
    if path is not None:
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


_is_stopping = False
_does_job_end = False


class _Stopped(SystemExit):
    """Raised by a signal, so that open runs are closed and temporary folders removed."""

    def __init__(self, number: int) -> None:
        super().__init__(RUN_AGAIN)
        self.args = (number,)  # what it is made of again, coming from a worker process

    def __str__(self) -> str:
        return signal.Signals(self.args[0]).name


def _stop(number: int, frame: FrameType | None) -> None:
    announce_stop()
    # A second one must not tear the cleaning up after the first. But should the first have been
    # lost (Python drops what is raised in a finaliser), the second counts.
    current = sys.exception()
    while current is not None:
        if isinstance(current, _Stopped | RunAgain | StartAgain):
            return
        current = current.__context__
    raise _Stopped(number)


def _start_again(reason: str) -> NoReturn:
    if processes.LAUNCHER in os.environ:
        _end(START_AGAIN, reason)
    print(f"siftune: {reason}", file=sys.stderr, flush=True)
    # Nothing else gives back all that a GPU holds.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _end(code: int, message: str) -> NoReturn:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # nobody may be left to read it
        print(f"siftune: {message}", file=sys.stderr, flush=True)
    note_end(code, message)
    sys.exit(code)
