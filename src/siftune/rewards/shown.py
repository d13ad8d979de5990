"""What the report shows of a reinforced model: curves of its rewards, and completions to read."""

from pathlib import Path
from typing import Any, NamedTuple

from siftune import charts
from siftune.rewards import completions

NUM_EVALUATIONS = 5
# Beside the rewards: where a model cheats, one of these moves.
WATCHED = {
    "completion_tokens": "Tokens of a completion",
    "share_cut": "Share that does not end by itself",
    "share_of_equal_groups": "Share of prompts whose completions all earn the same",
    "entropy": "Entropy, in nats a token",
}


class Curve(NamedTuple):
    """One number over the steps."""

    title: str
    chart: charts.LineChart


def curves(rows: list[dict[str, str]]) -> list[Curve]:
    """The reward, each of its parts, and what else is watched, from the rows of the curve's CSV."""
    names = list(rows[0]) if rows else []
    titles = {"reward": "Reward, all parts by their weights"}
    titles |= {name: name.partition("/")[2] for name in names if name.startswith("rewards/")}
    found = ((title, _chart(rows, name)) for name, title in (titles | WATCHED).items())
    return [Curve(title, chart) for title, chart in found if chart]


def evaluations(path: Path = completions.PUBLISHED) -> dict[int, list[dict[str, Any]]]:
    """Step → completions, of some evaluations from the first to the last."""
    found = completions.read(path)
    return {step: found[step] for step in completions.spread(list(found), NUM_EVALUATIONS)}


def _chart(rows: list[dict[str, str]], name: str) -> charts.LineChart | None:
    lines = {
        line: [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        for line, column in (("train_mean", name), ("validation_mean", f"validation_{name}"))
    }
    drawn = {line: points for line, points in lines.items() if points}
    if not drawn:
        return None
    steps = charts.tight_scale(0, max(int(row["step"]) for row in rows), num_steps=4)
    values = [value for points in drawn.values() for _, value in points]
    return charts.LineChart(drawn, x=steps, y=charts.round_scale(values, num_steps=3))
