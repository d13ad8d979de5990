"""A model whose linear layers are oneDNN's answers as it did."""

import copy

import packs
import pytest
import torch
from torch import nn

from siftune.throughput import onednn

TOLERANCE = 1e-5  # relative, in fp32


def plain(shape: str = "llama"):
    return packs.model(shape).merge_and_unload().eval()


def num_linear(model: nn.Module) -> int:
    return sum(type(layer) is nn.Linear for layer in model.modules())


@torch.no_grad()
def difference(model, other, ids: torch.Tensor) -> float:
    wanted = model(input_ids=ids).logits
    return ((other(input_ids=ids).logits - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("shape", packs.SHAPES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (3, 4)], ids=str)
def test_the_logits_are_the_same(shape, size):
    model = plain(shape)
    ids = torch.randint(packs.VOCABULARY, size, generator=torch.Generator().manual_seed(1))
    faster = onednn.used_in(copy.deepcopy(model))
    assert num_linear(model) > num_linear(faster) == 0
    assert difference(model, faster, ids) < TOLERANCE


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_whatever_the_rows(bias):
    layer = nn.Linear(12, 20, bias=bias)
    (faster,) = onednn.used_in(nn.Sequential(copy.deepcopy(layer)))
    for rows in (torch.randn(7, 12), torch.randn(2, 3, 12), torch.randn(0, 12), torch.randn(12)):
        torch.testing.assert_close(faster(rows), layer(rows))
    every_second = torch.randn(5, 24)[:, ::2]
    torch.testing.assert_close(faster(every_second), layer(every_second))


def test_only_one_copy_of_a_weight_is_held():
    model = plain()
    layers = onednn.used_in(model).modules()
    held = {weight.data_ptr() for weight in model.parameters()}
    norms = [layer for layer in layers if hasattr(layer, "variance_epsilon")]
    assert len(held) == len(norms) + 1  # the input embedding
    assert model.get_output_embeddings() is not None


def test_it_generates():
    model = plain()
    ids = torch.tensor([[3, 4, 5]])
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(ids, **how)
    assert torch.equal(onednn.used_in(model).generate(ids, **how), wanted)


def test_where_it_is_not_faster_all_stays(monkeypatch):
    halved = plain().to(torch.bfloat16)
    assert num_linear(onednn.used_in(copy.deepcopy(halved))) == num_linear(halved)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = plain()
    assert num_linear(onednn.used_in(copy.deepcopy(model))) == num_linear(model)


def test_another_weight_would_show(monkeypatch):
    model = plain()
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda weight: reorder(weight.flip(0))
    )
    ids = torch.tensor([[1, 2, 3]])
    assert difference(model, onednn.used_in(copy.deepcopy(model)), ids) > 100 * TOLERANCE
