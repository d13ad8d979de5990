"""What is watched of a training besides its loss, as curves over its steps; the report shows it."""

from typing import NamedTuple

from siftune import charts

# By phase: a column of its curve's CSV, alone or as validation_…, and what it is.
NUMBERS = {
    "pretrain": {"perplexity": "Perplexity", "token_accuracy": "Share of tokens foreseen"},
    "sft": {},
    "dpo": {
        "reward_margin": "Reward margin, chosen less rejected",
        "reward_accuracy": "Share of pairs with a margin above 0",
        "chosen_logprob": "Log-probability of a chosen answer, in nats",
        "rejected_logprob": "Log-probability of a rejected answer, in nats",
    },
    "grpo": {
        "reward": "Reward, all parts by their weights",
        # Where a model cheats, one of these moves.
        "completion_tokens": "Tokens of a completion",
        "share_cut": "Share that does not end by itself",
        "share_of_equal_groups": "Share of prompts whose completions all earn the same",
        "entropy": "Entropy, in nats a token",
    },
}
PART = "rewards/"  # of a reward; the rest is its name


class Curve(NamedTuple):
    """One number over the steps."""

    title: str
    chart: charts.LineChart


def curves(phase: str, rows: list[dict[str, str]]) -> list[Curve]:
    """All of a phase that its curve's CSV has, the parts of a reward behind their sum."""
    parts = {name: name.removeprefix(PART) for name in (rows or [{}])[0] if name.startswith(PART)}
    titles: dict[str, str] = {}
    for name, title in NUMBERS[phase].items():
        titles |= {name: title} | (parts if name == "reward" else {})
    found = ((title, _chart(rows, name)) for name, title in titles.items())
    return [Curve(title, chart) for title, chart in found if chart]


def _chart(rows: list[dict[str, str]], name: str) -> charts.LineChart | None:
    lines = {
        line: [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        for line, column in (("train_mean", name), ("validation_mean", f"validation_{name}"))
    }
    drawn = {line: points for line, points in lines.items() if points}
    if not drawn:
        return None
    steps = charts.steps_scale(max([1, *(int(row["step"]) for row in rows)]), num_steps=4)
    values = [value for points in drawn.values() for _, value in points]
    return charts.LineChart(drawn, x=steps, y=charts.round_scale(values, num_steps=3))
