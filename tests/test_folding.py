"""Weight by weight and file by file, a merge has the bits of PEFT's own, with all in memory."""

import json
import weakref
from pathlib import Path

import pytest
import small
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import models, shards
from siftune.training import adapters, phases

VOCABULARY, WITH_NEW = 96, 99
NEW_TOKENS = [96, 97, 98]
WHOLE = ["embed_tokens", "lm_head"]


def make_base(folder: Path, *, tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random model in several files."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
            attention_bias=True, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB")
    assert len(set(shards.of_folder(folder).values())) > 2
    return folder


def make_adapter(base: Path, folder: Path, *, num_tokens: int = 0, **how) -> Path:
    """An adapter as PEFT saves it, whose every weight was moved."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    loaded = models.load_model(base, num_tokens=num_tokens, dtype=torch.float32).cpu()
    model = get_peft_model(loaded, LoraConfig(**settings | how))
    draw = torch.Generator().manual_seed(len(folder.name))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=draw) / 8
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def by_peft(base: Path, trained: list[Path], *, num_tokens: int = 0) -> LlamaForCausalLM:
    """The whole base in fp32, under each adapter in turn."""
    model = models.load_model(base, num_tokens=num_tokens, dtype="auto").cpu()
    for folder in trained:
        dtype = model.dtype
        adapter = PeftModel.from_pretrained(model.float(), folder)
        model = adapter.merge_and_unload(safe_merge=True).to(dtype)
    return model


def same_bits(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == weight.dtype and torch.equal(one[name], weight)
        for name, weight in other.items()
    )


KINDS = {
    "lora": ({}, {}),
    "rslora": ({}, {"use_rslora": True}),
    "dora": ({}, {"use_dora": True}),
    "fp32": ({"dtype": torch.float32}, {}),
    "tied": ({"tied": True}, {}),
    "some layers": ({}, {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "trained whole": ({}, {"modules_to_save": [*WHOLE, "norm"]}),
    "trained whole, tied": (
        {"tied": True}, {"modules_to_save": WHOLE, "ensure_weight_tying": True},
    ),
    "new tokens": ({}, {"trainable_token_indices": dict.fromkeys(WHOLE, NEW_TOKENS)}),
    "new tokens, tied": (
        {"tied": True}, {"trainable_token_indices": {"embed_tokens": NEW_TOKENS}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("of_base", "of_adapter"), KINDS.values(), ids=KINDS)
def test_the_files_have_the_bits_of_pefts_merge(of_base, of_adapter, tmp_path, capsys):
    num_tokens = WITH_NEW if "trainable_token_indices" in of_adapter else 0
    base = make_base(tmp_path / "base", **of_base)
    adapter = make_adapter(base, tmp_path / "adapter", num_tokens=num_tokens, **of_adapter)
    expected = by_peft(base, [adapter], num_tokens=num_tokens)
    expected.save_pretrained(tmp_path / "expected")
    target = tmp_path / "merged"
    target.mkdir()
    phases.write(base, [adapter], target, num_tokens=num_tokens)
    assert capsys.readouterr().out == ""  # nothing was merged in another way
    assert same_bits(
        models.load_model(target, dtype="auto").cpu().state_dict(), expected.state_dict()
    )
    in_memory = phases.merged(base, [adapter], num_tokens=num_tokens)
    assert same_bits(in_memory.state_dict(), expected.state_dict())
    files = shards.of_folder(target)
    assert {name: file.name for name, file in files.items()} == {
        name: file.name for name, file in shards.of_folder(base).items()
    }
    for settings in ("config.json", "generation_config.json"):
        assert (target / settings).read_text() == (tmp_path / "expected" / settings).read_text()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    written = [load_file(file) for file in set(files.values())]
    assert index["metadata"] == {
        "total_parameters": sum(p.numel() for one in written for p in one.values()),
        "total_size": sum(p.nbytes for one in written for p in one.values()),
    }


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_began_with_a_part_of_the_base_is_merged_as_it_was_saved(start, tmp_path, capsys):
    base = make_base(tmp_path / "base", dtype=torch.float32)
    section = small.sft(lora=small.lora(init=start))
    model = adapters.attach(
        models.load_model(base), section, num_tokens=VOCABULARY, num_new_tokens=0
    )
    first = adapters.first_factors(model, section.lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight += torch.randn(weight.shape) / 8
    adapters.save(model, tmp_path / "adapter", base=str(base), first=first)
    (tmp_path / "merged").mkdir()
    phases.write(base, [tmp_path / "adapter"], tmp_path / "merged", num_tokens=0)
    assert capsys.readouterr().out == ""
    expected = by_peft(base, [tmp_path / "adapter"])
    found = models.load_model(tmp_path / "merged", dtype="auto").cpu()
    assert same_bits(found.state_dict(), expected.state_dict())


def test_each_phase_is_added_to_what_the_one_before_it_left(tmp_path, capsys):
    base = make_base(tmp_path / "base")
    whole = make_base(tmp_path / "whole", dtype=torch.float32)
    moved = {n: w + 0.1 for n, w in models.load_model(whole).state_dict().items()}
    shifted = models.load_model(whole)
    shifted.load_state_dict(moved)
    shifted.save_pretrained(whole)
    first, second = (make_adapter(base, tmp_path / name) for name in ("first", "second one"))
    for trained, after_whole in (([first, second], False), ([first, whole, second], True)):
        target = tmp_path / f"merged{len(trained)}"
        target.mkdir()
        phases.write(base, trained, target, num_tokens=0)
        start, last = (whole, [second]) if after_whole else (base, trained)
        if after_whole:
            rounded = models.load_model(whole).to(torch.bfloat16)
            rounded.save_pretrained(tmp_path / "rounded")
            start = tmp_path / "rounded"
        expected = by_peft(start, last).state_dict()
        found = models.load_model(target, dtype="auto").cpu()
        assert same_bits(found.state_dict(), expected)
        assert same_bits(phases.merged(base, trained, num_tokens=0).state_dict(), expected)
    assert capsys.readouterr().out == ""


APART = {
    "the start of PiSSA": ({}, {"init_lora_weights": "pissa"}, "pissa takes its start"),
    "biases": ({}, {"bias": "lora_only"}, "more than matrices"),
    "one of two tied layers": ({"tied": True}, {"modules_to_save": ["lm_head"]}, "one of two"),
}


@pytest.mark.parametrize(("of_base", "of_adapter", "why"), APART.values(), ids=APART)
def test_what_needs_all_weights_at_once_gets_them(of_base, of_adapter, why, tmp_path, capsys):
    base = make_base(tmp_path / "base", dtype=torch.float32, **of_base)
    adapter = make_adapter(base, tmp_path / "adapter", **of_adapter)
    (tmp_path / "merged").mkdir()
    phases.write(base, [adapter], tmp_path / "merged", num_tokens=0)
    assert why in capsys.readouterr().out
    found = models.load_model(tmp_path / "merged", dtype="auto").cpu().state_dict()
    assert same_bits(found, by_peft(base, [adapter]).state_dict())


def test_names_that_transformers_converts_are_merged_in_memory(tmp_path, capsys):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    expected = by_peft(base, [adapter]).state_dict()
    inner = models.load_model(base, dtype="auto").cpu().model
    bare = tmp_path / "bare"
    inner.save_pretrained(bare)  # its names lack the part before them
    (tmp_path / "merged").mkdir()
    phases.write(bare, [adapter], tmp_path / "merged", num_tokens=0)
    assert "transformers converts the weights" in capsys.readouterr().out
    found = models.load_model(tmp_path / "merged", dtype="auto").cpu().state_dict()
    some = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(found[some], expected[some])


def test_one_weight_is_in_memory_at_a_time(tmp_path, monkeypatch):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    alive: set[int] = set()
    most = []
    read = shards.read

    def watched(source, name):
        weight = read(source, name)
        alive.add(id(weight))
        weakref.finalize(weight, alive.discard, id(weight))
        most.append(len(alive))
        return weight

    monkeypatch.setattr(shards, "read", watched)
    (tmp_path / "merged").mkdir()
    empty = phases.write(base, [adapter], tmp_path / "merged", num_tokens=0)
    assert len(most) == len(list(empty.named_parameters()))
    assert max(most) <= 2  # the one before leaves once this one is there
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
