"""Register the merged model in MLflow, by reference, and let the alias `best` follow the metric."""

import tempfile
from pathlib import Path

from siftune import config, files, registry, stage, tracking

MERGED, TEST, CARD = Path("models/merged"), Path("data/prepared/test.jsonl"), Path("report/card.md")


def main() -> None:
    params = config.load("register")
    compared = files.read_json(tracking.METRICS / "compare.json")
    metric = params.register.metric
    if metric not in compared:
        valid = ", ".join(name for name in compared if name != "cost")
        raise stage.UserError(
            f"params.yaml: register.metric: {metric} was not measured. Valid: {valid}"
        )
    with tracking.stage("register", "register") as run, tempfile.TemporaryDirectory() as folder:
        reference = registry.reference(MERGED)
        files.write_json(Path(folder) / registry.REFERENCE, reference)
        registered = registry.register(
            run,
            params.register.name,
            reference=Path(folder),
            score=registry.Score(
                metric=metric, value=compared[metric]["tuned"], test_sha256=files.sha256(TEST)
            ),
            tags={"siftune.model_sha256": reference["sha256"]},
        )
        run.artifact(CARD)
        run.report(version=registered.version, best=registered.is_best)
    print(f"registered: models:/{params.register.name}/{registered.version}")


if __name__ == "__main__":
    stage.run(main)
