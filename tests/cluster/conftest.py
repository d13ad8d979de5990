"""One cluster for a test run: it is up before the first test, and gone after the last."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

import cluster as clusters  # noqa: E402
import prepared  # noqa: E402
import workspace  # noqa: E402
from cluster import CACHE, Cluster  # noqa: E402

FOLDER = CACHE / "run"  # what the jobs left is there until the next run
UP = pytest.StashKey[ExitStack]()


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
    say("\n| job | test | nodes | restarts | seconds | state | exit code |\n|---|---|---|---|---|---|---|")
    for line in (FOLDER / "submitted").read_text().splitlines():
        number, test = line.split()
        job = running.job(number)
        cells = (number, test.partition("::")[2], job["NodeList"], job["Restarts"], job["RunTime"],
                 job["JobState"], job["ExitCode"])  # fmt: skip
        say(f"| {' | '.join(cells)} |")
    say(f"What they said: {FOLDER}/home/*/slurm/logs")


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of this run."""
    return Cluster(FOLDER)


@pytest.fixture(scope="session")
def golden() -> dict:
    """What the training leaves natively, without any fault."""
    return json.loads((FOLDER / "golden.json").read_text())


@pytest.fixture
def checkout(cluster: Cluster, request: pytest.FixtureRequest) -> "Checkout":
    """A checkout of the test's own, whose stages before sft have run."""
    name = request.node.name.partition("[")[0].removeprefix("test_")
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
        return self.cluster.sbatch(
            arguments, self.name, **{"SIFTUNE_SITE": "test", **environment}
        )
