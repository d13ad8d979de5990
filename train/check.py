"""Check every section of params.yaml, and what can be known before the queue, before any stage runs."""

from pathlib import Path

from siftune import config, files, sources, stage


def main() -> None:
    params = config.load_all()
    sources.check(
        model_source=params.model.source, model_revision=params.model.revision, data=params.data
    )
    # The same text whatever the params: the stages after this one must not run again for it.
    with files.published_file(Path("data/checked.txt")) as aside:
        aside.write_text("params.yaml is valid.\n", encoding="utf-8")


if __name__ == "__main__":
    stage.run(main)
