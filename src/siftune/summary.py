"""What came out, for a terminal or a Slurm log: base against tuned, its cost, where to look."""

from pathlib import Path

from siftune import results, wording
from siftune.stage import UserError

COLUMNS = {
    "metric": "metric",
    "n": "items",
    "base": "base",
    "base_stderr": "stderr",
    "tuned": "tuned",
    "tuned_stderr": "stderr",
    "difference": "difference",
    "ci95": "95% interval",
    "p": "p",
    "verdict": "verdict",
}
LEFT_ALIGNED = ("metric", "verdict")
PAGE = Path("report/index.html")
NUM_LONGEST = 3


def main() -> None:
    """Print the summary of the run in the current folder.

    Raises:
        UserError: no stage has left its metrics here.
    """
    metrics = results.read()
    if not metrics:
        raise UserError(
            f"there is nothing to sum up: {Path.cwd()} has no metrics/*.json. Run `make demo` or "
            "`dvc repro` first, in the repository's root."
        )
    for line in [*table(results.comparisons(metrics)), "", cost(results.costs(metrics)), *places()]:
        print(line)


def table(comparisons: list[results.Comparison]) -> list[str]:
    """Base against tuned, a metric a line, in aligned ASCII."""
    if not comparisons:
        return ["Nothing was compared yet: `dvc repro compare` does it."]
    rows = [COLUMNS, *({"metric": one.name, **one.words()} for one in comparisons)]
    widths = {column: max(len(row[column]) for row in rows) for column in COLUMNS}
    return [
        "  ".join(
            row[column].ljust(width) if column in LEFT_ALIGNED else row[column].rjust(width)
            for column, width in widths.items()
        ).rstrip()
        for row in rows
    ]


def cost(costs: list[results.Cost]) -> str:
    """How long the stages took, and which ones took longest."""
    longest = sorted(costs, key=lambda one: one.seconds, reverse=True)[:NUM_LONGEST]
    named = ", ".join(f"{one.stage} {wording.duration(one.seconds)}" for one in longest)
    total = wording.duration(sum(one.seconds for one in costs))
    return f"{len(costs)} stages took {total} in all; the longest: {named}."


def places() -> list[str]:
    """Where to look further."""
    page = f"The report is {PAGE}." if PAGE.exists() else "`dvc repro report` writes the report."
    return [page, "`make ui` opens MLflow on 127.0.0.1."]
