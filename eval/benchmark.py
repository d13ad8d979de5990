"""Let the base and the tuned model answer the same tasks, and keep every answer with its scores."""

from pathlib import Path

from siftune import config, files, provenance, stage, tracking

MERGED, ANSWERS = Path("models/merged"), Path("data/answers")


def main() -> None:
    params = config.load("benchmark", "encode")
    from siftune import benchmark, models, scored

    tasks = benchmark.load_tasks(params.benchmark.tasks)
    weights = {
        "base": files.read_json(models.MANIFEST)["sha256"],
        "tuned": provenance.digest(files.describe_folder(MERGED)),
    }
    # The base is asked in the form that the tuned model learned.
    folders = {"base": (models.base_folder(), models.TOKENIZER), "tuned": (MERGED, MERGED)}
    with tracking.stage("benchmark", "benchmark", "encode") as run:
        run.dataset(
            test := Path("data/prepared/test.jsonl"),
            name="test",
            digest=files.sha256(test),
            context="test",
        )
        with files.published_folder(ANSWERS) as folder:
            for name, digest in weights.items():
                model = benchmark.ChatModel(
                    *folders[name], params.benchmark, system=params.encode.system
                )
                results = benchmark.evaluate(model, digest, tasks, params.benchmark)
                files.write_jsonl(folder / f"{name}.jsonl", scored.items(results))
                files.write_json(folder / "directions.json", scored.directions(results))
                run.report(**{name: scored.metrics(results)})
        run.artifact(ANSWERS)


if __name__ == "__main__":
    stage.run(main)
