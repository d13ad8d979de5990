"""A training whose weights and optimiser are spread over its processes: each saves what it holds.

No process ever holds all of them, and what a process reads back has the bits that it had.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from siftune.resume import agreement
from siftune.resume.checkpoints import SHARD

WEIGHTS, OPTIMIZER = f"{SHARD}{{:05}}.safetensors", f"{SHARD}{{:05}}.pt"


def save(model: nn.Module, optimizer: Optimizer, folder: Path, *, rank: int) -> None:
    """Write the parts of the trained weights and of the optimiser that this process holds."""
    weights = {
        name: _local(weight.detach()).contiguous() for name, weight in _trained(model).items()
    }
    save_file(weights, folder / WEIGHTS.format(rank))
    torch.save(_each(optimizer.state_dict(), _local), folder / OPTIMIZER.format(rank))


def load(model: nn.Module, optimizer: Optimizer, folder: Path, *, rank: int) -> None:
    """Put back what `save` of the same process wrote; as many processes train as then."""
    weights = load_file(folder / WEIGHTS.format(rank))
    trained = _trained(model)
    assert weights.keys() == trained.keys()
    for name, weight in trained.items():
        _local(weight.detach()).copy_(weights[name])
    state = torch.load(folder / OPTIMIZER.format(rank), map_location="cpu", weights_only=True)
    of_group = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, parts in state["state"].items():
        state["state"][number] = _each(parts, lambda part, of=of_group[number]: _as(part, of))
    optimizer.load_state_dict(state)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All weights, of an adapter its own; all processes gather, and the first keeps them."""
    _put_apart(model)
    is_adapter = isinstance(model, PeftModel)
    known: dict[int, Tensor] = {}  # tied weights stay one
    found = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if is_adapter and not weight.requires_grad:
            continue
        if id(weight) not in known:
            own = weight.detach()
            gathered = own.full_tensor() if isinstance(own, DTensor) else own
            known[id(weight)] = gathered.cpu() if agreement.is_first() else gathered.new_empty(0)
        found[name] = known[id(weight)]
    return found


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    _put_apart(model)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _put_apart(model: nn.Module) -> None:
    """After a forward without a backward, such as an evaluation's, some are still together."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(value: Any) -> Any:
    return value.to_local() if isinstance(value, DTensor) else value


def _as(part: Tensor, weight: Tensor) -> Tensor:
    """A part of the optimiser's state, spread as its weight is; a counter is nobody's part."""
    if not isinstance(weight, DTensor) or part.shape != weight.to_local().shape:
        return part
    return DTensor.from_local(
        part.to(weight.device),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )


def _each(tree: Any, change: Any) -> Any:
    """A nest of dicts and lists with each tensor changed."""
    if isinstance(tree, dict):
        return {key: _each(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_each(value, change) for value in tree]
    return change(tree) if isinstance(tree, Tensor) else tree
