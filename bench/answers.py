"""The benchmark stage, base and tuned model, against two runs of stock lm-eval.

Runs in a repository in which `make demo` went through, and changes nothing there: all work in a
folder of their own, without earlier answers, and begin with the start of Python.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

from siftune import models

GIVEN = ["data/prepared", "eval", "models", "work/models"]


class Timed(NamedTuple):
    seconds: float
    cpu: float  # seconds, of all its processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=50, help="problems")
    parser.add_argument("--num-fewshot", type=int, default=0, help="solved examples before each")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    theirs, ours = [], []
    for _ in range(chosen.pairs):
        with tempfile.TemporaryDirectory() as folder:
            lay_out(Path(folder), limit=chosen.limit, num_fewshot=chosen.num_fewshot)
            runs = [timed(command, folder, environment) for command in stock(Path(folder))]
            theirs.append(Timed(*map(sum, zip(*runs, strict=True))))
            stage = [sys.executable, "-P", "eval/benchmark.py"]
            ours.append(timed(stage, folder, environment))
            print_scores(Path(folder))
    for name, found in (("lm_eval, twice", theirs), ("the stage", ours)):
        clock, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:16} {clock:6.1f} s, {cpu:6.1f} s of CPU")
    for what in Timed._fields:
        pairs = zip(theirs, ours, strict=True)
        ratios = [getattr(one, what) / getattr(other, what) for one, other in pairs]
        print(
            f"ratio of {what}: {statistics.median(ratios):.2f} "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f})"
        )


def lay_out(folder: Path, **settings: int) -> None:
    """What the stage needs, with these settings of the section benchmark."""
    for name in GIVEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(Path(name).absolute())
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["benchmark"] |= settings
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def stock(folder: Path) -> list[list[str]]:
    """lm-eval's command for the base and for the tuned model, asked as the stage asks."""
    settings = yaml.safe_load((folder / "params.yaml").read_text())["benchmark"]
    return [
        [
            str(Path(sys.executable).parent / "lm_eval"),
            *("--model", "hf", "--batch_size", str(settings["batch_size"])),
            *("--model_args", f"pretrained={model},tokenizer={tokenizer},dtype=float32"),
            *("--tasks", *settings["tasks"], "--include_path", "eval/tasks"),
            *("--num_fewshot", str(settings["num_fewshot"]), "--limit", str(settings["limit"])),
            *("--gen_kwargs", f"max_gen_toks={settings['max_new_tokens']}"),
            *("--apply_chat_template", "--output_path", name),
        ]
        for name, model, tokenizer in (
            ("base", models.base_folder(), models.TOKENIZER),
            ("tuned", "models/merged", "models/merged"),
        )
    ]


def timed(command: list[str], folder: str, environment: dict[str, str]) -> Timed:
    began, used = time.monotonic(), children()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}:\n{done.stderr[-3000:]}")
    return Timed(time.monotonic() - began, children() - used)


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_scores(folder: Path) -> None:
    """What both made of each model's answers; it should be the same."""
    by_stage = json.loads((folder / "metrics/benchmark.json").read_text())
    for model in ("base", "tuned"):
        (file,) = (folder / model).rglob("results_*.json")
        results = json.loads(file.read_text())["results"]
        for metric, found in by_stage[model].items():
            task, name, way = metric.split("/")
            theirs = results[task][f"{name},{way}"]
            print(f"{model} {metric}: lm_eval {theirs:.4f}, the stage {found['value']:.4f}")


if __name__ == "__main__":
    main()
