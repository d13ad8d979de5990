"""The process beside a stage that follows its run folder and mirrors it to MLflow, about live.

The stage never waits for MLflow while it works: it writes files, and this process reads them. They
talk over two pipes. The stage's end closes the one; on the other come lines of JSON: the id of the
MLflow run, for how many seconds the next answer may be waited for, and what the user is told.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from siftune import files, mirror, redaction, store
from siftune.stage import STOP_SIGNALS

# What ends a stage comes to its whole process group; this process ends by the stage's end.
IGNORED = {*STOP_SIGNALS, signal.SIGHUP}
SECONDS_BETWEEN_LOOKS = 1.0
LONGEST_PAUSE = 60.0
# In seconds. The stage's end waits for one knock at a silent server; one that opened may be slow.
KNOCK, ANSWER = "2", "10"
SURROUNDINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PGCONNECT_TIMEOUT": "5"}
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# Seconds for a sign of this process at the stage's end.
SIGN = 20.0
SIGN_AFTER_INTERRUPT = 8.0
INCOMPLETE = 1


class Follower:
    """The stage's side: starts the process, prints what it says, waits for it at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = threading.Event()
        self._run_id: str | None = None
        self._patient_until = time.monotonic() + SIGN
        # Inherited, so that no signal hits it before it can ignore them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "siftune.follower", str(folder), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # ours would stay open after the stage's end
                env=os.environ | SURROUNDINGS,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._thread = threading.Thread(target=self._listen, name="follower", daemon=True)
        self._thread.start()

    def run_id(self) -> str | None:
        """MLflow's id of the run, once it has answered; None: it does not."""
        self._known.wait()
        return self._run_id

    def end(self, *, interrupted: bool = False) -> None:
        """Let it push what is left; it is waited for while it gets on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        sign = SIGN_AFTER_INTERRUPT if interrupted else SIGN
        self._patient_until = max(self._patient_until, time.monotonic() + sign)
        # A stop now must not undo a stage that is done: it only ends the waiting.
        with contextlib.suppress(SystemExit):
            while self._thread.is_alive() and time.monotonic() < self._patient_until:
                self._thread.join(timeout=0.5)
        if self._thread.is_alive():
            self._process.kill()
        if self._process.wait() != 0:
            _tell(f"MLflow has not got all of {self._folder}; `siftune sync` completes it.")

    def _listen(self) -> None:
        """In a thread, until the process has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # MLflow prints there, too
                self._hear(json.loads(line))
        self._known.set()

    def _hear(self, said: dict[str, Any]) -> None:
        if "seconds" in said:
            self._patient_until = time.monotonic() + said["seconds"]
        elif "silent" in said:
            _tell(said["silent"])
            self._known.set()
        else:
            self._run_id = said["run"]
            self._known.set()


def follow(folder: Path, stage_pid: int) -> int:
    """Mirror a run folder until its stage has ended; 0: MLflow has it all."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)  # the stage comes first
    has_told = False
    run: mirror.MirroredRun | None = None
    pause = SECONDS_BETWEEN_LOOKS
    with mirror.only_pusher(folder, wait=True):
        while True:
            has_ended = _has_ended(stage_pid, wait=0)
            record = files.read_json(folder / mirror.RECORD)
            if record["process"]["pid"] != stage_pid:
                return 0  # the stage was started again, and has a follower of its own
            try:
                is_new = run is None
                run = run or _begin(folder)
                _push(run, record, has_ended)
                if is_new:
                    _say(run=run.id)
                pause = SECONDS_BETWEEN_LOOKS
            except Exception as error:  # whatever the store raises must not end a training
                run = None
                if not has_told:
                    _say(silent=_complaint(error))
                    has_told = True
                pause = min(2 * pause, LONGEST_PAUSE)
                has_ended = has_ended or _has_ended(stage_pid, wait=0)
            if has_ended:
                return 0 if run else INCOMPLETE
            _has_ended(stage_pid, wait=pause)


def _begin(folder: Path) -> mirror.MirroredRun:
    _busy(4 * SIGN)  # importing takes seconds, and many where all cores are at work
    os.environ[TIMEOUT] = KNOCK
    mlflow = store.connect()
    os.environ[TIMEOUT] = ANSWER
    return mirror.MirroredRun(mlflow, folder, _busy)


def _push(run: mirror.MirroredRun, record: dict[str, Any], has_ended: bool) -> None:
    status = mirror.status_of(record)
    if has_ended and status == "RUNNING":
        status = "KILLED"
    run.push(record, status, mark=has_ended)


def _has_ended(stage_pid: int, *, wait: float) -> bool:
    """Whether the stage is over or says that it will be, looking for some seconds.

    A worker process that it left behind may keep the pipe open.
    """
    deadline = time.monotonic() + wait
    while True:
        left = max(0.0, deadline - time.monotonic())
        said, _, _ = select.select([sys.stdin], [], [], min(left, SECONDS_BETWEEN_LOOKS))
        if said or os.getppid() != stage_pid:
            return True
        if not left:
            return False


def _complaint(error: Exception) -> str:
    where = redaction.text(store.address())
    return (
        f"MLflow does not answer as it should at {where}: {store.reason(error)}. The files go on "
        "without it; it is asked again from time to time."
    )


def _busy(seconds: float) -> None:
    _say(seconds=SIGN + seconds)


def _say(**message: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the stage was killed
        print(json.dumps(message), flush=True)


def _tell(text: str) -> None:
    print(f"siftune: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(follow(Path(sys.argv[1]), int(sys.argv[2])))
