"""Processes of this host: which are the same as before, and how one ends with another."""

import ctypes
import os
import signal
import threading
import time
from pathlib import Path

PROC = Path("/proc")
# Set by DVC for what it runs, and by `ranks` for the processes that it starts.
OF_DVC = "DVC_STAGE"
LAUNCHER = "SIFTUNE_LAUNCHER"

SECONDS_BETWEEN_LOOKS = 0.5
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def boot_id() -> str:
    """What tells this boot of this machine from every other."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def namespace() -> str:
    """What process ids count in: a container may have its own."""
    return os.readlink(PROC / "self/ns/pid")


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot; None: there is none of this id.

    Ids are given again: a process is the same one only with its start time.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Let a signal come to this process when its parent ends, or at once if that has ended."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def end_with_starter() -> None:
    """Let SIGTERM come to this process when the one that it works for ends, however that ends.

    DVC starts a stage, and `ranks` starts a rank; without this, `kill -9` of theirs would leave a
    training alone, beside which the next one starts. A stage that was started by hand may outlive
    its shell (`nohup`).
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        end_with_parent(int(launcher))
    elif OF_DVC in os.environ:
        end_with_parent(os.getppid())
        dvc = dvc_process()
        if dvc is None:
            os.kill(os.getpid(), signal.SIGTERM)
        elif dvc != os.getppid():
            # DVC runs a command through $SHELL. Most shells become the command; fish does not,
            # and a shell that waits does not end with DVC.
            _watch(dvc)


def of_rank(place: dict[str, str]) -> dict[str, str]:
    """The environment of one process of several that this one starts.

    Args:
        place: what torch reads of the rank's place among them.
    """
    # As many threads as cores in each of several on a node would only wait for each other.
    alone = place["LOCAL_WORLD_SIZE"] == "1"
    threads = {} if alone else {"OMP_NUM_THREADS": "1"}
    return {**threads, **os.environ, **place, LAUNCHER: str(os.getpid())}


def dvc_process() -> int | None:
    """The id of the DVC that runs this process; None: it has ended.

    It is the nearest ancestor that has not the variable which DVC sets for what it runs. If that
    one is not of our process group, it is no DVC but who adopts orphans: DVC starts its commands
    in its own group. One that leads a group was started otherwise, and is not judged.
    """
    pid, leads = os.getpid(), False
    while pid and _is_of_dvc(pid):
        _, parent, group = (_stat(pid) or ["", "0", "0"])[:3]
        leads = leads or int(group) == pid
        pid = int(parent)
    if leads:
        return pid or os.getppid()
    same_group = pid and _stat(pid)[2:3] == [str(os.getpgrp())]
    return pid if same_group else None


def _is_of_dvc(pid: int) -> bool:
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:  # another user's, or just gone
        return False
    return any(entry.startswith(f"{OF_DVC}=".encode()) for entry in environment.split(b"\0"))


def _watch(pid: int) -> None:
    started = start_time(pid)

    def wait() -> None:
        while started is not None and start_time(pid) == started:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end with DVC", daemon=True).start()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
