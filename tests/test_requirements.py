"""What cannot be is one clear error, before anything is loaded."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import small
import torch

from siftune.stage import UserError
from siftune.training import engine, requirements


@pytest.mark.parametrize(
    ("lora", "load", "told"),
    [
        (None, {"quantise": "nf4"}, r"sft\.load\.quantise: quantised weights cannot be trained"),
        (None, {"engine": "unsloth"}, r"sft\.load\.engine: unsloth is for lora"),
        ({}, {"double_quantise": True}, r"sft\.load\.double_quantise: needs load\.quantise: nf4"),
        ({}, {"double_quantise": True, "quantise": "int8"}, r"double_quantise: needs"),
        ({"dora": True, "init": "pissa_niter_4"}, {}, r"sft\.lora\.dora: .*init pissa_niter_4"),
        ({"dora": True, "init": "olora"}, {}, r"sft\.lora\.dora"),
        ({"init": "loftq"}, {}, r"sft\.lora\.init: loftq .*needs load\.quantise nf4 or fp4"),
        ({"init": "pissa"}, {"quantise": "nf4"}, r"sft\.lora\.init: pissa .*not quantised"),
        ({"dora": True}, {"engine": "unsloth"}, r"sft\.load\.engine: unsloth takes no dora"),
        ({"init": "pissa"}, {"engine": "unsloth"}, r"sft\.load\.engine: unsloth takes"),
    ],
)
def test_what_contradicts_itself_is_refused_on_any_machine(lora, load, told):
    section = small.sft(
        lora=small.lora(**lora) if lora is not None else None, load=replace(small.LOAD, **load)
    )
    with pytest.raises(UserError, match=told):
        requirements.require_consistent(section)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"keep": "best"}, r"sft\.keep: best needs whole weights"),
        ({"load": replace(small.LOAD, quantise="nf4")}, r"sft\.load\.quantise: nf4 needs whole"),
        ({"load": replace(small.LOAD, engine="unsloth")}, r"sft\.load\.engine: unsloth needs"),
        ({"lora": small.lora(init="pissa")}, r"sft\.lora\.init: pissa needs whole weights"),
        ({"trainer": {"optim": "adafactor"}}, r"sft\.trainer\.optim: adafactor needs whole"),
        ({"micro_batch": "99 tokens"}, r"sft\.trainer\.fsdp: True does not go with packs"),
    ],
)
def test_what_needs_whole_weights_does_not_go_with_shards(changed, told):
    section = small.sft(**changed)
    requirements.require_consistent(section)
    section = replace(section, trainer={**section.trainer, "fsdp": True})
    with pytest.raises(UserError, match=told):
        requirements.require_consistent(section)


def test_preferences_have_no_shards():
    with pytest.raises(UserError, match=r"dpo\.trainer\.fsdp: is for pretrain and sft"):
        requirements.require_consistent(small.dpo(trainer={"fsdp": True}))


def test_what_goes_together_is_not():
    nf4 = replace(small.LOAD, quantise="nf4", double_quantise=True)
    for lora, load in (
        (small.lora(), small.LOAD),
        (None, small.LOAD),
        (small.lora(dora=True, rslora=True), nf4),
        (small.lora(init="loftq"), nf4),
        (small.lora(init="pissa", rslora=True), small.LOAD),
    ):
        requirements.require_consistent(small.sft(lora=lora, load=load))


@pytest.mark.parametrize(
    ("load", "told"),
    [
        ({"quantise": "nf4"}, r"load\.quantise: nf4 needs an NVIDIA GPU.*or write null"),
        ({"engine": "unsloth"}, r"load\.engine: unsloth needs an NVIDIA GPU.*or write hf"),
        ({"dtype": "fp16"}, r"load\.dtype: fp16 needs an NVIDIA GPU"),
        ({"attention": "flash_attention_2"}, r"load\.attention: flash_attention_2 needs an NVIDIA"),
        ({"attention": "flex_attention"}, r"load\.attention: flex_attention needs an NVIDIA"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(load, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        requirements.require_machine(replace(small.LOAD, **load))


@pytest.fixture
def gpu(monkeypatch):
    """A function: as if there were a GPU of this kind."""

    def put(capability: tuple[int, int]) -> None:
        stand_in = {
            "is_available": lambda: True,
            "get_device_capability": lambda: capability,
            "is_bf16_supported": lambda including_emulation: capability >= (8, 0),
        }
        for name, value in stand_in.items():
            monkeypatch.setattr(torch.cuda, name, value)

    return put


@pytest.mark.parametrize(
    ("capability", "load", "told"),
    [
        ((7, 0), {"dtype": "bf16"}, r"load\.dtype: bf16: this GPU has none.*auto"),
        (
            (7, 0),
            {"attention": "flash_attention_2"},
            r"flash_attention_2 needs bf16 or fp16, and a",
        ),
        ((9, 0), {"attention": "flash_attention_2", "dtype": "fp32"}, "needs bf16 or fp16"),
        ((9, 0), {"engine": "unsloth"}, r"needs the package unsloth.*docs/images\.md"),
    ],
)
def test_what_a_gpu_cannot_do_is_refused(capability, load, told, gpu, monkeypatch):
    is_there = SimpleNamespace()
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: is_there if name == "flash_attn" else None
    )
    gpu(capability)
    with pytest.raises(UserError, match=told):
        requirements.require_machine(replace(small.LOAD, **load))


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), torch.float16), ((8, 0), torch.bfloat16)]
)
def test_auto_is_what_the_device_has(capability, dtype, gpu):
    gpu(capability)
    requirements.require_machine(small.LOAD)
    assert requirements.dtype_of(small.LOAD) == dtype
    assert requirements.dtype_of(replace(small.LOAD, dtype="fp32")) == torch.float32


def test_the_default_engine_imports_nothing():
    assert engine.start(small.LOAD) is None
