"""One cluster for a test run: it is up before the first test, and gone after the last."""

import calendar
import fcntl
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

import cluster as clusters  # noqa: E402
import prepared  # noqa: E402
import promise  # noqa: E402
import workspace  # noqa: E402
from cluster import CACHE, Cluster  # noqa: E402

FOLDER = CACHE / "run"  # what the jobs left is there until the next run
HISTORY = "work/runs/*-sft-*/metrics.jsonl"
SLOW = """
def _slow_down() -> None:
    import time

    from siftune.resume.trainer import Resumable

    step = Resumable.training_step

    def slow_step(self, *args, **kwargs):
        time.sleep({})
        return step(self, *args, **kwargs)

    Resumable.training_step = slow_step


_slow_down()
"""
UP = pytest.StashKey[ExitStack]()
# What takes minutes, the longest first.
LONG = (
    "the_whole_pipeline",
    "eight_of_eight_tasks",
    "a_time_limit",
    "a_signal_by_hand",
    "a_dead_node",
    "a_job_that_is_pushed_aside",
    "secrets_stay",
    "scancel",
    "two_nodes",
)


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Before the workers start."""
    if is_worker(session.config) or session.config.option.collectonly:
        return
    session.config.stash[UP] = stack = ExitStack()
    CACHE.mkdir(parents=True, exist_ok=True)
    fcntl.flock(stack.enter_context((CACHE / "run.lock").open("w")), fcntl.LOCK_EX)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    began = time.monotonic()
    running = stack.enter_context(clusters.up(FOLDER))
    print(f"cluster: up after {time.monotonic() - began:.0f} s")
    prepared.prepare(running)
    print(f"cluster: image and golden training after {time.monotonic() - began:.0f} s")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that nothing runs alone in the end.

    `--dist=loadgroup` hands them out one by one in this order; the others begin with two a process.
    """

    def rank(item: pytest.Item) -> int:
        name = item.name.removeprefix("test_")
        return next((n for n, long in enumerate(LONG) if name.startswith(long)), len(LONG))

    items.sort(key=rank)


def pytest_unconfigure(config: pytest.Config) -> None:
    if UP in config.stash:
        config.stash[UP].close()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if UP not in config.stash or not (FOLDER / "submitted").exists():
        return
    running = Cluster(FOLDER)
    say = terminalreporter.write_line
    say("\n| job | test | nodes | restarts | time | state | exit code |")
    say("|---|---|---|---|---|---|---|")
    for line in (FOLDER / "submitted").read_text().splitlines():
        number, submitted, test = line.split()
        job = running.job(number)
        ended = calendar.timegm(time.strptime(job["EndTime"], "%Y-%m-%dT%H:%M:%S"))
        cells = (number, test.partition("::")[2], job["NodeList"], job["Restarts"],
                 f"{ended - int(submitted)} s", job["JobState"], job["ExitCode"])  # fmt: skip
        say(f"| {' | '.join(cells)} |")
    say(f"What they said: {FOLDER}/home/*/slurm/logs")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of this run."""
    return Cluster(FOLDER)


@pytest.fixture(autouse=True)
def _one_at_a_time(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that are marked with the same reason wait for each other, whichever process has them.

    pytest-xdist 3.8 has groups for that, which pytest 9.2 leaves apart without a word.
    """
    mark = request.node.get_closest_marker("one_at_a_time")
    if mark is None:
        yield
        return
    (reason,) = mark.args
    with (cluster.folder / f"{reason}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the training leaves natively, without any fault."""
    return json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture
def checkout(cluster: Cluster, request: pytest.FixtureRequest) -> "Checkout":
    """A checkout of the test's own, whose stages before sft have run."""
    name = re.sub(r"\W+", "_", request.node.name.removeprefix("test_"))
    return Checkout(cluster, name)


class Checkout:
    """A copy of ~/siftune in the user's home."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.path = workspace.copy(cluster.home / prepared.NAME, cluster.home / name)
        self.path.with_name(f"{name}.tmp").rmdir()
        subprocess.run(["chown", "-hR", f"{clusters.USER}:{clusters.USER}", self.path], check=True)

    def sbatch(self, arguments: str, **environment: str) -> int:
        """Submit here; `arguments` is what the user types after `sbatch`."""
        return self.cluster.sbatch(arguments, self.name, **{"SIFTUNE_SITE": "test", **environment})

    def chain(self, *arguments: str) -> list[int]:
        """Submit training, evaluation and export."""
        command = shlex.join(["slurm/chain.sh", *arguments])
        said = self.cluster.ok(f"cd {self.name} && {command}", SIFTUNE_SITE="test")
        numbers = [int(number) for number in re.findall(r"\d+", said)]
        for number in numbers:
            self.cluster.note(number)
        return numbers

    def slow_down(self, seconds: float) -> None:
        """Each micro batch takes so much longer; what is learned is the same."""
        path = self.path / "train/sft.py"
        begin, end = path.read_text().split('if __name__ == "__main__":')
        path.unlink()  # a link
        path.write_text(f"{begin}{SLOW.format(seconds)}\n\nif __name__ == '__main__':{end}")

    def started(self, times: int, number: int) -> None:
        """Wait until the training has begun so many times."""
        self._until(lambda: len(self.steps_begun()) >= times, f"start {times}", number)

    def trained(self, step: int, number: int) -> None:
        """Wait until it has logged this step."""

        def is_there() -> bool:
            rows = (promise.history(path)[0] for path in self.path.glob(HISTORY))
            return any(step in row for row in rows)

        self._until(is_there, f"step {step}", number)

    def steps_begun(self) -> list[int]:
        """From which step each start of the training went on."""
        return [
            row["step"]
            for path in self.path.glob("work/*/starts.jsonl")
            for row in promise.lines(path)
            if "started" in row
        ]

    def _until(self, condition: Callable[[], bool], what: str, number: int) -> None:
        def is_so() -> bool:
            state = self.cluster.job(number)["JobState"]
            assert state not in clusters.OVER, f"it is {state}: {self.cluster.log(number)}"
            return condition()

        clusters.until(is_so, f"{what} of job {number}", 300)
