"""A process and its children: how long they work, and how much memory they hold together."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import psutil
from contenders.task import Moment, Task

EVERY = 0.05  # seconds
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Measured(NamedTuple):
    """Times of one run, and memory of another: to look costs a third of a core."""

    num_rows: int
    startup: float  # seconds, until all is imported
    seconds: float  # from the file of rows to Arrow files of tokens and labels
    cpu: float  # seconds, in the same time
    peak: int  # bytes, PSS of all processes together (what they share counts once), start-up too
    largest: int  # bytes, RSS of the largest process


class Sample(NamedTuple):
    at: float
    pss: int
    largest: int


class Run(NamedTuple):
    started: float
    began: Moment
    ended: Moment
    num_rows: int
    samples: list[Sample]


def measure(command: list[str], task: Task, cores: set[int]) -> Measured:
    """Run a contender twice in `task.folder`, which is gone afterwards; errors as for `run`."""
    folder = Path(task.folder)
    watched = run(command, replace(task, folder=str(folder / "watched")), cores)
    timed = run(command, replace(task, folder=str(folder / "timed")), cores, watch=False)
    shutil.rmtree(folder)
    used = [sample for sample in watched.samples if sample.at <= watched.ended.clock]
    return Measured(
        num_rows=timed.num_rows,
        startup=timed.began.clock - timed.started,
        seconds=timed.ended.clock - timed.began.clock,
        cpu=timed.ended.cpu - timed.began.cpu,
        peak=max(sample.pss for sample in used),
        largest=max(sample.largest for sample in used),
    )


def run(command: list[str], task: Task, cores: set[int], *, watch: bool = True) -> Run:
    """Run a contender on `cores`, in a process of its own.

    Raises:
        RuntimeError: it failed; the message is the end of what it wrote.
    """
    folder = Path(task.folder)
    folder.mkdir(parents=True)
    environment = os.environ | QUIET | {"HF_HOME": str(folder / "huggingface")}
    with (folder / "log").open("w") as log:
        started = time.monotonic()
        process = psutil.Popen(
            [*command, json.dumps(asdict(task))], env=environment, stdout=log, stderr=log,
            preexec_fn=lambda: os.sched_setaffinity(0, cores), cwd=folder,
        )  # fmt: skip
        samples = _watch(process) if watch else []
    if process.wait() != 0:
        raise RuntimeError(f"{command}:\n{(folder / 'log').read_text()[-3000:]}")
    said = json.loads((folder / "answer.json").read_text())
    began, ended = Moment(*said["began"]), Moment(*said["ended"])
    return Run(started, began, ended, said["num_rows"], samples)


def _watch(process: psutil.Popen) -> list[Sample]:
    samples = []
    while process.poll() is None:
        used = [_memory(one) for one in _tree(process)]
        pss, rss = zip(*used, strict=True)
        samples.append(Sample(time.monotonic(), sum(pss), max(rss)))
        time.sleep(EVERY)
    return samples


def _tree(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def _memory(process: psutil.Process) -> tuple[int, int]:
    try:
        used = process.memory_full_info()
    except psutil.Error:  # it ended meanwhile
        return 0, 0
    return used.pss, used.rss
