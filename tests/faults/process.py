"""Processes of a trial: forked from one that has the heavy libraries loaded, or started afresh.

A forked child runs the real script under the real signals; only the import is saved. It sees the
package of its own workspace: nothing of siftune is imported before the fork.
"""

import ctypes
import faulthandler
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
HERE = Path(__file__).parent


class Hang(Exception):  # noqa: N818 (it is a finding)
    """A process did not end in its time."""


class Process:
    """One process of a trial, whose output goes to files."""

    def __init__(self, pid: int, name: str, log: Path) -> None:
        self.pid, self.name, self.code = pid, name, None
        self.started = time.monotonic()
        self._log = log

    @property
    def out(self) -> str:
        return Path(f"{self._log}.out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return Path(f"{self._log}.err").read_text(errors="replace")

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> int:
        """The exit code; after `seconds` it is killed, and Hang is raised."""
        if not self.runs_for(seconds):
            return self.code
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.code = -signal.SIGKILL
        raise Hang(f"{self.name} did not end within {seconds:.0f} s: {self.err[-600:]}")

    def runs_for(self, seconds: float) -> bool:
        """Whether it still runs after so long."""
        return not until(lambda: self.poll() is not None, seconds)

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait(20)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def fork(
    run: Callable[[], object],
    *,
    name: str,
    folder: Path,
    environment: dict[str, str],
    log: Path,
) -> Process:
    """Run `run` in a child, in `folder`, as if Python had just begun there."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, name, log)
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        for handle, path in ((1, f"{log}.out"), (2, f"{log}.err")):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.enable(2)  # where a library crashed, if one does
        become_new(environment)
        code = run_to_code(run)
    finally:
        os._exit(code)


def become_new(environment: dict[str, str]) -> None:
    """What a new Python would have from its environment."""
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [environment["PYTHONPATH"], *(one for one in sys.path if one != str(HERE))]
    tempfile.tempdir = None
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_to_code(run: Callable[[], object]) -> int:
    """The exit code that Python would end with."""
    code = 0
    try:
        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def script(path: str, *arguments: str) -> Callable[[], object]:
    """To be run in a child: a script, by path, as its own program."""

    def run() -> None:
        sys.argv = [path, *arguments]
        sys.orig_argv = [sys.executable, "-P", *sys.argv]
        runpy.run_path(path, run_name="__main__")

    return run


def fresh(
    command: list[str], *, name: str, folder: Path, environment: dict[str, str], log: Path
) -> Process:
    """A new Python, which imports all for itself."""
    with open(f"{log}.out", "wb") as out, open(f"{log}.err", "wb") as err:
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
    started.returncode = 0  # reaped by Process
    return Process(started.pid, name, log)


class ForkedPopen:
    """In place of subprocess.Popen where `siftune.ranks` starts a rank: the same, by a fork."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.returncode: int | None = None
        path, *arguments = command[command.index("-P") + 1 :]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                become_new(dict(env))
                for name in [one for one in sys.modules if one.partition(".")[0] == "siftune"]:
                    del sys.modules[name]
                code = run_to_code(script(path, *arguments))
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def adopt_orphans() -> None:
    """What a trial's processes leave behind becomes this process's child, and is seen."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def children(pid: int) -> list[int]:
    """Ids of the living children of a process, the oldest first."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(one) for one in text.split() if _state(int(one)) not in ("Z", "X", "")]


def command_line(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "gone"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
