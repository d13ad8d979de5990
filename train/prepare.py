"""Turn raw rows into canonical records, split by group; no row is dropped without a reason."""

from pathlib import Path

from siftune import config, files, stage, tracking

PREPARED = Path("data/prepared")


def main() -> None:
    params = config.load("data", "prepare")
    from siftune.data import preparation

    with tracking.stage("prepare", "data", "prepare") as run:
        with files.published_folder(PREPARED) as folder:
            prepared = preparation.prepare(params.data, params.prepare, folder)
        run.report(**preparation.results(prepared))
        run.artifact(PREPARED / "facts.json")
        digest = files.sha256(PREPARED / "train.jsonl")
        run.dataset(PREPARED / "train.jsonl", name=params.data.name, digest=digest, context="train")


if __name__ == "__main__":
    stage.run(main)
