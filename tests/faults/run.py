"""The trials of "never lose a run": faults are injected, and a table says what was lost.

    python tests/faults/run.py --size ci [--only ROW] [--seed N]

Each trial copies a workspace with a tiny model (2 layers, width 32; 40 steps, a save every 5),
breaks it once, and starts the same command again. Lost: the promise is broken. Silent: it went
wrong, and neither exit code nor message said so. A trial that fails is repeated by its row and
seed. What needs a real Slurm (its time limit with USR1 and requeue, scancel --signal, a node that
goes down, preemption) is tried by the tests of the cluster instead.
"""

import argparse
import contextlib
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import process
import templates
from bugs import BUGS
from promise import Silent
from rows import corruption, disks, jobs, kills, pipeline, stages, stops, stores
from trial import Skip, Template, Trial


@dataclass(frozen=True)
class Row:
    """One fault."""

    fault: str
    num_ci: int
    num_long: int
    run: Callable[[Trial], None]
    template: str = "one"


ROWS = {
    "ranks": Row("signal to 1 of 4 ranks, or kill -9", 5, 50, stops.one_of_several_ranks, "ranks"),
    "dvc": Row("kill -9 of dvc alone, resubmitted at once", 5, 100, pipeline.dvc_killed, "dvc"),
    "commit": Row("kill -9 during dvc commit", 5, 200, pipeline.commit_killed, "dvc"),
    "save": Row("kill -9 at every operation of a save", 1, 5, kills.at_every_operation_of_a_save),
    "jobs": Row("two jobs in a workspace; eight at once", 10, 100, jobs.together),
    "stages": Row("any other stage killed at a random time", 10, 100, stages.killed, "stages"),
    "store": Row("MLflow refused, silent, 500, 401, killed", 6, 30, stores.fails),
    "kill": Row("kill -9 at a random time", 20, 500, kills.at_a_random_time),
    "stop": Row("a signal in each phase, and a second one", 21, 140, stops.in_a_phase),
    "disk": Row("disk full, I/O error, read-only", 12, 60, disks.fails),
    "corrupt": Row("newest checkpoint corrupt", 60, 300, corruption.newest),
    "refused": Row("all corrupt; other params, base, world size", 10, 40, corruption.refused),
    "clock": Row("clock a day back or forward; equal mtimes", 4, 20, corruption.clock),
    "poll": Row("stopped wherever it polls", 30, 30, kills.at_every_place_where_it_polls, "short"),
    "again": Row("started again after its end", 1, 3, kills.after_its_end),
    "crash": Row("the same crash at every start", 1, 3, kills.crash_at_step_7),
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One trial that is to be made."""

    row: str
    seed: int
    bug: str = ""


@dataclass
class Outcome:
    """Of one trial."""

    row: str
    seed: int
    seconds: float
    num_tried: int = 0
    kind: str = ""  # lost, silent or skipped
    message: str = ""
    notes: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("ci", "long"), default="ci")
    parser.add_argument("--only", choices=ROWS, action="append", help="a row; may be repeated")
    parser.add_argument("--seed", type=int, help="one trial of each row: what a failure printed")
    parser.add_argument(
        "--self-test", action="store_true", help="bugs are put in, and each must be seen"
    )
    arguments = parser.parse_args()
    rows = {name: row for name, row in ROWS.items() if name in (arguments.only or ROWS)}
    started = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="siftune-faults-"))
    import_heavy_libraries()
    wanted = {row.template for row in rows.values()} if not arguments.self_test else set()
    made = templates.make(base / "templates", wanted)
    print(f"{time.monotonic() - started:.0f} s: the workspaces are made", flush=True)
    if arguments.self_test:
        tasks = [Task(bug.row, bug.seed, told) for told, bug in BUGS.items()]
    else:
        num = {"ci": lambda row: row.num_ci, "long": lambda row: row.num_long}[arguments.size]
        tasks = [
            Task(name, seed)
            for name, row in rows.items()
            for seed in (range(num(row)) if arguments.seed is None else [arguments.seed])
        ]
    outcomes = run_all(tasks, made, base)
    if arguments.self_test:
        shutil.rmtree(base)
        return int(any(one.kind not in ("lost", "silent") for one in outcomes))
    show(rows, outcomes, time.monotonic() - started)
    failed = [one for one in outcomes if one.kind in ("lost", "silent")]
    if not failed:
        shutil.rmtree(base)
    return 1 if failed else 0


def import_heavy_libraries() -> None:
    """Once, for all that is forked later; nothing of siftune, which each workspace has itself."""
    os.environ.update(
        OMP_NUM_THREADS="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error", MLFLOW_DISABLE_TELEMETRY="true",
        HF_HUB_DISABLE_TELEMETRY="1",  # else a thread looks up a name, which crashes in a fork
    )  # fmt: skip
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import dvc.cli
    import dvc.repo  # noqa: F401
    import mlflow  # noqa: F401
    import peft  # noqa: F401
    import pydantic.dataclasses  # noqa: F401
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaForCausalLM,
        Trainer,
    )
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    gc.collect()
    gc.freeze()  # what all children share is not looked through in each
    assert not [name for name in sys.modules if name.partition(".")[0] == "siftune"]


def run_all(tasks: list[Task], made: dict[str, Template], base: Path) -> list[Outcome]:
    """All trials, one on each core."""
    context = multiprocessing.get_context("fork")
    outcomes = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        waiting = [pool.submit(attempt, task, made, base) for task in tasks]
        for number, done in enumerate(as_completed(waiting), 1):
            one = done.result()
            outcomes.append(one)
            told = f"{one.kind.upper()}: {one.message[:1500]}" if one.kind else "ok"
            print(
                f"[{number}/{len(tasks)}] {one.row} {one.seed}: {told} ({one.seconds:.1f} s)",
                *(f"    {note}" for note in one.notes),
                *([f"    again: {replay(one)}"] if one.kind in ("lost", "silent") else []),
                sep="\n",
                flush=True,
            )
    return outcomes


def attempt(task: Task, made: dict[str, Template], base: Path) -> Outcome:
    """One trial, in a worker process."""
    process.adopt_orphans()
    row = ROWS[task.row]
    bug = BUGS[task.bug].put if task.bug else None
    trial = Trial(made[row.template], base / f"{task.row}-{task.seed}", task.seed, bug)
    started = time.monotonic()
    kind = message = ""
    try:
        with trial:
            row.run(trial)
    except Skip as reason:
        kind, message = "skipped", str(reason)
    except Silent as fault:
        kind, message = "silent", str(fault)
    except Exception as fault:  # Lost, Hang, or what nobody had thought of
        kind, message = "lost", f"{type(fault).__name__}: {fault}"
    seconds = time.monotonic() - started
    num_tried = 0 if kind == "skipped" else trial.num_tried
    return Outcome(task.row, task.seed, seconds, num_tried, kind, message, trial.notes)


def replay(one: Outcome) -> str:
    return f"python tests/faults/run.py --only {one.row} --seed {one.seed}"


def show(rows: dict[str, Row], outcomes: list[Outcome], seconds: float) -> None:
    print(f"\n| {'fault':48} | tried | lost | silent | note |\n|---|---|---|---|---|")
    for name, row in rows.items():
        own = [one for one in outcomes if one.row == name]
        lost, silent, skipped = (
            sum(one.kind == kind for one in own) for kind in ("lost", "silent", "skipped")
        )
        notes = [f"{skipped} SKIPPED: {own[0].message}"] if skipped else []
        notes += [note for one in own for note in one.notes]
        tried = sum(one.num_tried for one in own)
        print(f"| {row.fault:48} | {tried:5} | {lost:4} | {silent:6} | {'; '.join(notes)} |")
    busy = sum(one.seconds for one in outcomes)
    print(f"\n{seconds:.0f} s, of which the trials {busy:.0f} s on all cores together.")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
