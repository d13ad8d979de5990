"""What a phase trained, folded into the weights one at a time, each by PEFT's own layer."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from siftune import shards
from siftune.training import adapters

# From a weight's name in the model and its values to those after the phase, in the same dtype.
Fold = Callable[[str, Tensor], Tensor]
# What PEFT changes or reads when it loads an adapter is then the adapter alone, not the base.
_STAYS = (True, False, "gaussian", "orthogonal")


class OnlyTogetherError(Exception):
    """Why what a phase trained can only be merged with all weights in memory."""


def of(folder: Path, model: PreTrainedModel) -> Fold:
    """What `folder` does to each weight of `model`, whose own weights are not looked at.

    A sum is made in fp32, and rounded to the weight's dtype.

    Raises:
        OnlyTogetherError: one weight after this phase depends on more than itself.
    """
    if adapters.is_adapter(folder):
        return _Adapter(folder, model)
    source = shards.of_folder(folder)
    if not shards.fit(source, model):
        raise OnlyTogetherError(f"transformers converts the weights in {folder}")
    return lambda name, weight: shards.read(source, name).to(weight.dtype)


class _Adapter:
    """PEFT's layers on a base that takes no memory; each is lent its own weight for its merge."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        config = PeftConfig.from_pretrained(str(folder))
        _require_weight_by_weight(folder, config)
        merger = PeftModel.from_pretrained(_weightless(model), str(folder))
        self._layers = {
            name: layer
            for name, layer in merger.get_base_model().named_modules()
            if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper)
        }
        if model.config.tie_word_embeddings:
            for name in adapters.embeddings(model).values():
                _require_still_tied(folder, config, self._layers.get(name))

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        owner, inner = self._owner(name)
        layer = self._layers.get(owner)
        if isinstance(layer, ModulesToSaveWrapper):
            trained = layer.modules_to_save[layer.active_adapter].get_parameter(inner)
            return trained.data.to(weight.dtype)
        if layer is None or inner != "weight":
            return weight
        if isinstance(layer, AuxiliaryTrainingWrapper):
            layer = layer.token_adapter
        base = layer.get_base_layer()
        nothing, base.weight.data = base.weight.data, weight.float()
        layer.merge(safe_merge=True)
        merged, base.weight.data = base.weight.data, nothing
        return merged.to(weight.dtype)

    def _owner(self, name: str) -> tuple[str, str]:
        """The outermost layer of PEFT's around a weight, and the weight's name in it."""
        parts = name.split(".")
        for depth in range(1, len(parts)):
            if (owner := ".".join(parts[:depth])) in self._layers:
                return owner, ".".join(parts[depth:])
        return "", name


def _require_weight_by_weight(folder: Path, config: PeftConfig) -> None:
    if not isinstance(config, LoraConfig):
        raise OnlyTogetherError(f"{folder} is no LoRA, but {config.peft_type}")
    if config.init_lora_weights not in _STAYS:
        raise OnlyTogetherError(
            f"{folder}: {config.init_lora_weights} takes its start from the base"
        )
    others = (config.lora_bias, config.target_parameters, config.layer_replication)
    if config.bias != "none" or any(others):
        raise OnlyTogetherError(f"{folder} changes more than matrices of linear layers")


def _require_still_tied(folder: Path, config: LoraConfig, layer: nn.Module | None) -> None:
    is_whole = isinstance(layer, ModulesToSaveWrapper)
    if isinstance(layer, BaseTunerLayer) or (is_whole and not config.ensure_weight_tying):
        raise OnlyTogetherError(f"{folder} adapts one of two layers with the same weights")


def _weightless(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in fp32 on the CPU, each of whose weights is the same four bytes of zero."""
    zeros = {
        id(one): nn.Parameter(torch.zeros(()).expand(one.shape), requires_grad=False)
        for one in model.parameters()
    }
    return copy.deepcopy(model, zeros)
