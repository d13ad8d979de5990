"""Turn raw rows into canonical records, split by group; no row is dropped without a reason."""

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from siftune import config, files, records, stage, tracking

PREPARED = Path("data/prepared")


def main() -> None:
    params = config.load("data", "prepare")
    with tracking.stage("prepare", "data", "prepare") as run:
        rows = islice(records.read(Path(params.data.path)), params.data.num_examples)
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in records.SPLITS}
        rejected: list[records.Rejected] = []
        for outcome in records.canonical(rows, params.data):
            if isinstance(outcome, records.Rejected):
                rejected.append(outcome)
            else:
                splits[records.split_of(outcome["group"], params.prepare)].append(outcome)
        refuse_empty(splits, rejected)
        with files.published_folder(PREPARED) as folder:
            for name, kept in splits.items():
                files.write_jsonl(folder / f"{name}.jsonl", kept)
            files.write_jsonl(folder / "rejected.jsonl", (row._asdict() for row in rejected))
        num_kept = sum(map(len, splits.values()))
        groups = {record["group"] for kept in splits.values() for record in kept}
        run.report(
            rows={"in": num_kept + len(rejected), "kept": num_kept, "rejected": len(rejected)},
            rejected=dict(Counter(row.reason for row in rejected)),
            splits={name: len(kept) for name, kept in splits.items()},
            num_groups=len(groups),
        )
        digest = files.sha256(PREPARED / "train.jsonl")
        run.dataset(PREPARED / "train.jsonl", name=params.data.name, digest=digest, context="train")


def refuse_empty(splits: dict[str, list], rejected: list[records.Rejected]) -> None:
    empty = [name for name, kept in splits.items() if not kept]
    if empty:
        first = f" First rejection: {rejected[0].place}: {rejected[0].reason}." if rejected else ""
        raise stage.UserError(
            f"params.yaml: prepare: no row falls into {', '.join(empty)} "
            f"({len(rejected)} rows were rejected). More rows, or other shares in "
            f"prepare.validation and prepare.test.{first}"
        )


if __name__ == "__main__":
    stage.run(main)
