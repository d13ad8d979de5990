"""What the processes of one training must agree on; with one process there is nothing to say."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process writes the files; known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def any_of(flag: bool) -> bool:
    """Whether any process says so; all ask at the same place of the training."""
    return bool(most(int(flag)))


def most(number: int) -> int:
    """The largest number that any process has."""
    if not dist.is_initialized():
        return number
    said = torch.tensor(number)
    dist.all_reduce(said, op=dist.ReduceOp.MAX, group=_group())
    return int(said)


def sums_of(numbers: list[float]) -> list[float]:
    """The sum of each number over all processes."""
    if not dist.is_initialized():
        return numbers
    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums, group=_group())
    found: list[float] = sums.tolist()
    return found


def told_by_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them; its error is raised on all of them, too."""
    if not dist.is_initialized():
        return make()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = make()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told, src=0, group=_group())
    if told[1] is not None:
        raise told[1]
    made: T = told[0]
    return made


def wait_for_all() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier(group=_group())


@cache
def _group() -> Any:
    # Over the CPU: a flag must not make a GPU wait for what it computes.
    return dist.new_group(backend="gloo")
