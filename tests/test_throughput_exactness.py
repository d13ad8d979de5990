"""Packs with shared prefixes train exactly what their rows train alone, and bugs would show."""

import numpy as np
import packs
import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from siftune.stage import UserError
from siftune.throughput import attention, flex, layout, limits, loss, planner, products

TOLERANCE = 1e-5  # relative, in fp32


@pytest.fixture(autouse=True)
def _share_all(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)


@pytest.fixture
def kernel(request, monkeypatch) -> None:
    """How attention is computed: as of long rows and on a GPU; or by products, in blocks or not."""
    if request.param == "sdpa":
        monkeypatch.setattr(products, "LONGEST", 0)
        monkeypatch.setattr(products, "attend", None)
    if request.param == "products in blocks":
        monkeypatch.setattr(products, "BLOCK", 5)
        monkeypatch.setattr(products, "KEPT", 12)


@pytest.mark.parametrize("kernel", ["sdpa", "products", "products in blocks"], indirect=True)
@pytest.mark.parametrize("own_lora", [True, False])
@pytest.mark.parametrize("shape", packs.SHAPES)
def test_loss_and_gradients_are_those_of_the_rows_alone(shape, own_lora, kernel):
    model, rows = packs.model(shape, own_lora=own_lora), packs.rows()
    limits.check(model, max(map(len, rows[0])), key="")
    alone = packs.alone(packs.model(shape), rows)
    assert packs.difference(packs.packed(model, rows), alone) < TOLERANCE
    assert packs.difference(packs.packed(model, rows, budget=30), alone) < TOLERANCE
    assert packs.difference(packs.packed(model, rows, share=False), alone) < TOLERANCE


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("shape", ["llama", "gemma2", "qwen2-sliding"])
def test_gradient_checkpointing_changes_nothing(shape, reentrant):
    model, rows = packs.model(shape, own_lora=True), packs.rows()
    alone = packs.alone(model, rows)
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert packs.difference(packs.packed(model, rows), alone) < TOLERANCE


def test_in_fp64_they_are_the_same_number(monkeypatch):
    def exact(self: LlamaRMSNorm, states: torch.Tensor) -> torch.Tensor:
        """transformers' own rounds to fp32 in between."""
        variance = states.pow(2).mean(-1, keepdim=True)
        return self.weight * states * torch.rsqrt(variance + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    rows = packs.rows()
    alone = packs.alone(packs.model("llama", torch.float64), rows, implementation="sdpa")
    for own_lora in (True, False):
        model = packs.model("llama", torch.float64, own_lora=own_lora)
        assert packs.difference(packs.packed(model, rows), alone) < 1e-10
        assert packs.difference(packs.packed(model, rows, budget=30), alone) < 1e-10


def test_log_probs_are_named_by_row():
    """What DPO and GRPO need: sums over the trained tokens of each row."""
    model, (ids, labels) = packs.model("llama"), packs.rows()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    (pack,) = planner.plan(ids, 1000)
    made = layout.lay_out(pack, ids, labels)
    with torch.no_grad():
        found = loss.token_log_probs(model(**loss.inputs(made)).logits, made)
        model.set_attn_implementation("eager")
        for row in range(len(ids)):
            log_probs = model(input_ids=torch.tensor(ids[row])[None]).logits[0].log_softmax(-1)
            places = np.flatnonzero(labels[row][1:] != -100)
            wanted = log_probs[places, labels[row][places + 1]].sum()
            torch.testing.assert_close(found[made.row_of == row].sum(), wanted, rtol=1e-5, atol=0)


def test_forty_steps_have_one_loss_curve():
    def curve(train) -> list[float]:
        model = packs.model("qwen2")
        optimiser = torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad], lr=1e-3
        )
        losses = []
        for step in range(40):
            losses.append(train(model, packs.rows(step % 5))[0])
            optimiser.step()
        return losses

    found, wanted = curve(packs.packed), curve(packs.alone)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert wanted[-1] < 0.9 * wanted[0]


def late_window(monkeypatch) -> None:
    """The window is one token too wide."""
    original = layout.Layout.seen

    def wider(made, num_before, length, window):
        return original(made, num_before, length, window + 1)

    monkeypatch.setattr(layout.Layout, "seen", wider)


def dropped_cap(monkeypatch) -> None:
    """Soft-capping is left out, as transformers' SDPA does."""
    original = attention._attend

    def without(*states, softcap, **others):
        return original(*states, softcap=None, **others)

    monkeypatch.setattr(attention, "_attend", without)


@pytest.mark.parametrize(
    ("bug", "shape"),
    [
        (packs.leak, "llama"),
        (packs.wrong_positions, "llama"),
        (packs.counted_once, "llama"),
        (packs.lost_weight, "llama"),
        (late_window, "mistral-sliding"),
        (dropped_cap, "gemma2"),
    ],
)
def test_the_check_catches(bug, shape, monkeypatch):
    model, rows = packs.model(shape), packs.rows()
    alone = packs.alone(model, rows)
    assert packs.difference(packs.packed(model, rows, budget=40), alone) < TOLERANCE
    bug(monkeypatch)
    assert packs.difference(packs.packed(model, rows, budget=40), alone) > 100 * TOLERANCE


def test_what_would_not_be_exact_is_refused():
    model = packs.model("llama")
    limits.check(model, 10, key="here")
    model.config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"here: no packs .* a number of rows.*attention_dropout"):
        limits.check(model, 10, key="here")
    model.config.attention_dropout = 0.0
    model.config.rope_parameters = {
        "rope_type": "dynamic", "original_max_position_embeddings": 16
    }  # fmt: skip
    limits.check(model, 16, key="here")
    with pytest.raises(UserError, match=r"beyond 16 tokens .* a row has 17"):
        limits.check(model, 17, key="here")
    model.config.model_type = "mamba"
    with pytest.raises(UserError, match=r"families gemma2, .*; this is mamba"):
        limits.check(model, 10, key="here")


def test_dropout_is_seen():
    model = packs.model("llama")
    assert not limits.has_dropout(model)
    dropout = torch.nn.Dropout(0.1)
    model.base_model.model.model.layers[0].mlp.gate_proj.lora_dropout["default"] = dropout
    assert limits.has_dropout(model)


def test_a_batch_without_a_layout_is_an_error_and_never_an_unmasked_batch():
    model = packs.model("llama")
    attention.register()
    model.set_attn_implementation(attention.NAME)
    with pytest.raises(TypeError, match="layout"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, packs.WINDOW])
def test_flex_attention_by_its_block_mask_is_the_same_attention(window):
    """Without a model: FlexAttention has no backward on the CPU, and compiles for minutes."""
    ids, labels = packs.rows()
    (pack,) = planner.plan(ids, 1000)
    made = layout.lay_out(pack, ids, labels)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, pack.num_tokens, 8, dtype=torch.float64) for heads in (4, 2, 2)
    )
    found, _ = attention.shared_prefix_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.3, layout=made, sliding_window=window
    )
    mask = flex.block_mask(made, window)
    wanted = flex_attention(query, key, value, block_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-10, atol=1e-12)
