"""`dvc repro` that survives a cluster's signals, says how it ended, and gets over a killed DVC.

DVC runs in a child that ignores the signals which ask a stage to stop: some clusters send them to
every process, and DVC would leave its locks behind, with the stage's outputs gone. Here they are
noted, and told to the stage that works.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from siftune import files, killed_dvc, lock, processes, requeue, stage
from siftune.stage import RunAgain, UserError

# Options that only `dvc exp run` has: it composes params.yaml anew.
OF_EXPERIMENTS = ("-S", "--set-param", "-n", "--name")
SECONDS_BETWEEN_LOOKS = 0.2


def main(arguments: list[str]) -> NoReturn:
    """Run `dvc repro` (`dvc exp run`, where params are set) and exit with the stage's own code.

    Args:
        arguments: DVC's.

    Raises:
        RunAgain: another job works in this folder.
        UserError: the cluster stops this job again and again before anything is saved.
    """
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    for number in stage.STOP_SIGNALS:
        signal.signal(number, note)
    _refuse_a_second_one()
    job = requeue.Start()
    with tempfile.TemporaryDirectory() as folder:
        ended = Path(folder, "ended.jsonl")
        os.environ[stage.ENDED] = str(ended)
        code = _Dvc(arguments, signals, job).wait()
        rows = files.read_lines(ended)
    if code:
        code = _tell(rows, code)
    if code == stage.RUN_AGAIN:
        job.stopped(signals, rows)
    sys.exit(code)


class _Dvc:
    """DVC in a child of this process."""

    def __init__(self, arguments: list[str], signals: list[int], job: requeue.Start) -> None:
        self._job = job
        self._signals = signals  # that came to this process, and may still grow
        self._told: set[tuple[int, int]] = set()  # process, signal
        supervisor = os.getpid()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            _be_dvc(arguments, supervisor)

    def wait(self) -> int:
        """Its exit code, once it has ended; until then its stages hear what this process hears."""
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if signal.SIGUSR1 not in self._signals and self._job.is_warned():
                self._signals.append(signal.SIGUSR1)
            if self._signals:
                self._pass_on()
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _pass_on(self) -> None:
        """A stage that begins only now is told, too."""
        with contextlib.suppress(OSError, UserError):
            holder = lock.holder()
            if holder and lock.is_visible(holder) and holder.starter == self._pid:
                for number in self._signals:
                    if (holder.pid, number) not in self._told and lock.alive(holder):
                        self._told.add((holder.pid, number))
                        os.kill(holder.pid, number)


def _be_dvc(arguments: list[str], supervisor: int) -> NoReturn:
    code = 1
    try:
        for number in stage.STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        # A killed supervisor must not leave DVC alone; its stage then saves, and ends as well.
        processes.end_with_parent(supervisor, signal.SIGKILL)
        code = _run_dvc(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run_dvc(arguments: list[str]) -> int:
    from dvc.cli import main as dvc

    killed_dvc.mend()
    # The stages' `python` is this one, also where its folder is not on the path.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sets_params = any(one.startswith(OF_EXPERIMENTS) for one in arguments)
    code: int = dvc([*(["exp", "run"] if sets_params else ["repro"]), *arguments])
    return code


def _refuse_a_second_one() -> None:
    """Before DVC removes what it would make anew."""
    holder = lock.holder()
    if holder and not lock.is_stopping(holder):
        is_alive = lock.alive(holder)
        if is_alive is not False:
            raise RunAgain(lock.refusal(holder, is_alive))


def _tell(rows: list[dict[str, Any]], code: int) -> int:
    """Print the last line, which says why it ended; the code of the stage that ended it."""
    # A rank speaks for itself alone; what they end with together says the one that started them.
    verdicts = [row for row in rows if row["rank"] is None]
    if not verdicts:
        print(f"siftune: DVC ended with {_how(code)}; what it said is above.", file=sys.stderr)
        return code if code > 0 else 128 - code
    verdict = verdicts[-1]
    messages = [row["message"] for row in rows if row["code"] == verdict["code"] and row["message"]]
    why = messages[0] if messages else "what it said is above."
    print(f"siftune: {verdict['stage']} ended with code {verdict['code']}: {why}", file=sys.stderr)
    return int(verdict["code"])


def _how(code: int) -> str:
    return f"code {code}" if code > 0 else signal.Signals(-code).name
