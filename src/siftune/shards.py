"""Weights in safetensors files, read and written one at a time: only that one is in memory.

The format: github.com/huggingface/safetensors, "Format".
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from siftune import files

Files = dict[str, Path]  # by the name of a weight

_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def of_folder(folder: Path) -> Files:
    """The file of each weight, as transformers finds it."""
    whole = folder / SAFE_WEIGHTS_NAME
    if whole.exists():
        with safe_open(whole, "pt") as opened:
            return dict.fromkeys(opened.keys(), whole)
    weight_map = files.read_json(folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"]
    return {name: folder / file for name, file in weight_map.items()}


def read(source: Files, name: str) -> Tensor:
    """One weight on the CPU. Its pages of the file leave memory with it."""
    with safe_open(source[name], "pt") as opened:
        weight: Tensor = opened.get_tensor(name)
    return weight


def fit(source: Files, model: PreTrainedModel) -> bool:
    """Whether a model's weights are those in the files, by name, and of a dtype that we write."""
    weights = dict(model.named_parameters())
    return set(source) == set(weights) and all(one.dtype in _CODES for one in weights.values())


def write(
    model: PreTrainedModel, value_of: Callable[[str], Tensor], like: Files, folder: Path
) -> None:
    """Write a model's weights, each into a file of the name that it has in `like`.

    Args:
        model: has names, shapes and dtypes; `value_of` has the values.
    """
    weights = dict(model.named_parameters())
    for path in sorted(set(like.values())):
        own = {name: weights[name] for name in weights if like[name] == path}
        _write_file(own, value_of, folder / path.name)
    if path.name != SAFE_WEIGHTS_NAME:
        index = {
            "metadata": {
                "total_parameters": sum(one.numel() for one in weights.values()),
                "total_size": sum(one.nbytes for one in weights.values()),
            },
            "weight_map": {name: path.name for name, path in like.items()},
        }
        files.write_json(folder / SAFE_WEIGHTS_INDEX_NAME, index)


def _write_file(weights: dict[str, Tensor], value_of: Callable[[str], Tensor], path: Path) -> None:
    # Wide ones first, so that each begins at a multiple of its own width.
    names = sorted(weights, key=lambda name: (-weights[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + weights[name].nbytes
        header[name] = {
            "dtype": _CODES[weights[name].dtype],
            "shape": list(weights[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            value = value_of(name)
            assert (value.shape, value.dtype) == (weights[name].shape, weights[name].dtype)
            value.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
