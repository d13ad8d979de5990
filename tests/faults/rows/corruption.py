"""Checkpoints that are not what was written, or not of this training; and clocks that lie."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import promise
import yaml
from promise import Silent, must
from templates import several_ranks
from trial import HANG, Trial
from workspace import SAVE_EVERY

DAMAGES = ("truncated", "bit flipped", "deleted", "swapped")
NEWEST, BEFORE = 2 * SAVE_EVERY, SAVE_EVERY
DAY = 86400
REFUSALS = (
    "all corrupt", "of other params", "params changed", "requeued with other params",
    "another world size", "of another base", "base changed",
)  # fmt: skip


def newest(trial: Trial) -> None:
    """Each file in each way; one in 15 is trained to the end."""
    folder = trial.copy(half=True)
    store = promise.checkpoints(folder)
    names = sorted(path.name for path in (store / name(NEWEST)).iterdir())
    how, file = DAMAGES[trial.seed % 4], names[trial.seed // 4 % len(names)]
    told = f"{file} {how}"
    damage(store, file, how, random.Random(trial.seed))
    if trial.seed % 15 == 0:
        done = trial.finish(resumed_from=BEFORE, most_redone=2 * SAVE_EVERY)
        said = done.err
    else:
        looked = trial.call(_look, "look")
        code = looked.wait(HANG)
        must(code == 0, f"{told}: {looked.err[-600:]}")
        must(looked.out.split() == [str(BEFORE)], f"{told}: used all the same: {looked.out}")
        said = looked.err
    must("is broken" in said and name(NEWEST) in said, f"{told}: not a word: {said!r}", Silent)
    aside = list(store.glob(f"broken-{name(NEWEST)}-*"))
    must(len(aside) == 1, f"{told}: it was not set aside")


def _look() -> None:
    """In a forked child: what the product would go on from."""
    from siftune import files
    from siftune.resume.checkpoints import Store

    training = promise.trainings(Path.cwd())[0]
    found = Store(training / "checkpoints", files.read_json(training / "fingerprint.json")).newest()
    print(found.step if found else 0)


def name(step: int) -> str:
    return f"step-{step:08d}"


def damage(store: Path, file: str, how: str, draw: random.Random, step: int = NEWEST) -> None:
    """Damage one file of a checkpoint."""
    path = store / name(step) / file
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif how == "deleted":
        path.unlink()
    elif how == "bit flipped":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    else:
        # With the same of the other checkpoint; where these are equal, with another of this one.
        other = store / name(BEFORE) / file
        if other.read_bytes() == bytes(content):
            other = next(one for one in sorted(path.parent.iterdir()) if one != path)
        path.write_bytes(other.read_bytes())


def refused(trial: Trial) -> None:
    """REFUSALS[seed % 7]: 78 with both values, or a new training that says what it is not."""
    which = REFUSALS[trial.seed % len(REFUSALS)]
    draw = random.Random(trial.seed)
    folder = trial.copy(half=True)
    store = promise.checkpoints(folder)
    if which == "all corrupt":
        for step in (BEFORE, NEWEST):
            damage(store, "optimizer.pt", draw.choice(DAMAGES[:3]), draw, step)
        _refuses(trial, which, "every checkpoint of this training is broken", "optimizer.pt")
        must(len(list(store.glob("broken-*"))) == 2, f"{which}: not both are kept")
        _refuses(trial, which, "every checkpoint of this training is broken", "optimizer.pt")
    elif which == "another world size":
        words = ("written by 1 processes, and here are 2",)
        _refuses(trial, which, *words, patch=lambda: several_ranks(2))
        trial.finish(resumed_from=NEWEST)
    else:
        told = _change(folder, "base" if "base" in which else "params", draw)
        _other_training(trial, which, store, told)


def _other_training(trial: Trial, which: str, store: Path, told: str) -> None:
    if which == "requeued with other params":
        # The half training was this job's before it was requeued.
        starts = store.parent / "starts.jsonl"
        rows = [{**row, "job": "77"} for row in promise.lines(starts)]
        starts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        _refuses(trial, which, "Slurm job (77)", told, SLURM_JOB_ID="77", SLURM_RESTART_COUNT="1")
    elif which in ("params changed", "base changed"):
        running = trial.start()
        running.wait(HANG)
        must(running.code == 0, f"{which}: it ended with {running.code}: {running.err[-400:]}")
        is_told = "is not continued" in running.err and told in running.err
        must(is_told, f"{which}: begun anew without a word: {running.err[-400:]}", Silent)
        must(promise.newest_whole(store) == NEWEST, f"{which}: the old one's checkpoint is gone")
    else:
        known = set(promise.trainings(trial.folder))
        trial.start().wait(HANG)
        (mine,) = set(promise.trainings(trial.folder)) - known
        shutil.rmtree(mine / "checkpoints")
        shutil.copytree(store, mine / "checkpoints")
        _refuses(trial, which, "belongs to another training", told)


def _refuses(trial: Trial, which: str, *words: str, **start: object) -> None:
    before = promise.describe(trial.folder / "models/sft")
    running = trial.start(**start)
    code = running.wait(HANG)
    must(code == 78, f"{which}: it ended with {code}: {running.err[-600:]}")
    for word in words:
        must(word in running.err, f"{which}: {word!r} is not told: {running.err[-600:]}", Silent)
    must("Traceback" not in running.err, f"{which}: a traceback", Silent)
    must(promise.describe(trial.folder / "models/sft") == before, f"{which}: published")


def _change(folder: Path, what: str, draw: random.Random) -> str:
    """Another training in the same workspace; what must be told."""
    path = folder / ("params.yaml" if what == "params" else "models/base.json")
    text = path.read_text()
    path.unlink()  # it is linked
    if what == "params":
        params = yaml.safe_load(text)
        params["sft"]["learning_rate"] = round(draw.uniform(1e-3, 9e-3), 6)
        path.write_text(yaml.safe_dump(params, sort_keys=False))
        return f"params.sft.learning_rate: 0.01 there, {params['sft']['learning_rate']} here"
    manifest = json.loads(text)
    manifest["license"] = "another"
    path.write_text(json.dumps(manifest, indent=2))
    return f"inputs.models/base.json: {promise.sha256(path)[:0]}"


def clock(trial: Trial) -> None:
    """The clock goes back or forward by a day between two starts; or all files have one time."""
    folder = trial.copy(half=True)
    store = promise.checkpoints(folder)
    shift = (-DAY, DAY, 0, 0)[trial.seed % 4]
    # The newest looks oldest, or all look alike.
    for step in (BEFORE, NEWEST):
        for path in (store / name(step), *(store / name(step)).iterdir()):
            moment = 1e9 if trial.seed % 4 == 2 else 1e9 - step
            os.utime(path, (moment, moment))

    def shifted() -> None:
        now = time.time
        time.time = lambda: now() + shift

    trial.finish(resumed_from=NEWEST, patch=shifted)
