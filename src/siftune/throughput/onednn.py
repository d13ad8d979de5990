"""Linear layers of a model that answers on a CPU: oneDNN's products, on weights in its own order.

PyTorch multiplies matrices in fp32 by MKL, which is slow where few rows meet a large weight, as
they do when answers are written token by token: there oneDNN takes 0.3 to 0.7 of the time.
Trainings have many rows, gain a hundredth or two, and would need each weight two times more.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def used_in(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, for answers alone: its linear layers are replaced where that is faster.

    That is on a CPU in fp32. A layer's own weight is given up; one that the input embedding shares
    stays there.
    """
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        for name in [name for name, layer in model.named_modules() if _gains(layer)]:
            model.set_submodule(name, Linear(model.get_submodule(name)))
    return model


def _gains(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear:
        return False
    return layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


class Linear(nn.Module):
    """x Wᵀ + b, without gradients."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # No buffer: what lies in an order of oneDNN's own is moved, saved and counted by nobody.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        self._bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[…, in] → […, out]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return product
