"""What the stages measured, read back for people: scores with intervals, times, memory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune import files, wording
from siftune.sections import PHASES
from siftune.tracking import METRICS

# The order of the pipeline, which is the order of a story; a stage that did not run is left out.
STAGES = (
    *("check", "fetch", "prepare", "encode", *PHASES, "merge", "benchmark", "samples", "compare"),
    *("to_gguf", "gguf_check", "card", "register", "report"),
)
BASE_MODEL = Path("models/base.json")
TRAINING_SPLIT = Path("data/prepared/train.jsonl")
Z95 = 1.959964  # two-sided 95 % of the normal distribution


def read() -> dict[str, dict[str, Any]]:
    """metrics/<stage>.json of every stage that has one, in the pipeline's order.

    That of a phase which was left out is empty, and not among them.
    """
    paths = {stage: METRICS / f"{stage}.json" for stage in STAGES}
    found = {stage: files.read_json(path) for stage, path in paths.items() if path.is_file()}
    return {stage: measured for stage, measured in found.items() if measured}


@dataclass(frozen=True)
class Comparison:
    """One metric on the same items, base against tuned, as `compare` measured it.

    Scores of right-or-wrong items are shares and worded in percent, all others as they are.
    """

    name: str
    n: int
    base: float
    base_stderr: float
    tuned: float
    tuned_stderr: float
    difference: float
    ci95: list[float]
    p: float
    verdict: str  # better | same | worse
    test: str

    @property
    def is_share(self) -> bool:
        """McNemar's test is for items that are right or wrong."""
        return self.test.startswith("mcnemar")

    def score(self, value: float) -> str:
        """A score in words: 58.2% or 0.6134."""
        return wording.percent(value) if self.is_share else f"{value:.4g}"

    def error(self, stderr: float) -> str:
        """A standard error in words, in percent points or in the score's own unit."""
        return f"{100 * stderr:.1f}" if self.is_share else f"{stderr:.2g}"

    def change(self, value: float) -> str:
        """A signed difference in words, in percent points or in the score's own unit."""
        return f"{100 * value:+.1f}" if self.is_share else f"{value:+.4g}"

    def words(self) -> dict[str, str]:
        """All numbers in words, by column."""
        return {
            "n": wording.count(self.n),
            "base": self.score(self.base),
            "base_stderr": self.error(self.base_stderr),
            "tuned": self.score(self.tuned),
            "tuned_stderr": self.error(self.tuned_stderr),
            "difference": self.change(self.difference),
            "ci95": f"{self.change(self.ci95[0])} to {self.change(self.ci95[1])}",
            "p": wording.probability(self.p),
            "verdict": self.verdict,
        }

    def statement(self) -> str:
        """The verdict in a sentence."""
        return {
            "better": "The tuned model is better than its base.",
            "worse": "The tuned model is worse than its base.",
            "same": "No difference between the tuned model and its base could be shown.",
        }[self.verdict]

    def evidence(self) -> str:
        """What the verdict rests on, in one line."""
        words = self.words()
        points = " points" if self.is_share else ""
        sign = "" if words["p"].startswith("<") else "= "
        return (
            f"{words['difference']}{points}, 95% interval {words['ci95']}, p {sign}{words['p']}, "
            f"on the same {words['n']} items"
        )

    def interval(self, value: float, stderr: float) -> tuple[float, float]:
        """The 95 % interval of one score: Wilson's (1927) for shares, the normal one else."""
        if not self.is_share:
            return value - Z95 * stderr, value + Z95 * stderr
        shrink = 1 + Z95**2 / self.n
        centre = (value + Z95**2 / (2 * self.n)) / shrink
        half = Z95 * math.sqrt(value * (1 - value) / self.n + (Z95 / (2 * self.n)) ** 2) / shrink
        return max(0.0, centre - half), min(1.0, centre + half)


def comparisons(metrics: dict[str, dict[str, Any]]) -> list[Comparison]:
    """What `compare` found, in its order; empty when it did not run."""
    found = metrics.get("compare", {})
    return [Comparison(name, **result) for name, result in found.items() if name != "cost"]


def headline(comparisons: list[Comparison], name: str) -> Comparison | None:
    """The comparison of that name, else the first one, if any."""
    named = [one for one in comparisons if one.name == name]
    return next(iter([*named, *comparisons]), None)


@dataclass(frozen=True)
class Cost:
    """Wall time and peak memory of one stage."""

    stage: str
    seconds: float
    memory: float  # bytes
    gpu_memory: float | None  # bytes; None where the stage used no GPU


def costs(metrics: dict[str, dict[str, Any]]) -> list[Cost]:
    """What each stage cost, in the pipeline's order."""
    found = []
    for stage, results in metrics.items():
        cost = results["cost"]
        gpu = cost.get("peak_gpu_memory_mb")
        found.append(
            Cost(
                stage,
                seconds=cost["wall_seconds"],
                memory=cost["peak_memory_mb"] * 2**20,
                gpu_memory=None if gpu is None else gpu * 2**20,
            )
        )
    return found


def origins() -> dict[str, str]:
    """The sha256 of the `base_model` and of the `training_split`, of those that are there."""
    found = {}
    if BASE_MODEL.exists():
        found["base_model"] = files.read_json(BASE_MODEL)["sha256"]
    if TRAINING_SPLIT.exists():
        found["training_split"] = files.sha256(TRAINING_SPLIT)
    return found
