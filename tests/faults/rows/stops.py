"""Signals: in every phase of a training, and to one of several ranks."""

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import process
import promise
from process import until
from promise import Silent, must
from templates import RANKS, several_ranks
from trial import HANG, Trial
from workspace import NUM_STEPS

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
IMPORT_SECONDS = 8.0
PHASES = (
    "import", "model load", "evaluation", "save", "export", "again while saving", "random",
)  # fmt: skip


def in_a_phase(trial: Trial) -> None:
    """The phase is PHASES[seed % 7]; after it, the next start leaves what it should."""
    draw = random.Random(trial.seed)
    phase = PHASES[trial.seed % len(PHASES)]
    number = SIGNALS[trial.seed // len(PHASES) % 2] if phase != "random" else draw.choice(SIGNALS)
    trial.copy()
    if phase == "import":
        running = trial.start(fresh=True)
        running.runs_for(draw.uniform(0, IMPORT_SECONDS))
        running.send(number)
    elif phase == "random":
        running = trial.start()
        running.runs_for(draw.uniform(0, trial.template.seconds))
        running.send(number)
    else:
        running = trial.start(patch=_signalled(phase, number, draw))
    code = running.wait(HANG)
    newest = trial.newest()
    if code == 0:
        return promise.check_finished(trial.folder, trial.template.golden, most_redone=0)
    if code == -number:  # before Python could run a line of ours
        begun = list(trial.folder.glob("work/runs/*-sft-*"))
        must(not begun, f"{phase}: it died of the signal")
    else:
        must(code == 75, f"{phase}: {number.name} ended it with {code}: {running.err[-600:]}")
        must("siftune: stopped" in running.err, f"{phase}: no word: {running.err!r}", Silent)
    must(not (trial.folder / "models/sft").exists(), f"{phase}: 75, and yet published")
    trial.finish(resumed_from=newest, most_redone=0)


def _signalled(phase: str, number: int, draw: random.Random) -> Callable[[], None]:
    """A patch: the signal comes at the beginning of what the phase is named after."""
    step = draw.randrange(1, NUM_STEPS)
    nth = draw.randrange(1, 8)

    def patch() -> None:
        from siftune import models
        from siftune.resume.checkpoints import Store
        from siftune.resume.trainer import Resumable
        from siftune.training import adapters

        if phase == "model load":
            _before(models, "load_model", number)
        elif phase == "evaluation":
            _before(Resumable, "prediction_step", number, nth=nth)
        elif phase == "export":
            _before(adapters, "save", number)
        else:
            _before(Store, "publish", number, nth=1 if phase == "again while saving" else nth)
            if phase == "again while saving":
                _before(Resumable, "training_step", signal.SIGTERM, nth=2 * step)

    return patch


def _before(owner: Any, name: str, number: int, *, nth: int = 1) -> None:
    function = getattr(owner, name)
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, call)


def one_of_several_ranks(trial: Trial) -> None:
    """A signal to one rank, or its death; all stop, at the same step, and nothing hangs."""
    draw = random.Random(trial.seed)
    is_kill = trial.seed % 2 == 1
    number = signal.SIGKILL if is_kill else draw.choice(SIGNALS[:2])
    trial.copy()
    running = trial.start(patch=lambda: several_ranks(RANKS))
    runs = trial.folder / "work/runs"
    begun = until(lambda: bool(list(runs.glob("*-sft-*/metrics.jsonl"))), HANG)
    must(begun, f"no step within {HANG} s: {running.err[-600:]}")
    running.runs_for(draw.uniform(0, 0.8 * trial.template.seconds))
    ranks = process.children(running.pid)
    if len(ranks) == RANKS:
        os.kill(draw.choice(ranks), number)
    code = running.wait(HANG)
    must(not any(one in process.children(os.getpid()) for one in ranks), "a rank was left")
    if code == 0:
        return promise.check_finished(trial.folder, trial.template.golden, most_redone=0)
    if is_kill:
        must(code not in (75, 78), f"a rank was killed, and the code is {code}", Silent)
        must("was ended by SIGKILL" in running.err, f"no word: {running.err[-400:]}", Silent)
    else:
        must(code == 75, f"{number.name} to a rank ended all with {code}: {running.err[-900:]}")
        told = {line for line in running.err.splitlines() if "stopped at step" in line}
        steps = {line.split("stopped at step ")[1].split()[0] for line in told}
        must(len(steps) == 1, f"the ranks stopped at the steps {steps}: {running.err[-600:]}")
    newest = trial.newest()
    trial.finish(
        resumed_from=newest,
        most_redone=5 if is_kill else 0,
        patch=lambda: several_ranks(RANKS),
    )
