"""One training in several processes, of one node or more: starts them, and ends them together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from siftune import nodes, processes, stage
from siftune.stage import UserError

NUM_PROCESSES = "SIFTUNE_PROCESSES"
GPUS = Path("/proc/driver/nvidia/gpus")
# The others wait in an exchange of numbers that can never end; until then they may clean up.
GRACE = 20.0
Starter = Callable[[dict[str, str]], "subprocess.Popen[bytes] | nodes.Rank"]
_NO_FAILURE = (stage.FINISHED, stage.RUN_AGAIN, stage.START_AGAIN, stage.STOPPED_AT_ONCE)


def launch() -> None:
    """Return in a process that trains; where there must be several, start them and never return.

    On each node of the job there are as many as SIFTUNE_PROCESSES says, else as GPUs are visible,
    else one. This one then only passes signals on, and exits as they did: 75 and 78 as for one
    process, or the code of the first that failed.

    Raises:
        UserError: SIFTUNE_PROCESSES is no number of processes.
        RunAgain: not all nodes of the job answer.
    """
    num = num_processes()
    if "RANK" in os.environ or (num == 1 and nodes.KEY not in os.environ):
        return
    # Only noted: when one comes, some of the processes may not have been started yet.
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        stage.announce_stop()
        signals.append(number)

    for number in stage.STOP_SIGNALS:
        signal.signal(number, note)
    agents = nodes.gather(signals)
    while True:
        code = _Group(num, agents, signals).wait()
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


def num_processes() -> int:
    """How many processes of a training are to run on this node.

    Raises:
        UserError: SIFTUNE_PROCESSES is no number of processes.
    """
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

    def __init__(self, num_here: int, agents: list[nodes.Agent], signals: list[int]) -> None:
        self._signals = signals  # that came to this process, and may still grow
        self._num_passed_on = 0
        self._codes: dict[int, int] = {}  # by rank, in the order in which they ended
        self._kill_at = float("inf")
        places = _places([num_here, *(agent.num_processes for agent in agents)])
        starters: list[Starter] = [_start, *(agent.start for agent in agents)]
        self._ranks = [starters[node](place) for node, place in places]
        self._sent: list[set[int]] = [set() for _ in self._ranks]

    def wait(self) -> int:
        """The exit code of all, once all have ended."""
        while len(self._codes) < len(self._ranks):
            for number in self._signals[self._num_passed_on :]:
                self._to_all(number)
                self._num_passed_on += 1
            for rank, process in enumerate(self._ranks):
                code = process.poll()
                if rank not in self._codes and code is not None:
                    self._codes[rank] = code
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


def _places(counts: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
    """The node of each rank, and what tells the rank its place, as torch reads it.

    Args:
        counts: of processes, by node.
    """
    several = len(counts) > 1
    meeting = {
        "WORLD_SIZE": str(sum(counts)),
        "MASTER_ADDR": nodes.address()[0] if several else "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    rank = 0
    for node, count in enumerate(counts):
        for local in range(count):
            place = {
                "RANK": str(rank), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(count),
            }  # fmt: skip
            yield node, meeting | place
            rank += 1


def _start(place: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", *sys.argv]
    return subprocess.Popen(command, env=processes.of_rank(place))


def _free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("", 0))
        port: int = any_port.getsockname()[1]
        return port


def _how(code: int) -> str:
    return f"ended with code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _say(message: str) -> None:
    print(f"siftune: {message}", file=sys.stderr, flush=True)
