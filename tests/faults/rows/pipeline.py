"""DVC is killed: alone while its stage trains, or while it commits what a stage made."""

import json
import random
import shutil
from pathlib import Path

import promise
import yaml
from process import until
from promise import must
from trial import HANG, Trial

TRAINING_SECONDS = 16.0
COMMIT_SECONDS = 1.0
DVCS_OWN = "join() argument must be str, bytes, or os.PathLike object, not 'NoneType'"
CLEAN = "Data and pipelines are up to date."


def dvc_killed(trial: Trial) -> None:
    """Its stage may still save; the next `dvc repro` comes at once, and there is one writer."""
    draw = random.Random(trial.seed)
    folder = trial.copy()
    first = trial.dvc("repro", "--single-item", "sft")
    first.runs_for(draw.uniform(1.0, TRAINING_SECONDS))
    first.kill()
    second = trial.dvc("repro", "--single-item", "sft")
    code = second.wait(3 * HANG)
    must(code == 0, f"the next dvc repro ended with {code}: {second.out[-300:]}{second.err[-900:]}")
    promise.check_finished(folder, trial.template.golden)
    _must_be_clean(trial, "sft")


def commit_killed(trial: Trial) -> None:
    """After the stage's end, while DVC hashes and caches what it made."""
    draw = random.Random(trial.seed)
    folder = trial.copy()
    expected = promise.describe(folder / "data/prepared")
    _forget(folder, "prepare")
    first = trial.dvc("repro", "--single-item", "prepare")
    ended = until(lambda: first.poll() is not None or _is_finished(folder, "prepare"), HANG)
    must(ended, f"prepare did not end: {first.err[-400:]}")
    first.runs_for(draw.uniform(0, COMMIT_SECONDS))
    first.kill()
    second = trial.dvc("repro", "--single-item", "prepare")
    code = second.wait(3 * HANG)
    if DVCS_OWN in second.err:
        # What docs/troubleshooting.md says: DVC does not get over an empty folder of its own.
        trial.notes.append("DVC left an empty folder in its run cache; it was removed")
        for empty in (folder / ".dvc/cache/runs").glob("*/*"):
            if not any(empty.iterdir()):
                empty.rmdir()
        second = trial.dvc("repro", "--single-item", "prepare")
        code = second.wait(3 * HANG)
    must(code == 0, f"the next dvc repro ended with {code}: {second.out[-300:]}{second.err[-900:]}")
    must(promise.describe(folder / "data/prepared") == expected, "it left something else")
    promise.check_nothing_left(folder)
    _must_be_clean(trial, "prepare")


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
    for path in folder.glob(f"work/runs/*-{stage}-*/run.json"):
        return bool(json.loads(path.read_text())["status"] == "finished")
    return False
