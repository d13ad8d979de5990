"""One training on several nodes of a Slurm job: its processes on the other nodes.

DVC and its stages run on the first node. On each other one slurm/run.sh starts `siftune node`, an
agent that waits for trainings. The launcher of one (`ranks`) has the agents start their share of
its processes, tells them signals, and hears how each process ended. They talk over TCP, with a key
that only this job has; if either side ends, the other one notices at once.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from types import FrameType
from typing import Any

from siftune import files, processes, stage
from siftune.stage import RunAgain

# Made by slurm/run.sh for each start of a job on several nodes.
KEY = "SIFTUNE_NODES_KEY"
SECONDS_TO_ANSWER = 120.0
SECONDS_BETWEEN_LOOKS = 0.05
# Between the ephemeral ports of Linux and what services like to use.
FIRST_PORT, NUM_PORTS = 15000, 15000


class Agent:
    """The launcher's side of one agent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        said = json.loads(connection.recv_bytes())
        self.node, self.host = int(said["node"]), str(said["host"])
        self.num_processes = int(said["processes"])
        self._ranks: dict[str, Rank] = {}

    def start(self, environment: dict[str, str]) -> "Rank":
        """Start this very script once there, as the rank that `environment` says."""
        rank = Rank(self, environment["RANK"])
        self._ranks[rank.name] = rank
        self.say(start=environment, script=sys.argv)
        return rank

    def say(self, **message: Any) -> None:
        """Tell it something; of one that is gone, `hear` takes notice."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps(message).encode())

    def hear(self) -> None:
        """Take note of which of its processes have ended."""
        try:
            while self._connection.poll():
                said = json.loads(self._connection.recv_bytes())
                for row in said["notes"]:
                    stage.pass_on_note(row)
                self._ranks[said["rank"]].returncode = said["code"]
        except (EOFError, OSError):
            if any(rank.returncode is None for rank in self._ranks.values()):
                _say(f"{self.host} (node {self.node}) is gone, and its processes with it.")
            for rank in self._ranks.values():
                if rank.returncode is None:
                    rank.returncode = -signal.SIGKILL


class Rank:
    """A process on another node, as `ranks` sees one of its own."""

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent, self.name = agent, name
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, once it has ended; minus the number of the signal that ended it."""
        if self.returncode is None:
            self._agent.hear()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self._agent.say(signal=number, rank=self.name)


def gather(signals: list[int]) -> list[Agent]:
    """The agents of all other nodes of this job, in the order of its nodes; [] where it has one.

    Args:
        signals: that came to this process, and may still grow; one ends the waiting.

    Raises:
        RunAgain: not all of them answer, the port is taken, or a signal came.
    """
    num = int(os.environ["SLURM_JOB_NUM_NODES"]) - 1 if KEY in os.environ else 0
    if num == 0:
        return []
    came: SimpleQueue[Agent] = SimpleQueue()
    Thread(target=_welcome, args=(_listen(), came), name="agents", daemon=True).start()
    found: list[Agent] = []
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    while len(found) < num:
        with contextlib.suppress(Empty):
            found.append(came.get(timeout=SECONDS_BETWEEN_LOOKS))
        if signals:
            raise RunAgain(f"stopped by {signal.Signals(signals[0]).name}; start it again to go on")
        if time.monotonic() > deadline:
            raise RunAgain(
                f"{len(found)} of the {num} other nodes of this job answered at "
                f"{':'.join(map(str, address()))} within {SECONDS_TO_ANSWER:.0f} s. What the "
                "others said is above; a firewall between nodes must let the job's own ports pass."
            )
    return sorted(found, key=lambda agent: agent.node)


def address() -> tuple[str, int]:
    """Where the first node of this job is reached, and the port of its launcher."""
    port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % NUM_PORTS
    return os.environ["SLURM_LAUNCH_NODE_IPADDR"], port


def serve(num_processes: int) -> None:
    """`siftune node`: start processes here for each training of this job, until SIGTERM.

    Args:
        num_processes: how many start here.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)

    # The launcher hears the same signals, and decides: until then, what trains here goes on.
    for number in stage.STOP_SIGNALS:
        signal.signal(number, stop)
    # The node's place is among the others that run.sh started agents on, from 0.
    hello = {
        "node": int(os.environ["SLURM_NODEID"]) + 1,
        "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "processes": num_processes,
    }
    while signal.SIGTERM not in stopping:
        try:
            connection = Client(address(), authkey=os.environ[KEY].encode())
        except (OSError, EOFError, AuthenticationError):
            time.sleep(1)  # no training is at work
            continue
        with connection, contextlib.suppress(OSError, EOFError):
            connection.send_bytes(json.dumps(hello).encode())
            _Share(connection).work()


class _Share:
    """What one launcher has started on this node."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    def work(self) -> None:
        """Until the launcher ends; nothing of it stays here.

        Raises:
            EOFError: it has ended.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                while True:
                    if self._connection.poll(SECONDS_BETWEEN_LOOKS):
                        self._obey(json.loads(self._connection.recv_bytes()), folder)
                    for rank, (process, notes) in list(self._running.items()):
                        if process.poll() is not None:
                            del self._running[rank]
                            rows = files.read_lines(notes)
                            said = {"rank": rank, "code": process.returncode, "notes": rows}
                            self._connection.send_bytes(json.dumps(said).encode())
            finally:
                for process, _ in self._running.values():
                    process.kill()
                    process.wait()

    def _obey(self, said: dict[str, Any], folder: str) -> None:
        if "start" in said:
            notes = Path(tempfile.mkdtemp(dir=folder), "ended.jsonl")
            environment = processes.of_rank(said["start"]) | {stage.ENDED: str(notes)}
            process = subprocess.Popen([sys.executable, "-P", *said["script"]], env=environment)
            self._running[said["start"]["RANK"]] = process, notes
        elif said["rank"] in self._running:
            self._running[said["rank"]][0].send_signal(said["signal"])


def _listen() -> Listener:
    host, port = address()
    try:
        return Listener(("", port), authkey=os.environ[KEY].encode())
    except OSError as error:
        raise RunAgain(
            f"port {port} of {host} cannot be listened on ({error.strerror}). It comes from the "
            "job's id: submit the job anew, and it is another one."
        ) from None


def _welcome(listener: Listener, came: "SimpleQueue[Agent]") -> None:
    """In a thread, for as long as the launcher runs."""
    with listener:
        while True:
            with contextlib.suppress(OSError, EOFError, AuthenticationError):  # a stranger
                came.put(Agent(listener.accept()))


def _say(message: str) -> None:
    print(f"siftune: {message}", file=sys.stderr, flush=True)
