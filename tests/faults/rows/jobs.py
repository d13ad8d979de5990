"""More than one job."""

import random
import sqlite3
from pathlib import Path

import promise
import workspace
from process import until
from promise import Silent, must
from trial import HANG, Trial

NUM = 8


def together(trial: Trial) -> None:
    """Seed 0: an array of 8, a workspace each, one store; 1: 8 in one workspace; else 2 in one."""
    if trial.seed % 10 == 0:
        _array(trial)
    elif trial.seed % 10 == 1:
        _eight(trial)
    else:
        _second(trial)


def _second(trial: Trial) -> None:
    """While one trains, another starts in the same folder; it is refused, and the one finishes."""
    draw = random.Random(trial.seed)
    folder = trial.copy()
    first = trial.start()
    until(lambda: (folder / "work/lock.json").exists(), HANG)
    first.runs_for(draw.uniform(0, 0.5 * trial.template.seconds))
    second = trial.start()
    code = second.wait(HANG)
    if first.poll() is None:
        must(code == 75, f"the second ended with {code}: {second.err[-400:]}")
    if code == 75:
        is_told = "in use: sft on" in second.err and f"process {first.pid}" in second.err
        must(is_told, f"the holder is not told: {second.err[-400:]}", Silent)
    must(first.wait(HANG) == 0, f"the first ended with {first.code}: {first.err[-400:]}")
    # Also where the first was over when the second ended, they may have trained side by side.
    promise.check_starts(promise.trainings(folder)[0] / "starts.jsonl")
    if code == 75:
        promise.check_finished(folder, trial.template.golden, most_redone=0)
        must(len(promise.lines(promise.trainings(folder)[0] / "starts.jsonl")) == 2, "two began")


def _eight(trial: Trial) -> None:
    folder = trial.copy()
    started = [trial.start() for _ in range(NUM)]
    codes = [one.wait(2 * HANG) for one in started]
    must(codes.count(0) >= 1 and set(codes) <= {0, 75}, f"eight at once ended with {codes}")
    for one in started:
        must(one.code == 0 or "in use: sft on" in one.err, f"no word: {one.err[-300:]}", Silent)
    if codes.count(0) == 1:
        promise.check_finished(folder, trial.template.golden, most_redone=0)


def _array(trial: Trial) -> None:
    """Eight trainings at once, which open a new store at the same time."""
    store = trial.base / "mlflow.db"
    folders = [workspace.copy(trial.template.folder, trial.base / f"task-{n}") for n in range(NUM)]
    started = [trial.start(folder=one, MLFLOW_TRACKING_URI=f"sqlite:///{store}") for one in folders]
    codes = [one.wait(4 * HANG) for one in started]
    must(codes == [0] * NUM, f"of 8 jobs: {codes}: {[one.err[-300:] for one in started]}")
    for folder in folders:
        promise.check_finished(folder, trial.template.golden, most_redone=0)
        trial.folder = folder
        trial.siftune("sync", f"sqlite:///{store}")
    check_store(store, trial.template.golden, num_runs=NUM)


def check_store(path: Path, golden: dict, num_runs: int = 1) -> None:
    """One finished MLflow run a training, each number of each step once."""
    with sqlite3.connect(path) as store:
        runs = store.execute("SELECT run_uuid, status FROM runs WHERE lifecycle_stage='active'")
        found = dict(runs.fetchall())
        must(len(found) == num_runs, f"{len(found)} runs in MLflow instead of {num_runs}")
        must(set(found.values()) == {"FINISHED"}, f"runs in MLflow are {sorted(found.values())}")
        for run in found:
            rows = store.execute(
                "SELECT step, value FROM metrics WHERE run_uuid=? AND key='train_loss'", (run,)
            ).fetchall()
            expected = [(int(step), row["train_loss"]) for step, row in golden["history"].items()]
            must(len(rows) == len(set(rows)) == len(expected), f"{len(rows)} losses in MLflow")
            must(sorted(rows) == sorted(expected), "MLflow has other losses than metrics.jsonl")
            (num_double,) = store.execute(
                "SELECT count(*) FROM (SELECT 1 FROM metrics WHERE run_uuid=? "
                "GROUP BY key, step HAVING count(*) > 1)", (run,),
            ).fetchone()  # fmt: skip
            must(num_double == 0, f"{num_double} numbers are in MLflow twice")
