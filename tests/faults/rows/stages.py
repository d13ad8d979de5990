"""Every other stage, killed at a random time; one rerun is right."""

import random
import shutil
from pathlib import Path

import promise
from promise import must
from trial import HANG, Trial

# What a stage writes that is the same each time; what is measured is not among it.
OUTPUTS = {
    "train/fetch.py": ("models/base.json", "data/raw", "data/raw.json"),
    "train/prepare.py": ("data/prepared",),
    "train/encode.py": ("data/tokens/sft", "models/tokenizer", "plots/token_lengths.csv"),
    "export/merge.py": ("models/merged",),
    "export/to_gguf.py": ("models/gguf",),
    "eval/benchmark.py": ("data/answers",),
}
# Of a forked stage on an idle machine; the converter is a process of its own.
SECONDS = {
    "train/fetch.py": 0.2, "train/prepare.py": 0.3, "train/encode.py": 0.6, "export/merge.py": 1.0,
    "export/to_gguf.py": 9.0, "eval/benchmark.py": 4.0,
}  # fmt: skip


def killed(trial: Trial) -> None:
    """The stage is the seed's; half of the time its outputs of before are there."""
    draw = random.Random(trial.seed)
    path = list(OUTPUTS)[trial.seed % len(OUTPUTS)]
    folder = trial.copy()
    expected = outputs(folder, path)
    if trial.seed // len(OUTPUTS) % 2 == 0:
        for name in OUTPUTS[path]:
            target = folder / name
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    before = outputs(folder, path)
    shutil.rmtree(folder / "work/answers", ignore_errors=True)
    running = trial.start(path)
    running.runs_for(draw.uniform(0, 1.2 * SECONDS[path]))
    running.kill()
    for name, found in outputs(folder, path).items():
        whole = found in ({}, before[name], expected[name])
        must(whole, f"{path}: a part of {name} was published: {sorted(found)}")
    again = trial.start(path)
    code = again.wait(2 * HANG)
    must(code == 0, f"{path}: the rerun ended with {code}: {again.err[-600:]}")
    must(outputs(folder, path) == expected, f"{path}: the rerun left something else")
    promise.check_nothing_left(folder)


def outputs(folder: Path, path: str) -> dict[str, dict[str, str]]:
    """By output, the sha256 of its files."""
    return {
        name: promise.describe(folder / name) if (folder / name).exists() else {}
        for name in OUTPUTS[path]
    }
