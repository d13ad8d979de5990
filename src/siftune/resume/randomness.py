"""What is drawn, from its place in the training alone: there is no state of a generator to save."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class ByEpoch(Sampler[int]):
    """TRL's sampler, in an order that (seed, epoch) alone decide; its own is that of a whole run.

    Accelerate tells the epoch.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of which the order is asked for next."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self._sampler.shuffle:
            self._sampler.generator.manual_seed(seed(self._sampler.seed, self._epoch))
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def seed(*place: int) -> int:
    """The seed of a place in a training, such as (seed, epoch)."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])
