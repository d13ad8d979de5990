"""The global batch, in examples, and how a machine makes it."""

from siftune.stage import UserError


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
