"""A real Slurm cluster with Apptainer on this machine, for as long as a test run lasts.

    python tests/cluster/cluster.py [COMMAND...]    a shell on its login node, or one command

Debian's own Slurm and Apptainer run in namespaces of their own: mounts, processes, host names and a
network without any way out. Four nodes, each a host of its own name with its own processes and
/tmp. Killing one process ends everything in it, so it goes when this process goes, however it does.
"""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siftune/cluster"
NODES = ("n1", "n2", "n3", "n4")
HOME = Path("/home/user")  # inside
# Nobody else's: a cluster of another run on this machine is none of ours.
SPACES = ("mount", "pid", "uts", "net", "ipc")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}


class Cluster:
    """Give it to `with`. Its files are in `folder`; the home of its user is `home`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.home = self.folder / "home"  # HOME, seen from outside
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        shutil.rmtree(self.folder / "inside", ignore_errors=True)
        shutil.copytree(HERE / "inside", self.folder / "inside")
        (self.folder / "ready").unlink(missing_ok=True)
        spaces = [f"--{space}" for space in SPACES if space != "mount"]
        # Killed with this process, even if that is killed itself; all others are killed with it.
        self._starter = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "--fork", "--kill-child",
             HERE / "in_sid_root.sh", self.folder, "/mnt/inside/login.sh"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._until((self.folder / "ready").exists, "the login node is up")
            [self._login] = _children(self._starter.pid)
            for name in NODES:
                self.start_node(name)
            self._until(lambda: self._idle() == set(NODES), "all nodes are idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.kill()
        self._starter.wait()
        for node in self._nodes.values():
            node.wait()

    def start_node(self, name: str) -> None:
        """Switch a node on."""
        own = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        self._nodes[name] = subprocess.Popen(
            [*self._inside(), *own, "/mnt/inside/node.sh", name], stdin=subprocess.DEVNULL
        )

    def kill_node(self, name: str) -> None:
        """Pull the plug of a node: its processes are gone, and it says nothing to anybody."""
        # nsenter → unshare → the first process of the node
        [unshare] = _children(self._nodes[name].pid)
        os.kill(unshare, 9)
        self._nodes[name].wait()

    def as_root(self, *command: str) -> str:
        """The output of a command of the administrator, on the login node."""
        return _checked([*self._inside(), *command])

    def run(self, command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """A command line as the user types it on the login node, in his home."""
        return subprocess.run(
            self.user_command(command, **environment), capture_output=True, text=True
        )

    def ok(self, command: str, **environment: str) -> str:
        """The output of a command line that must succeed."""
        return _checked(self.user_command(command, **environment))

    def user_command(self, command: str = "", **environment: str) -> list[str]:
        """What runs a command line, or without one a shell, as the user on the login node."""
        names = {"HOME": str(HOME), "USER": "user", "LOGNAME": "user", "SHELL": "/bin/bash",
                 "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
                 "TERM": os.environ.get("TERM", "dumb")} | environment  # fmt: skip
        shell = ["bash", "-c", f"cd {HOME} && {command}"] if command else ["bash"]
        person = ["setpriv", "--reuid", "user", "--regid", "user", "--init-groups"]
        setting = [
            "env",
            "-i",
            f"--chdir={HOME}",
            *(f"{key}={value}" for key, value in names.items()),
        ]
        return [*self._inside(), *person, *setting, *shell]

    def sbatch(self, arguments: str, folder: str = ".", **environment: str) -> int:
        """Submit; the job's number. `arguments` is what the user types after `sbatch`."""
        said = self.ok(f"cd {shlex.quote(folder)} && sbatch {arguments}", **environment)
        return int(re.search(r"Submitted batch job (\d+)", said)[1])

    def job(self, number: int | str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Reason, Restarts, ExitCode, NodeList, …"""
        shown = self.as_root("scontrol", "show", "job", "--oneliner", str(number))
        return dict(word.partition("=")[::2] for word in shown.split() if "=" in word)

    def wait(self, number: int, seconds: float = 180) -> dict[str, str]:
        """The job once it is over."""
        self._until(lambda: self.job(number)["JobState"] in OVER, f"job {number} is over", seconds)
        return self.job(number)

    def log(self, number: int) -> str:
        """The output of a job so far."""
        path = self.job(number)["StdOut"]
        return self.outside(path).read_text(errors="replace")

    def outside(self, path: str | Path) -> Path:
        """Where a path of the user's home is, outside."""
        return self.home / Path(path).relative_to(HOME)

    def attempts(self) -> int:
        """How often anything in the cluster has tried to reach something outside of it."""
        counts = 0
        for line in self.as_root("cat", "/proc/net/snmp6").splitlines():
            counts += int(line.split()[1]) if line.startswith("Ip6OutNoRoutes") else 0
        names, values = (
            line.split()
            for line in self.as_root("cat", "/proc/net/snmp").splitlines()
            if line.startswith("Ip:")
        )
        return counts + int(dict(zip(names, values, strict=True))["OutNoRoutes"])

    def _inside(self) -> list[str]:
        return [
            "nsenter",
            f"--target={self._login}",
            *(f"--{space}" for space in SPACES),
            "--wdns=/",
        ]

    def _idle(self) -> set[str]:
        shown = self.as_root("sinfo", "--Node", "--noheader", "--format=%N %t", "-p", "normal")
        return {line.split()[0] for line in shown.splitlines() if line.split()[1] == "idle"}

    def _until(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self._starter.poll() is not None:
                raise RuntimeError(f"the cluster has ended before {what}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{seconds:.0f} s, and not yet: {what}")
            time.sleep(0.2)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _checked(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[-1]}: {done.stdout}{done.stderr}"
    return done.stdout


def main() -> int:
    """A cluster for a shell or a command; the user's home is kept from one to the next."""
    folder = CACHE / "shell"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{folder} is in use: a cluster's shell is open already.")
        with Cluster(folder) as cluster:
            print(f"The home of its user is {cluster.home} outside.", file=sys.stderr)
            return subprocess.run(cluster.user_command(shlex.join(sys.argv[1:]))).returncode


if __name__ == "__main__":
    sys.exit(main())
