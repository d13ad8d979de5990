"""One function over many items on all cores, in order and with few items in flight."""

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

from siftune import processes

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 3  # a worker: one at work, the others so that it need not wait


def num_cores() -> int:
    """The cores that this process may use (fewer than the machine has, in a Slurm job)."""
    return len(os.sched_getaffinity(0))


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`function` of each item, computed in as many processes as there are cores.

    The processes are forks: what the function refers to is there without being copied.
    """
    remaining = iter(items)
    first = list(islice(remaining, 2))
    if len(first) < 2 or num_cores() == 1:
        yield from map(function, chain(first, remaining))
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_cores(), fork, _install, (function, os.getpid())) as pool:
        waiting: deque[Future[Any]] = deque()
        for item in chain(first, remaining):
            if len(waiting) == IN_FLIGHT * num_cores():
                yield waiting.popleft().result()
            waiting.append(pool.submit(_apply, item))
        while waiting:
            yield waiting.popleft().result()


_installed: Callable[..., Any]


def _install(function: Callable[..., Any], parent: int) -> None:
    processes.end_with_parent(parent)
    global _installed
    _installed = function
    # What was there before the fork is never garbage: looking through it would copy it, too.
    gc.freeze()
    gc.set_threshold(50_000)


def _apply(item: Any) -> Any:
    return _installed(item)
