"""The report: one self-contained page about one run, from the files that its stages left."""

import csv
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from siftune import charts, decoding, files, provenance, rendering, results, watched
from siftune.rewards import shown
from siftune.sections import PHASES, Decoding

PAGE = Path("report/index.html")
SAMPLES = Path("data/samples.jsonl")
ANSWERS = Path("data/answers")
PLOTS = Path("plots")
TOKEN_LENGTHS = Path("plots/token_lengths.csv")
NUM_SAMPLES = 5


def render(params: dict[str, Any]) -> str:
    """The page as HTML, from all sections of params.yaml; a stage that left nothing is left out."""
    metrics = results.read()
    comparisons = results.comparisons(metrics)
    headline = results.headline(comparisons, params["register"]["metric"])
    return rendering.render(
        "report.html.j2",
        params=params,
        params_yaml=yaml.safe_dump(params, sort_keys=False, allow_unicode=True),
        metrics=dict.fromkeys(results.STAGES) | metrics,
        comparisons=comparisons,
        headline=headline,
        scales={one.name: score_scale(one) for one in comparisons},
        samples=read_samples(headline),
        decodings=decodings(params["samples"]),
        token_lengths=read_token_lengths(),
        curves={phase: read_curves(PLOTS / f"{phase}.csv") for phase in PHASES},
        watched={
            phase: watched.curves(phase, read_csv(PLOTS / f"{phase}.csv")) for phase in PHASES
        },
        evaluations=shown.evaluations(),
        costs=results.costs(metrics),
        origins=results.origins(),
        tags=provenance.tags(params),
        versions=provenance.stack(),
    )


def score_scale(comparison: results.Comparison) -> charts.Scale:
    """0 to 100 % for shares; else what the two intervals need."""
    if comparison.is_share:
        return charts.Scale(0.0, 1.0, step=0.25, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    return charts.round_scale(
        [
            *comparison.interval(comparison.base, comparison.base_stderr),
            *comparison.interval(comparison.tuned, comparison.tuned_stderr),
        ]
    )


@dataclass(frozen=True)
class Answer:
    """What one model says to one prompt; the mark says right or wrong, None not scored."""

    model: str
    text: str
    mark: bool | None


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers of both models, the base's first, by each decoding."""

    prompt: str
    reference: str
    answers: dict[str, list[Answer]]


def read_samples(headline: results.Comparison | None) -> list[Sample]:
    """The first samples, marked by the headline's metric where its scores are right or wrong."""
    if not SAMPLES.exists():
        return []
    marks = {model: _marks(model, headline) for model in ("base", "tuned")}
    return [
        Sample(
            prompt=row["prompt"],
            reference=row["reference"],
            answers={
                name: [
                    Answer(model, texts[model], _mark(texts[model], marks[model].get(row["id"])))
                    for model in marks
                ]
                for name, texts in row["answers"].items()
            },
        )
        for row in list(files.read_jsonl(SAMPLES))[:NUM_SAMPLES]
    ]


def decodings(samples: dict[str, Any]) -> dict[str, str]:
    """Each of `samples.decodings` in words."""
    return {
        name: decoding.words(Decoding(**settings))
        for name, settings in samples["decodings"].items()
    }


def _marks(model: str, headline: results.Comparison | None) -> dict[str, tuple[str, float]]:
    path = ANSWERS / f"{model}.jsonl"
    if headline is None or not headline.is_share or not path.exists():
        return {}
    task, _, metric = headline.name.partition("/")
    return {
        row["id"]: (row["answer"], row["scores"][metric])
        for row in files.read_jsonl(path)
        if row["task"] == task
    }


def _mark(answer: str, scored: tuple[str, float] | None) -> bool | None:
    # The benchmark cuts at its stop strings; a score for a text that begins otherwise is another's.
    if scored is None or not answer.strip().startswith(scored[0].strip()):
        return None
    return scored[1] == 1.0


def read_token_lengths() -> dict[str, charts.Histogram]:
    """By phase (one alone has no name) the histogram of rows by length in tokens, by split."""
    if not TOKEN_LENGTHS.exists():
        return {}
    counts: dict[str, dict[int, int]] = {}
    for row in read_csv(TOKEN_LENGTHS):
        counts.setdefault(row["split"], {})[int(row["tokens"])] = int(row["rows"])
    edges = sorted({edge for bins in counts.values() for edge in bins})
    # Empty bins are not in the file: the narrowest gap between two edges is one bin.
    width = min((b - a for a, b in pairwise(edges)), default=1)
    return charts.histograms(counts, bin_width=width)


def read_curves(path: Path) -> dict[str, charts.LineChart]:
    """The charts of `loss` and `learning_rate` over optimiser steps, those that have points."""
    rows = read_csv(path)
    lines = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        for name in ("train_loss", "validation_loss", "learning_rate")
    }
    drawn = {name: points for name, points in lines.items() if points}
    rate = drawn.pop("learning_rate", None)
    steps = charts.steps_scale(max([1, *(int(row["step"]) for row in rows)]), num_steps=6)
    curves = {}
    if drawn:
        losses = charts.round_scale(loss for points in drawn.values() for _, loss in points)
        curves["loss"] = charts.LineChart(drawn, x=steps, y=losses)
    if rate:
        rates = charts.round_scale([0.0, *(value for _, value in rate)], num_steps=2)
        curves["learning_rate"] = charts.LineChart({"learning_rate": rate}, x=steps, y=rates)
    return curves


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a stage wrote; none where there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
