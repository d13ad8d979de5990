"""The workspaces that trials copy: made once a run, with what an uninterrupted training leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import process
import promise
import workspace
from trial import HANG, SFT, Template

STAGES = (
    "train/check.py", "train/fetch.py", "train/prepare.py", "train/encode.py", "train/pretrain.py",
)  # fmt: skip
LATER = (
    "train/dpo.py", "train/grpo.py", "export/merge.py", "export/to_gguf.py", "eval/benchmark.py",
)  # fmt: skip
RANKS = 4


def make(base: Path, wanted: set[str]) -> dict[str, Template]:
    """By name; only those that are wanted, for a training is always one."""
    base.mkdir(parents=True)
    start = base / "start"
    workspace.make(start)
    start.with_name("start.tmp").mkdir()
    for path in STAGES:
        run(start, path)
    shutil.rmtree(start / "work/runs")
    made = {"one": replace(_with_golden(start, base / "one"), half=_half(start, base / "half"))}
    if "ranks" in wanted:
        four = workspace.copy(start, base / "start-ranks")
        _compose(four, "sft.micro_batch=1")
        made["ranks"] = _with_golden(four, base / "ranks", RANKS)
    if "short" in wanted:
        short = workspace.copy(start, base / "start-short")
        _compose(
            short, "+sft.trainer.max_steps=10", "sft.eval_every=3", "sft.save_every='50 steps'"
        )
        made["short"] = _with_golden(short, base / "short")
    if "stages" in wanted:
        made["stages"] = _later_stages(base / "one")
    if "dvc" in wanted:
        made["dvc"] = _with_dvc(made["one"], start, base / "dvc")
    return made


def run(folder: Path, path: str, patch=None, **environment: str) -> process.Process:
    """One stage, in a forked child, to its end; it must succeed."""

    def body() -> None:
        if patch:
            patch()
        process.script(path)()

    return call(folder, body, path, **environment)


def call(folder: Path, body, name: str, **environment: str) -> process.Process:
    log = folder.with_name(f"{folder.name}.{Path(name).stem}")
    surroundings = workspace.environment(folder) | environment
    started = process.fork(body, name=name, folder=folder, environment=surroundings, log=log)
    if started.wait(3 * HANG) != 0:
        sys.exit(f"{name} fails without any fault:\n{started.out[-2000:]}\n{started.err[-2000:]}")
    return started


def several_ranks(num: int) -> None:
    """In a forked child: ranks are forked, too."""
    from siftune import ranks

    os.environ["SIFTUNE_PROCESSES"] = str(num)
    ranks.subprocess = SimpleNamespace(Popen=process.ForkedPopen)


def _with_golden(start: Path, target: Path, num_ranks: int = 1) -> Template:
    """The workspace `start`, and in `target` the same after a whole training."""

    workspace.copy(start, target)
    began = time.monotonic()
    run(target, SFT, (lambda: several_ranks(num_ranks)) if num_ranks > 1 else None)
    seconds = time.monotonic() - began
    golden = json.loads(json.dumps(promise.outcome(target)))
    return Template(start, golden, seconds)


def _half(start: Path, target: Path) -> Path:
    """Killed right before its third checkpoint."""
    workspace.copy(start, target)

    def die_at_third() -> None:
        from siftune.resume.checkpoints import Store

        aside = Store.aside

        def until_third(store: Store, step: int) -> Path:
            if step == 3 * workspace.SAVE_EVERY:
                os.kill(os.getpid(), signal.SIGKILL)
            return aside(store, step)

        Store.aside = until_third

    log = target.with_name(f"{target.name}.sft")

    def body() -> None:
        die_at_third()
        process.script(SFT)()

    process.fork(
        body, name=SFT, folder=target, environment=workspace.environment(target), log=log
    ).wait(HANG)
    assert promise.newest_whole(promise.checkpoints(target)) == 2 * workspace.SAVE_EVERY
    return target


def _later_stages(done: Path) -> Template:
    for path in LATER:
        run(done, path)
    return Template(done)


def _with_dvc(one: Template, start: Path, target: Path) -> Template:
    workspace.copy(start, target)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t",
                    "commit", "-qm", "start"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=target, check=True, capture_output=True)

    def commit() -> None:
        from dvc.cli import main

        sys.exit(main(["commit", "--force", *(Path(path).stem for path in STAGES)]))

    call(target, commit, "dvc commit")
    return Template(target, one.golden, one.seconds)


def _compose(folder: Path, *overrides: str) -> None:
    (folder / "params.yaml").unlink()
    subprocess.run(
        [sys.executable, "-P", "-m", "siftune.presets", *workspace.OVERRIDES, *overrides],
        cwd=folder, env=workspace.environment(folder), check=True, capture_output=True,
    )  # fmt: skip
