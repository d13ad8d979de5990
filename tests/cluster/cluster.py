"""A real Slurm cluster with Apptainer on this machine, for as long as a test run lasts.

    python tests/cluster/cluster.py [COMMAND...]    a shell on its login node, or one command

Debian's own Slurm and Apptainer run in namespaces of their own: mounts, processes, host names and a
network without any way out. Five nodes, each a host of its own name with its own processes and
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siftune/cluster"
NODES = ("n1", "n2", "n3", "n4", "n5")
HOME = Path("/home/user")  # inside
USER = 1000
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}
SPACES = ("--pid", "--uts", "--net", "--ipc")


class Cluster:
    """A cluster that runs (`up`). Its files are in `folder`; the home of its user is `home`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"  # HOME, seen from outside
        self._login = int((folder / "login.pid").read_text())

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
        surroundings = {
            "HOME": str(HOME), "USER": "user", "LOGNAME": "user", "SHELL": "/bin/bash",
            "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "TERM": os.environ.get("TERM", "dumb"), **environment,
        }  # fmt: skip
        person = ["setpriv", "--reuid", "user", "--regid", "user", "--init-groups"]
        setting = ["env", "-i", f"--chdir={HOME}", *map("=".join, surroundings.items())]
        return [*self._inside(), *person, *setting, "bash", *(["-c", command] if command else [])]

    def sbatch(self, arguments: str, folder: str = ".", **environment: str) -> int:
        """Submit in a folder of the home what stands after `sbatch`; the job's number."""
        said = self.ok(f"cd -- {shlex.quote(folder)} && sbatch {arguments}", **environment)
        number = int(re.findall(r"Submitted batch job (\d+)", said)[0])
        self.note(number)
        return number

    def note(self, number: int) -> None:
        """For the table at the end of the run."""
        with (self.folder / "submitted").open("a") as file:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
            print(number, int(time.time()), test, file=file)

    def job(self, number: int | str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Reason, Restarts, ExitCode, NodeList, …"""
        shown = self.as_root("scontrol", "show", "job", "--oneliner", str(number))
        return dict(word.partition("=")[::2] for word in shown.split() if "=" in word)

    def wait(self, number: int, seconds: float = 480) -> dict[str, str]:
        """The job once it is over."""
        until(lambda: self.job(number)["JobState"] in OVER, f"job {number} is over", seconds)
        return self.job(number)

    def until_restarted(self, number: int, times: int) -> None:
        """Wait until a job was queued again so many times."""
        until(lambda: int(self.job(number)["Restarts"]) >= times, f"requeue of {number}", 90)

    def log(self, number: int) -> str:
        """The output of a job so far."""
        path = self.home / Path(self.job(number)["StdOut"]).relative_to(HOME)
        return path.read_text(errors="replace") if path.exists() else ""

    def attempts(self) -> int:
        """How often anything in the cluster has tried to reach something outside of it."""
        rows = [line.split() for line in self.as_root("cat", "/proc/net/snmp").splitlines()]
        names, values = (row for row in rows if row[0] == "Ip:")
        six = dict(line.split() for line in self.as_root("cat", "/proc/net/snmp6").splitlines())
        return int(values[names.index("OutNoRoutes")]) + int(six["Ip6OutNoRoutes"])

    def switch(self, node: str, how: str) -> None:
        """A node is switched "on"; "off": as if its plug were pulled."""
        self.as_root("/mnt/inside/power.sh", how, node)

    def idle(self) -> set[str]:
        """The nodes that wait for work."""
        shown = self.as_root("sinfo", "--Node", "--noheader", "--format=%N %t", "--partition=all")
        return {line.split()[0] for line in shown.splitlines() if line.split()[1] == "idle"}

    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self._login}", "--mount", *SPACES, "--wdns=/"]


@contextmanager
def up(folder: Path) -> Iterator[Cluster]:
    """Bring a cluster up, and down; what is in `folder`/home is there."""
    shutil.rmtree(folder / "inside", ignore_errors=True)
    shutil.copytree(HERE / "inside", folder / "inside")
    (folder / "ready").unlink(missing_ok=True)
    # It is killed with this process, even if this is killed; and all others are killed with it.
    starter = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", *SPACES, "--fork", "--kill-child",
         HERE / "in_sid_root.sh", folder, "/mnt/inside/login.sh"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # Making the root takes its time, where there is none yet.
        until((folder / "ready").exists, "the login node is up", 600, starter)
        children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text()
        (folder / "login.pid").write_text(children)
        cluster = Cluster(folder)
        until(lambda: cluster.idle() == set(NODES), "all nodes are idle", 60, starter)
        yield cluster
    finally:
        starter.kill()
        starter.wait()


def until(
    condition: Callable[[], bool],
    what: str,
    seconds: float,
    starter: "subprocess.Popen[bytes] | None" = None,
) -> None:
    """Wait until it is true; not for longer than so many seconds, nor if the starter has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert starter is None or starter.poll() is None, f"the cluster ended before {what}"
        assert time.monotonic() < deadline, f"{seconds:.0f} s, and not yet: {what}"
        time.sleep(1)  # asking Slurm takes time from the jobs, which share these cores


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
        with up(folder) as cluster:
            print(f"The home of its user is {cluster.home} outside.", file=sys.stderr)
            return subprocess.run(cluster.user_command(shlex.join(sys.argv[1:]))).returncode


if __name__ == "__main__":
    sys.exit(main())
