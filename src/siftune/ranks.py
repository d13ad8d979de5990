"""One training in several processes of one node: starts them, and ends them together."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from siftune import processes, stage
from siftune.stage import UserError

NUM_PROCESSES = "SIFTUNE_PROCESSES"
GPUS = Path("/proc/driver/nvidia/gpus")
# The others wait in an exchange of numbers that can never end; until then they may clean up.
GRACE = 20.0
_NO_FAILURE = (stage.FINISHED, stage.RUN_AGAIN, stage.START_AGAIN, stage.STOPPED_AT_ONCE)


def launch() -> None:
    """Return in a process that trains; where there must be several, start them and never return.

    There are as many as SIFTUNE_PROCESSES says, else as GPUs are visible, else one. This one then
    only passes signals on, and exits as they did: 75 and 78 as for one process, or the code of the
    first that failed.

    Raises:
        UserError: SIFTUNE_PROCESSES is no number of processes.
    """
    num_processes = _num_processes()
    if "RANK" in os.environ or num_processes == 1:
        return
    # Only noted: when one comes, some of the processes may not have been started yet.
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stage.announce_stop()
        signals.append(number)

    for number in stage.STOP_SIGNALS:
        signal.signal(number, note)
    while True:
        code = _Group(num_processes, signals).wait()
        if code != stage.START_AGAIN:
            stage.note_end(code, "")
            sys.exit(code)


def num_gpus() -> int:
    """How many GPUs this process may use, without asking a driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(list(GPUS.iterdir())) if GPUS.is_dir() else 0
    names = [name.strip() for name in visible.split(",")]
    # What CUDA does: it counts up to the first that is no GPU. Slurm's word for none is NoDevFiles.
    num = 0
    while num < len(names) and names[num] not in ("", "-1", "NoDevFiles"):
        num += 1
    return num


def _num_processes() -> int:
    wanted = os.environ.get(NUM_PROCESSES)
    if wanted is None:
        return max(num_gpus(), 1)
    if not wanted.isdecimal() or int(wanted) == 0:
        raise UserError(
            f"{NUM_PROCESSES}={wanted!r}: it must be the number of processes that train together "
            "on this node, 1 or more. Without it there is one for each visible GPU."
        )
    return int(wanted)


class _Group:
    """The processes of one start."""

    def __init__(self, num_processes: int, signals: list[int]) -> None:
        self._signals = signals  # that came to this process, and may still grow
        self._num_passed_on = 0
        self._codes: dict[int, int] = {}  # by rank, in the order in which they ended
        self._sent: list[set[int]] = [set() for _ in range(num_processes)]
        self._kill_at = float("inf")
        port = _free_port()
        self._ranks = [_start(rank, num_processes, port) for rank in range(num_processes)]

    def wait(self) -> int:
        """The exit code of all, once all have ended."""
        while len(self._codes) < len(self._ranks):
            for number in self._signals[self._num_passed_on :]:
                self._to_all(number)
                self._num_passed_on += 1
            for rank, process in enumerate(self._ranks):
                if rank not in self._codes and process.poll() is not None:
                    self._codes[rank] = process.returncode
                    self._after(rank)
            if time.monotonic() > self._kill_at:
                self._to_all(signal.SIGKILL)
            time.sleep(0.05)
        return self._code()

    def _after(self, rank: int) -> None:
        """What the end of one means for the others."""
        code = self._codes[rank]
        if code != stage.FINISHED:
            # If it was told to stop, it may have been told alone.
            self._to_all(signal.SIGTERM)
        # Rank 0 publishes what all have made: after it, there is nothing to wait for. Before, it
        # may still save, for as long as that takes.
        if rank == 0 or code not in (stage.FINISHED, stage.RUN_AGAIN):
            self._kill_at = min(self._kill_at, time.monotonic() + GRACE)

    def _to_all(self, number: int) -> None:
        for rank, process in enumerate(self._ranks):
            if rank not in self._codes:
                self._sent[rank].add(number)
                process.send_signal(number)

    def _code(self) -> int:
        """One exit code for all; one that ended of a signal that was sent here says nothing."""
        codes = {rank: code for rank, code in self._codes.items() if -code not in self._sent[rank]}
        if stage.DO_NOT_RETRY in codes.values():
            return stage.DO_NOT_RETRY
        for rank, code in codes.items():
            if code not in _NO_FAILURE:
                message = f"rank {rank} {_how(code)}; the others were ended."
                _say(message)
                stage.note_end(code, message)
                return code if code > 0 else 128 - code
        if stage.START_AGAIN in codes.values() and not self._signals:
            return stage.START_AGAIN
        return stage.FINISHED if codes.get(0) == stage.FINISHED else stage.RUN_AGAIN


def _start(rank: int, num_processes: int, port: int) -> "subprocess.Popen[bytes]":
    environment = {
        # As many threads as cores in each of them would only wait for each other.
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        processes.LAUNCHER: str(os.getpid()),
    }
    return subprocess.Popen([sys.executable, "-P", *sys.argv], env=environment)


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port: int = any_port.getsockname()[1]
        return port


def _how(code: int) -> str:
    return f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _say(message: str) -> None:
    print(f"siftune: {message}", file=sys.stderr, flush=True)
