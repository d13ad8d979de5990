"""Resolve the base model and the raw data, and write down exactly what they are."""

from pathlib import Path

from siftune import config, files, stage, tracking

RAW = Path("data/raw")


def main() -> None:
    params = config.load("model", "data")
    from siftune import architecture, models, sources
    from siftune.training import origin

    with tracking.stage("fetch", "model", "data") as run:
        architecture.require_fit(params.model)
        adapter = origin.fetch(params.model)
        base = models.fetch_base(params.model)
        if adapter:
            from siftune.training import adapters

            adapters.require_fit(adapter, params.model)
            base["adapter"] = origin.describe(params.model.adapter, adapter)
        with files.published_folder(RAW) as folder:
            sources.fetch_data(params.data, folder)
        raw = files.describe_folder(RAW)
        files.write_json(models.MANIFEST, base)
        files.write_json(
            Path("data/raw.json"),
            {
                "sources": [[one.source, one.revision] for one in params.data.sources],
                "files": raw,
            },
        )
        run.artifact(models.MANIFEST)
        run.report(model=_size(base["files"]), data=_size(raw))


def _size(described: dict) -> dict[str, int]:
    return {"num_files": len(described), "bytes": sum(file["size"] for file in described.values())}


if __name__ == "__main__":
    stage.run(main)
