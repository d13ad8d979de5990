"""All checks side by side, what they found in order, and the exit code."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from siftune.doctor import cluster, filesystem, gpu, namespaces, packages, project, reach, room
from siftune.doctor.finding import OK, PROBLEM, WARNING, Check, Finding, lines
from siftune.stage import UserError

# Of all checks together: a file system that hangs, or a server, must not keep the others.
SECONDS = 2.7
PIPELINE = Path("dvc.yaml")
CHECKS: dict[str, Check] = {
    "packages": packages.installed,
    "~/.local": packages.leaks,
    "GPU": gpu.check,
    "disk": room.room,
    "quota": room.quota,
    "/tmp": room.temporary,
    "locks": filesystem.locks,
    "namespaces": namespaces.check,
    "Slurm": cluster.slurm,
    "image": cluster.image,
    "MLflow": reach.mlflow,
    "hub": reach.hubs,
    "git": project.git,
    "params": project.params,
    "offline": project.offline,
}


def main() -> None:
    """Print what was found.

    Raises:
        UserError: there are problems, or this is not the repository's root.
    """
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE} is not in {Path.cwd()}: run this in the repository's root.")
    found = list(findings())
    for line in lines(found):
        print(line, flush=True)
    levels = [one.level for one in found]
    told = ", ".join(f"{name}: {levels.count(name)}" for name in (PROBLEM, WARNING, OK))
    if PROBLEM in levels:
        raise UserError(f"{told}. Mend what is a problem first: a job would end with it.")
    print(told)


def findings() -> Iterator[Finding]:
    """What all checks found, in the order of `CHECKS`."""
    # First, as the site's variables decide what the others look at.
    yield from _run("site", cluster.site)
    results: dict[str, list[Finding]] = {}

    def run(name: str, check: Check) -> None:
        results[name] = _run(name, check)

    threads = [
        threading.Thread(target=run, args=each, daemon=True, name=each[0])
        for each in CHECKS.items()
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    for name, thread in zip(CHECKS, threads, strict=True):
        thread.join(max(deadline - time.monotonic(), 0))
        silent = Finding(
            WARNING, name, f"did not answer within {SECONDS} s: a disk or a server may hang"
        )
        yield from results.get(name, [silent])


def _run(name: str, check: Check) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # where things are broken, anything may be
        return [Finding(WARNING, name, f"cannot be looked at: {type(error).__name__}: {error}")]
