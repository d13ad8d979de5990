"""One writer: who works in this workspace now, in work/lock.json.

Two stages at once would write the same outputs, and DVC's own lock knows only processes of this
machine. A lock that its holder left behind is broken only when the holder is known to be dead.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from siftune import files, processes, stage
from siftune.stage import RunAgain, UserError

FILE = Path("work/lock.json")
GUARD = Path("work/lock.guard")
SECONDS_BETWEEN_SIGNS = 10.0
# A stage that was told to stop saves first; its successor waits for it so long.
PATIENCE = 120.0
SQUEUE_SECONDS = 30
# Set by slurm/run.sh: the Slurm job of the lock that it found here, if that is over. In the image
# there is no squeue to ask.
JOB_OVER = "SIFTUNE_JOB_OVER"

# What `squeue` calls a job whose processes have ended.
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Holder:
    """Who works here."""

    stage: str
    host: str
    pid: int
    start_time: int | None  # of the process, in ticks since boot
    namespace: str  # what its pid counts in
    boot_id: str
    starter: int  # the DVC or shell that started it
    starter_start_time: int | None
    job: str | None  # Slurm's
    restart: str | None  # how often Slurm has requeued the job
    since: str  # UTC
    stopping: bool  # told to stop, or its starter has ended
    heartbeat: float  # seconds since its last sign of life

    @property
    def where(self) -> str:
        """In words: host, Slurm job, process, since when."""
        job = f" (Slurm job {self.job})" if self.job else ""
        return (
            f"on {self.host}{job}, process {self.pid}, since {self.since}, last sign of life "
            f"{self.heartbeat:.0f} s ago"
        )


@contextmanager
def workspace(stage_name: str) -> Iterator[None]:
    """Hold work/lock.json while a stage writes here.

    Raises:
        RunAgain: another job holds it. The message says who and since when, and what to do.
        UserError: what stands there is no lock.
    """
    _acquire(stage_name)
    done = threading.Event()
    thread = threading.Thread(target=_show_life, args=(done,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        _release()


def holder() -> Holder | None:
    """Who holds the workspace, dead or alive; None: nobody.

    Raises:
        UserError: what stands there is no lock.
    """
    try:
        text = FILE.read_bytes()
        silent = time.time() - FILE.stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        return as_holder(json.loads(text), heartbeat=max(silent, 0.0))
    except (ValueError, RecursionError):
        raise UserError(
            f"{FILE} is not a lock that siftune wrote. Where no stage is running, remove it."
        ) from None


def as_holder(facts: Any, *, heartbeat: float = 0.0) -> Holder:
    """A holder from what was noted of it.

    Raises:
        ValueError: something is missing or of another type.
    """
    if not isinstance(facts, dict):
        raise ValueError("no facts")
    # Through JSON, where strict types still take a mapping for a dataclass.
    text = json.dumps({**facts, "heartbeat": heartbeat})
    return TypeAdapter(Holder).validate_json(text, strict=True)


def alive(found: Holder) -> bool | None:
    """Whether the holder's process still runs; None: this cannot be known from here."""
    if is_visible(found):
        return processes.start_time(found.pid) == found.start_time
    if found.host == socket.gethostname() and found.boot_id != processes.boot_id():
        return False
    if found.job is None:
        return None
    if found.job == os.environ.get("SLURM_JOB_ID"):
        # Slurm starts a job again only after its last run has ended.
        again = found.restart != os.environ.get("SLURM_RESTART_COUNT")
        return False if again else None
    return is_job_alive(found.job)


def is_visible(found: Holder) -> bool:
    """Whether its process id means something here."""
    here = (processes.boot_id(), processes.namespace())
    return (found.boot_id, found.namespace) == here


def is_stopping(found: Holder) -> bool:
    """Whether a holder on this host was told to stop, by a signal or by the end of its starter."""
    if not is_visible(found):
        return False
    return found.stopping or processes.start_time(found.starter) != found.starter_start_time


def refusal(found: Holder, is_alive: bool | None) -> str:
    """What one is told who may not work here now."""
    told = (
        "It is still running"
        if is_alive
        else f"Whether it still runs cannot be known here: if it does not, remove {FILE}"
    )
    return (
        f"this workspace is in use: {found.stage} {found.where}. {told}. One workspace has one "
        "writer: wait for it, or work in a clone of your own. Nothing was changed."
    )


def _acquire(stage_name: str) -> None:
    FILE.parent.mkdir(parents=True, exist_ok=True)
    deadline = None
    while True:
        # Judged before the guard is taken: asking Slurm takes its time.
        found = holder()
        is_alive = alive(found) if found else None
        with _guard():
            now = holder()
            if now and found and is_alive is False and _same(now, found):
                FILE.unlink()
                now = None
            if now is None and _create(_myself(stage_name)):
                return
        if found is None or not _same(now, found):
            continue
        if not is_stopping(found):
            raise RunAgain(refusal(found, is_alive))
        if deadline is None:
            deadline = time.monotonic() + PATIENCE
            print(
                f"siftune: waiting for {found.stage} {found.where}: it was told to stop, and saves "
                "first.",
                file=sys.stderr,
                flush=True,
            )
        if time.monotonic() > deadline:
            raise RunAgain(refusal(found, is_alive))
        time.sleep(0.2)


def _release() -> None:
    with _guard():
        now = holder()
        if now and _is_own(now):
            FILE.unlink()


def _show_life(done: threading.Event) -> None:
    """In a thread, until the stage is done."""
    touched = time.monotonic()
    told = False
    while not done.wait(0.5):
        # Removed by hand, or the disk fails: the stage itself will say so.
        with contextlib.suppress(OSError, UserError):
            if stage.is_stopping() and not told:
                told = True
                _tell_stopping(done)
            elif time.monotonic() - touched >= SECONDS_BETWEEN_SIGNS:
                touched = time.monotonic()
                os.utime(FILE)


def _tell_stopping(done: threading.Event) -> None:
    with _guard():
        now = holder()
        if not done.is_set() and now and _is_own(now):
            facts = {**asdict(now), "stopping": True}
            del facts["heartbeat"]
            files.write_json(FILE, facts)


def _myself(stage_name: str) -> dict[str, Any]:
    starter, dvc = os.getppid(), None
    if of_dvc := processes.OF_DVC in os.environ:
        dvc = processes.dvc_process()
    return {
        "stage": stage_name,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_time": processes.start_time(os.getpid()),
        "namespace": processes.namespace(),
        "boot_id": processes.boot_id(),
        "starter": dvc or starter,
        "starter_start_time": processes.start_time(dvc or starter),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # DVC may be killed after it has started this: its end is told, and heard at any moment.
        "stopping": of_dvc and dvc is None,
    }


def _create(facts: dict[str, Any]) -> bool:
    """Write the lock; False: another one stands there."""
    aside = FILE.with_name("lock.new")
    try:
        files.write_json(aside, facts)
        # Atomic on the server too: a network file system may show for seconds what is gone, and
        # hide what is new.
        os.link(aside, FILE)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


@contextmanager
def _guard() -> Iterator[None]:
    """One process at a time looks at the lock and changes it."""
    with GUARD.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_own(found: Holder) -> bool:
    own = (os.getpid(), processes.start_time(os.getpid()))
    return is_visible(found) and (found.pid, found.start_time) == own


def _same(one: Holder | None, other: Holder) -> bool:
    def identity(of: Holder) -> tuple[Any, ...]:
        return of.boot_id, of.namespace, of.pid, of.start_time, of.since

    return one is not None and identity(one) == identity(other)


def is_job_alive(job: str) -> bool | None:
    """Whether a Slurm job is not over; None: Slurm cannot be asked here."""
    if os.environ.get(JOB_OVER) == job:
        return False
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "-h", "-j", job, "-o", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_SECONDS)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        # Slurm forgets a job minutes after its end.
        return False if "Invalid job id" in done.stderr else None
    # An array's job may be told as several.
    return bool(set(done.stdout.split()) - _OVER)
