import packs
import pytest
import torch
from torch import nn

from siftune.throughput import attention, head, layout, loss, planner


@pytest.fixture
def made() -> layout.Layout:
    ids, labels = packs.rows()
    (pack,) = planner.plan(ids, 1000)
    return layout.lay_out(pack, ids, labels)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_chunks_give_the_loss_and_the_gradient_of_all_logits(made, softcap, chunk, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(len(made.sources), 8, dtype=torch.float64, requires_grad=True)
    output_head = nn.Linear(8, packs.VOCABULARY, bias=False, dtype=torch.float64)
    output_head.requires_grad_(False)
    logits = output_head(hidden)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    wanted = -loss.token_log_probs(logits[None], made).sum()
    found = head.nll(hidden, output_head, made, softcap)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    (own,) = torch.autograd.grad(found * 2, hidden)
    (full,) = torch.autograd.grad(wanted * 2, hidden)
    torch.testing.assert_close(own, full, rtol=1e-10, atol=1e-12)


def test_a_head_that_is_trained_gets_its_gradient(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)
    model, rows = packs.model("llama"), packs.rows()
    model.get_output_embeddings().requires_grad_(True)
    assert packs.difference(packs.packed(model, rows), packs.alone(model, rows)) < 1e-5


def test_no_logits_are_computed_for_a_frozen_head(made, monkeypatch):
    model = packs.model("llama")
    attention.register()
    model.set_attn_implementation(attention.NAME)
    sizes = []
    output_head = model.get_output_embeddings()
    hook = output_head.register_forward_hook(lambda _head, _inputs, out: sizes.append(out.shape))
    loss.training_loss(model, made, 1)
    assert [size[1] for size in sizes] == [0]
    hook.remove()
    assert model(**loss.inputs(made)).logits.shape == (1, len(made.sources), packs.VOCABULARY)
