"""Steps of whole trainers on the same rows: each trainer in turns with ours, in two processes.

SmolLM2-135M with random weights, LoRA r=16 on seven projections, AdamW, fp32 on the CPU. `sft` has
Tang poems (`--data`: Tang_training_data.json) or problems (gsm8k's train.jsonl), 16 a step. `dpo`
and `grpo` have problems whose prompts are made four times as long as an answer by solved problems
before the question: 4 pairs a step, or 8 answers to one prompt, which stand for completions:
generating them is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from throughput import BASE, BATCH, SEED, batches, embedded_tokenizer, encode
from transformers import AutoConfig, AutoModelForCausalLM

from siftune import sources

OURS = "siftune packs"
THEIRS = ["llama-factory padded", *(f"llama-factory packs of {n}" for n in (512, 1024))]
NUM_PAIRS, GROUP = 4, 8  # a step: pairs of answers; answers to one prompt
PROMPT_TO_ANSWER = 4
NUM_LOOKED_AT = 500  # problems
LONGEST_ANSWER = 64  # tokens; others are left out, so that steps take seconds

Ids = list[int]


class Pair(NamedTuple):
    """The cost of one step: seconds, cpu, peak_mb, loss."""

    theirs: dict[str, float]
    ours: dict[str, float]


def conversations(file: Path, steps: int) -> list[dict[str, Any]]:
    """Rows of sft."""
    return [
        {"input_ids": ids.tolist(), "labels": labels.tolist()}
        for batch in batches(encode(file), steps)
        for ids, labels in zip(*batch, strict=True)
    ]


class Problems:
    """Problems with short answers, and prompts of a wanted length."""

    def __init__(self, file: Path) -> None:
        tokenizer = embedded_tokenizer()
        self.ids: Callable[[str], Ids] = lambda text: (
            tokenizer(text, add_special_tokens=False).input_ids
        )
        problems = [json.loads(line) for line in file.read_text().splitlines()[:NUM_LOOKED_AT]]
        answers = [self.ids(problem["answer"] + "<|im_end|>") for problem in problems]
        both = zip(problems, answers, strict=True)
        self.fitting = [(one, ids) for one, ids in both if len(ids) <= LONGEST_ANSWER]
        self.draw = np.random.default_rng(SEED)

    def answers(self, number: int) -> list[Ids]:
        """Of other problems."""
        return [self.fitting[i][1] for i in self.draw.integers(len(self.fitting), size=number)]

    def prompt(self, question: str, at_least: float) -> Ids:
        asked = f"Question: {question}\nAnswer:"
        while True:
            ids = self.ids(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
            if len(ids) >= at_least:
                return ids
            solved, _ = self.fitting[self.draw.integers(len(self.fitting))]
            asked = f"Question: {solved['question']}\nAnswer: {solved['answer']}\n\n{asked}"


def pairs(file: Path, steps: int) -> list[dict[str, Any]]:
    """Rows of dpo: each answer is preferred to that of another problem."""
    problems, rows = Problems(file), []
    for problem, chosen in problems.fitting[: NUM_PAIRS * steps]:
        (rejected,) = problems.answers(1)
        longest = max(len(chosen), len(rejected))
        prompt = problems.prompt(problem["question"], PROMPT_TO_ANSWER * longest)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def groups(file: Path, steps: int) -> list[dict[str, Any]]:
    """Rows of grpo: a prompt and a group of answers to it."""
    problems, rows = Problems(file), []
    for problem, _ in problems.fitting[:steps]:
        made = problems.answers(GROUP)
        mean = sum(map(len, made)) / GROUP
        prompt = problems.prompt(problem["question"], PROMPT_TO_ANSWER * mean)
        rows.append({"prompt_ids": prompt, "completions": made})
    return rows


# How rows are made, and how many examples a step has.
METHODS: dict[str, tuple[Callable[[Path, int], list[dict[str, Any]]], int]] = {
    "sft": (conversations, BATCH),
    "dpo": (pairs, NUM_PAIRS),
    "grpo": (groups, GROUP),
}


def main() -> None:
    chosen = arguments()
    rows_of, batch = METHODS[chosen.method]
    steps = chosen.pairs + 1  # the first warms up
    with tempfile.TemporaryDirectory() as folder:
        rows, base = Path(folder) / "rows.json", Path(folder) / "base"
        rows.write_text(json.dumps(rows_of(chosen.data, steps)))
        write_base(base)
        given = [str(rows), str(base), str(batch), str(chosen.threads)]
        target = chosen.to / f"{chosen.method}-{chosen.data.stem}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in chosen.contenders:
            found[name] = in_turns(
                {one: [*command(one, chosen), one, *given] for one in (name, OURS)}, steps
            )
            # At once: the next one may need more memory than there is.
            target.write_text(table(found) + "\n")
            print(table(found), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=2, help="steps that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", help="all, if not given")
    parser.add_argument("--llama-factory-python", metavar="PATH", help="see README.md")
    parser.add_argument("--to", type=Path, default=Path("work/bench"))
    chosen = parser.parse_args()
    everyone = {
        "sft": [
            "hf padded to the cut-off", "trl padded", "trl padding-free",
            *(THEIRS if chosen.llama_factory_python else []), "siftune rows",
        ],
        "dpo": ["trl padded", "siftune rows"],
        "grpo": ["trl padded", "siftune rows"],
    }  # fmt: skip
    valid = everyone[chosen.method]
    chosen.contenders = chosen.contenders or valid
    for name in set(chosen.contenders) - set(valid):
        parser.error(f"{name!r} is no contender here. Valid: {', '.join(map(repr, valid))}")
    return chosen


def write_base(folder: Path) -> None:
    """SmolLM2-135M with random weights, which cost the same as its own, and its tokenizer."""
    path = sources.model_files(*BASE)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    embedded_tokenizer().save_pretrained(folder)


def command(name: str, chosen: argparse.Namespace) -> list[str]:
    """What runs a contender."""
    is_theirs = name in THEIRS
    script = "llama_factory" if is_theirs else chosen.method
    python = Path(chosen.llama_factory_python).absolute() if is_theirs else sys.executable
    return [str(python), str(Path(__file__).parent / "contenders" / f"{script}_steps.py")]


def in_turns(commands: dict[str, list[str]], steps: int) -> list[Pair]:
    """Steps of two trainers, but for the first. More at once would not fit into memory."""
    processes = {name: start(command) for name, command in commands.items()}
    pairs = []
    for number in range(steps):
        order = list(processes)[:: 1 if number % 2 else -1]
        pairs.append({name: step(name, processes[name]) for name in order})
    for process in processes.values():
        process.communicate()
    theirs, ours = processes
    return [Pair(pair[theirs], pair[ours]) for pair in pairs[1:]]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def step(name: str, process: subprocess.Popen[str]) -> dict[str, float]:
    """One step of a contender; the others wait."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"seconds"'):
            found: dict[str, float] = json.loads(line)
            return found
    raise SystemExit(f"{name} ended before its step")


def table(found: dict[str, list[Pair]]) -> str:
    """Medians of each, and ratios to ours of the same step."""
    last = list(found.values())[-1]
    lines = [
        "| contender | s a step | CPU s | peak MB | s to ours: median (min, max) "
        "| CPU s to ours | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pairs in {**found, OURS: [Pair(one.ours, one.ours) for one in last]}.items():
        runs = [one.theirs for one in pairs]
        clock, cpu = (statistics.median(run[what] for run in runs) for what in ("seconds", "cpu"))
        of_clock, of_cpu = (
            [one.theirs[what] / one.ours[what] for one in pairs] for what in ("seconds", "cpu")
        )
        lines.append(
            f"| {name} | {clock:.1f} | {cpu:.1f} | {runs[-1]['peak_mb']:.0f} "
            f"| {statistics.median(of_clock):.2f} ({min(of_clock):.2f}, {max(of_clock):.2f}) "
            f"| {statistics.median(of_cpu):.2f} | {runs[-1]['loss']:.5f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
