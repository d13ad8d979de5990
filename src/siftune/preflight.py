"""What is wrong with the params, as far as a moment shows: no library of models is imported."""

from typing import Any

from siftune import batches, config, decoding, gguf_limits, llama_cpp, sources
from siftune.data import kinds
from siftune.sections import Dpo, Grpo, Training
from siftune.stage import UserError
from siftune.training import origin, requirements


def check(params: Any, *, world_size: int = 1) -> None:
    """Refuse what a stage would refuse later, from the params and from what is installed.

    Args:
        params: all sections, as `config.load_all` reads them.
        world_size: how many processes will train together, where that is known.

    Raises:
        UserError: the first thing that is wrong.
    """
    sources.check_model(params.model)
    origin.check(params.model)
    sources.check_data(params.data)
    for section in config.phases(params):
        asked = {"global_batch": section.global_batch, "world_size": world_size}
        num_rows = batches.rows_at_once(section.phase, micro_batch=section.micro_batch, **asked)
        batches.accumulation(section.phase, micro_batch=num_rows, **asked)
        requirements.require_consistent(section)
        _require_room(section, params.encode.max_length)
        if isinstance(section, Grpo):
            from siftune.rewards import choosing

            batches.require_prompts(section)
            choosing.choose(section.rewards, "grpo.rewards")
    _require_rows(params)
    decoding.require(params.samples)
    llama_cpp.require(params.to_gguf.types)
    gguf_limits.require(params.to_gguf.types, params.gguf_check.limits)
    _require_metric(params.register.metric, params.benchmark.tasks)


def _require_rows(params: Any) -> None:
    """As far as formats that are named tell what the rows are."""
    told = {kinds.phase_of_format(source.format) for source in params.data.sources}
    # One that is detected may hold any.
    known = told - {None} if None in told else set(kinds.ROWS)
    trained = {section.phase for section in config.phases(params)}
    kinds.require(
        {phase: (phase in trained, phase in told) for phase in kinds.ROWS if phase in known}
    )


def _require_room(section: Training, max_length: int) -> None:
    budget = batches.budget(section.micro_batch)
    is_of_pairs = isinstance(section, Dpo) and section.loss != "kto"
    what, needed = ("a pair", 2 * max_length) if is_of_pairs else ("a row", max_length)
    if isinstance(section, Grpo):
        needed += section.max_new_tokens
    if budget is not None and budget < needed:
        raise UserError(
            f"params.yaml: {section.phase}.micro_batch: {budget} tokens, but {what} may have "
            f'{needed} (encode.max_length: {max_length}): write "{needed} tokens" or more, or '
            "lower encode.max_length."
        )


def _require_metric(metric: str, tasks: list[str]) -> None:
    if metric.partition("/")[0] not in tasks:
        raise UserError(
            f"params.yaml: register.metric: {metric} is of none of benchmark.tasks: "
            f"{', '.join(tasks)}. It is written TASK/METRIC or TASK/METRIC/FILTER."
        )
