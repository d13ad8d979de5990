"""DVC is killed: alone while its stage trains, or while it commits what a stage made."""

import builtins
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import process
import promise
import yaml
from process import Process, until
from promise import must
from trial import HANG, Trial

TRAINING_SECONDS = 16.0
COMMIT_SECONDS = 1.0
CLEAN = "Data and pipelines are up to date."


def dvc_killed(trial: Trial) -> None:
    """Its stage may still save; the next start comes at once, and there is one writer."""
    draw = random.Random(trial.seed)
    folder = trial.copy()
    first = trial.repro("sft")
    first.runs_for(draw.uniform(1.0, TRAINING_SECONDS))
    # The one that started DVC, or DVC itself.
    for pid in [first.pid] if trial.seed % 2 else process.children(first.pid):
        os.kill(pid, signal.SIGKILL)
    _must_succeed(trial.repro("sft"))
    promise.check_finished(folder, trial.template.golden)
    _must_be_clean(trial, "sft")


def commit_killed(trial: Trial) -> None:
    """After the stage's end, while DVC hashes and caches what it made."""
    draw = random.Random(trial.seed)
    folder = trial.copy()
    expected = promise.describe(folder / "data/prepared")
    _forget(folder, "prepare")
    # Where chance seldom hits, and DVC alone does not get over it.
    deaths = [_before_an_entry, lambda: _within("dvc.lock"), lambda: _within("rwlock$"), None, None]
    first = trial.repro("prepare", deaths[trial.seed % len(deaths)])
    ended = until(lambda: first.poll() is not None or _is_finished(folder, "prepare"), HANG)
    must(ended, f"prepare did not end: {first.err[-400:]}")
    first.runs_for(draw.uniform(0, COMMIT_SECONDS))
    first.kill()
    _must_succeed(trial.repro("prepare"))
    must(promise.describe(folder / "data/prepared") == expected, "it left something else")
    promise.check_nothing_left(folder)
    _must_be_clean(trial, "prepare")


def _before_an_entry() -> None:
    """A patch: of the run cache's entry the folder is made, and the file in it is not."""
    from dvc.utils import serialize

    serialize.dump_yaml = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def _within(pattern: str) -> None:
    """A patch: a file with such a name is opened, and nothing of it is written."""
    open_file = builtins.open

    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = open_file(path, mode, *args, **kwargs)
        if mode.startswith("w") and re.search(pattern, str(path)):
            os.kill(os.getpid(), signal.SIGKILL)
        return file

    builtins.open = call


def _must_succeed(next_one: Process) -> None:
    code = next_one.wait(3 * HANG)
    told = f"{next_one.out[-300:]}{next_one.err[-900:]}"
    must(code == 0, f"the next siftune repro ended with {code}: {told}")


def _must_be_clean(trial: Trial, stage: str) -> None:
    status = trial.dvc("status", stage)
    must(status.wait(HANG) == 0, f"dvc status: {status.err[-400:]}")
    must(CLEAN in status.out + status.err, f"dvc status is not clean: {status.out}")


def _forget(folder: Path, stage: str) -> None:
    """As if it had never run."""
    path = folder / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    for out in lock["stages"].pop(stage)["outs"]:
        target = folder / out["path"]
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    path.write_text(yaml.safe_dump(lock))
    for cache in (folder / ".dvc/cache", folder / ".dvc/tmp"):
        shutil.rmtree(cache, ignore_errors=True)


def _is_finished(folder: Path, stage: str) -> bool:
    for path in folder.glob(f"work/runs/[!.]*-{stage}-*/run.json"):
        return bool(json.loads(path.read_text())["status"] == "finished")
    return False
