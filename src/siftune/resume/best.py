"""The weights with the lowest validation loss so far, and for how long none were better.

Both are in every checkpoint: a training that was killed keeps, and ends, what one would that was
not.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from siftune import files
from siftune.resume import agreement

STATE, WEIGHTS = "best.json", "best.safetensors"


@dataclass
class Best:
    """What evaluations have shown.

    Args:
        keep: remember the weights, too.
        patience: the evaluations without a better loss after which the training is over.
    """

    keep: bool
    patience: int | None
    loss: float = math.inf
    step: int = 0
    num_worse: int = 0
    _weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether to wait any longer is in vain."""
        return self.patience is not None and self.num_worse >= self.patience

    def seen(self, loss: float, step: int, model: nn.Module) -> None:
        """One evaluation of the model, in nats a token."""
        if loss < self.loss:
            self.loss, self.step, self.num_worse = loss, step, 0
            if self.keep and agreement.is_first():
                self._weights = {
                    name: weight.detach().cpu().clone() for name, weight in _trained(model).items()
                }
        else:
            self.num_worse += 1

    def put_back(self, model: nn.Module) -> None:
        """Give the model, on the first process, the weights that were best."""
        trained = _trained(model)
        for name, weight in self._weights.items():
            trained[name].data.copy_(weight)

    def save(self, folder: Path) -> None:
        """Into a checkpoint; nothing where nobody asks for it."""
        if self.keep or self.patience is not None:
            state = {"loss": self.loss, "step": self.step, "num_worse": self.num_worse}
            has_seen = math.isfinite(self.loss)
            files.write_json(folder / STATE, state if has_seen else {})
            if self._weights:
                save_file(self._weights, folder / WEIGHTS)

    def load(self, folder: Path) -> None:
        """From a checkpoint."""
        if (folder / STATE).exists():
            for name, value in files.read_json(folder / STATE).items():
                setattr(self, name, value)
            if self.keep and agreement.is_first() and math.isfinite(self.loss):
                self._weights = load_file(folder / WEIGHTS)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
