"""Test on the same items whether the tuned model is better than its base, metric by metric."""

from pathlib import Path
from typing import Any

from siftune import config, files, results, stage, tracking

ANSWERS = Path("data/answers")


def main() -> None:
    params = config.load("compare")
    from siftune import significance

    base, tuned = scores(ANSWERS / "base.jsonl"), scores(ANSWERS / "tuned.jsonl")
    higher_is_better = files.read_json(ANSWERS / "directions.json")
    with tracking.stage("compare", "compare") as run:
        for metric in base | tuned:
            found = significance.compare(
                base.get(metric, {}),
                tuned.get(metric, {}),
                params.compare,
                higher_is_better=higher_is_better[metric],
            )
            run.report(**{metric: found})
            comparison = results.Comparison(metric, **found)
            print(f"{metric}: {comparison.verdict}: {comparison.evidence()}")


def scores(path: Path) -> dict[str, dict[str, float]]:
    """{"task/metric": {item id: score}}."""
    found: dict[str, dict[str, float]] = {}
    row: dict[str, Any]
    for row in files.read_jsonl(path):
        for metric, score in row["scores"].items():
            found.setdefault(f"{row['task']}/{metric}", {})[row["id"]] = score
    return found


if __name__ == "__main__":
    stage.run(main)
