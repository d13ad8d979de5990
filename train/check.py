"""Check all of params.yaml, and what else can be known, before any stage runs."""

from pathlib import Path

from siftune import batches, config, files, llama_cpp, sources, stage


def main() -> None:
    params = config.load_all()
    sources.check(
        model_source=params.model.source, model_revision=params.model.revision, data=params.data
    )
    batches.accumulation(
        global_batch=params.sft.global_batch, micro_batch=params.sft.micro_batch, world_size=1
    )
    llama_cpp.require(params.to_gguf.types)
    require_tasks(params.benchmark.tasks)
    # The same text whatever the params: the stages after this one must not run again for it.
    with files.published_file(Path("data/checked.txt")) as aside:
        aside.write_text("params.yaml is valid.\n", encoding="utf-8")


def require_tasks(names: list[str]) -> None:
    ours = {path.stem for path in Path("eval/tasks").rglob("*.yaml")}
    if not set(names) <= ours:
        # Only lm-eval knows its own, and it takes half a minute to say.
        from siftune import benchmark

        benchmark.load_tasks(sorted(set(names) - ours))


if __name__ == "__main__":
    stage.run(main)
