"""The base is loaded as params say, or not at all."""

from dataclasses import replace

import pytest
import small
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from siftune import models
from siftune.stage import UserError
from siftune.training import loading


@pytest.fixture
def unread(monkeypatch):
    """Whoever reads weights has come too far."""

    def fail(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (small.sft(lora=small.lora(targets=["query"])), r"lora\.targets: no layer is called query"),
        (small.sft(lora=small.lora(modules_to_save=["wte"])), r"modules_to_save: no module"),
        (small.sft(load=replace(small.LOAD, quantise="nf4")), r"quantise: nf4 needs an NVIDIA"),
        (small.sft(load=replace(small.LOAD, engine="unsloth")), r"unsloth needs an NVIDIA"),
    ],
)
def test_no_weights_are_read_for_what_cannot_be(section, told, tiny_model, unread):
    with pytest.raises(UserError, match=told):
        loading.base(tiny_model, section, num_tokens=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_that_was_asked_for(attention, tiny_model):
    load = replace(small.LOAD, attention=attention)
    model = loading.base(tiny_model, small.sft(load=load), num_tokens=0)
    assert loading.facts(model, load) == {
        "engine": "hf", "device": "cpu", "computes_in": "float32", "weights_in": "float32",
        "attention": attention,
    }  # fmt: skip


def test_an_attention_that_the_architecture_lacks_is_refused(tiny_model, unread, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("LlamaForCausalLM does not support sdpa yet")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
    section = small.sft(load=replace(small.LOAD, attention="sdpa"))
    with pytest.raises(UserError, match=r"load\.attention: sdpa .*does not support sdpa yet Valid"):
        loading.base(tiny_model, section, num_tokens=0)


def test_where_attention_is_capped_auto_is_eager(tmp_path):
    tiny = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, head_dim=16,
        num_attention_heads=2, num_key_value_heads=1, attn_logit_softcapping=50.0,
    )  # fmt: skip
    Gemma2ForCausalLM(tiny).save_pretrained(tmp_path)
    model = loading.base(tmp_path, small.sft(), num_tokens=0)
    assert model.config._attn_implementation == "eager"


def test_weights_that_are_trained_themselves_are_fp32(tiny_model, tmp_path):
    models.load_model(tiny_model).to(torch.bfloat16).save_pretrained(tmp_path)
    half = replace(small.LOAD, dtype="bf16")
    assert loading.base(tmp_path, small.sft(load=half), num_tokens=0).dtype == torch.bfloat16
    whole = small.sft(load=half, lora=None)
    model = loading.base(tmp_path, whole, num_tokens=0)
    assert model.dtype == torch.float32
    told = loading.facts(model, half)
    assert (told["computes_in"], told["weights_in"]) == ("bfloat16", "float32")
