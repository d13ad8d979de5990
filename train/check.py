"""Check all of params.yaml, and what else can be known, before any stage runs."""

from pathlib import Path
from types import ModuleType

from siftune import batches, config, files, preflight, stage
from siftune.doctor import place


def main() -> None:
    params = config.load_all()
    preflight.check(params)
    require_tasks(params.benchmark.tasks)
    # The last, because it takes seconds to import what knows TRL's options and templates.
    from siftune import models
    from siftune.chat import templates
    from siftune.training import requirements

    templates.require(params.encode.template)
    for section in config.phases(params):
        # A login node, where the pipeline fetches, has no GPU: there the training's job says it.
        if models.device().type == "cuda" or not place.on_cluster():
            requirements.require_machine(section.load)
            if section.phase == "grpo":
                requirements.require_generation(section)
        num_rows = batches.rows_at_once(
            section.phase,
            global_batch=section.global_batch,
            micro_batch=section.micro_batch,
            world_size=1,
        )
        method(section.phase).config(
            section, micro_batch=num_rows, num_accumulated=1, folder=Path("work")
        )
    # The same text whatever the params: the stages after this one must not run again for it.
    with files.published_file(Path("data/checked.txt")) as aside:
        aside.write_text("params.yaml is valid.\n", encoding="utf-8")


def method(phase: str) -> ModuleType:
    """The module that trains a phase; those of the others take their time to import, too."""
    if phase == "pretrain":
        from siftune.training import pretrain as module
    elif phase == "sft":
        from siftune.training import sft as module
    elif phase == "dpo":
        from siftune.training import dpo as module
    else:
        from siftune.training import grpo as module
    return module


def require_tasks(names: list[str]) -> None:
    ours = {path.stem for path in Path("eval/tasks").rglob("*.yaml")}
    if not set(names) <= ours:
        # Only lm-eval knows its own, and it takes half a minute to say.
        from siftune import benchmark

        benchmark.load_tasks(sorted(set(names) - ours))


if __name__ == "__main__":
    stage.run(main)
