"""The global batch, in examples, and how a machine makes it."""

from siftune.sections import Grpo
from siftune.stage import UserError


def budget(micro_batch: int | str) -> int | None:
    """Tokens of a pack, of a micro batch such as "4096 tokens"; None: it is a number of rows."""
    return int(micro_batch.split()[0]) if isinstance(micro_batch, str) else None


def rows_at_once(phase: str, *, global_batch: int, micro_batch: int | str, world_size: int) -> int:
    """How many rows a process is given at once; with a token budget all of its step, to be cut up.

    Raises:
        UserError: the processes cannot share a step.
    """
    if not isinstance(micro_batch, str):
        return micro_batch
    if global_batch % world_size:
        raise UserError(
            f"params.yaml: {phase}.global_batch: {world_size} processes cannot share "
            f"{global_batch} examples a step evenly. Choose a multiple of {world_size}."
        )
    return global_batch // world_size


def accumulation(phase: str, *, global_batch: int, micro_batch: int, world_size: int) -> int:
    """Micro batches per optimiser step, from the global batch of a phase.

    Raises:
        UserError: they do not divide.
    """
    at_once = micro_batch * world_size
    if global_batch % at_once:
        raise UserError(
            f"params.yaml: {phase}.global_batch: {global_batch} examples a step cannot be made of "
            f"{phase}.micro_batch "
            f"{micro_batch} x {world_size} processes = {at_once}: {global_batch} / {at_once} = "
            f"{global_batch / at_once:.2f}. Choose a multiple of {at_once}, or another micro batch."
        )
    return global_batch // at_once


def next_smaller(micro_batch: int, *, global_batch: int) -> int | None:
    """The largest micro batch of at most half the size that divides; None for one row.

    Args:
        global_batch: of one process, in examples.
    """
    fitting = [size for size in range(1, micro_batch // 2 + 1) if global_batch % size == 0]
    return max(fitting, default=None)


def num_own(num_rows: int, *, remainder: int, rank: int) -> int:
    """How many rows of an epoch's last batch are not there only to make it even over processes.

    Args:
        num_rows: of this process, in this batch.
        remainder: rows of the whole split that full batches of all processes leave over; 0: none.
            Accelerate's own is of another batch size once batches have been skipped.
    """
    return min(max(remainder - rank * num_rows, 0), num_rows) if remainder else num_rows


def require_prompts(grpo: Grpo, *, num_prompts: int | None = None) -> None:
    """Refuse completions a step that are not whole groups, or more prompts than there are.

    Args:
        num_prompts: of the training split, where that is known.

    Raises:
        UserError: with the arithmetic.
    """
    whole, rest = divmod(grpo.global_batch, grpo.num_generations)
    if rest:
        raise UserError(
            f"params.yaml: grpo.global_batch: {grpo.global_batch} completions a step are not whole "
            f"groups of grpo.num_generations {grpo.num_generations}: {grpo.global_batch} / "
            f"{grpo.num_generations} = {grpo.global_batch / grpo.num_generations:.2f} prompts. "
            f"Choose a multiple of {grpo.num_generations}."
        )
    if num_prompts is not None and num_prompts < whole:
        raise UserError(
            f"params.yaml: grpo.global_batch: {grpo.global_batch} completions a step are "
            f"{grpo.num_generations} of each of {whole} prompts, and the training split has "
            f"{num_prompts}. Choose at most {num_prompts * grpo.num_generations}."
        )
