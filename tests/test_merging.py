"""Merged = base + adapter, and the measure sees it when it is not."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from siftune import merging, models
from siftune.training import phases

ROWS = [[5, 6, 7, 8, 9], [100, 200, 300]]


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Path:
    torch.manual_seed(1)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(models.load_model(tiny_model), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_merged_answers_like_base_and_adapter(tiny_model, adapter):
    reference = merging.logits(merging.load_trained(tiny_model, [adapter], num_tokens=0), ROWS)
    merged = merging.logits(phases.merged(tiny_model, [adapter], num_tokens=0), ROWS)
    measured = merging.distance(reference, merged)
    assert measured["max_logit_difference"] < 1e-4
    assert measured["top1_agreement"] == 1.0
    assert measured["mean_kl"] < 1e-8
    assert measured["num_positions"] == 8
    base = merging.logits(models.load_model(tiny_model), ROWS)
    assert merging.distance(reference, base)["mean_kl"] > 1e-4


def test_a_wrong_scale_is_seen(tiny_model, adapter):
    """The fault of merges that ignore rsLoRA: the adapter folded in at another scale."""
    reference = merging.logits(merging.load_trained(tiny_model, [adapter], num_tokens=0), ROWS)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: v / 2 if "lora_B" in k else v for k, v in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    merged = merging.logits(phases.merged(tiny_model, [adapter], num_tokens=0), ROWS)
    assert merging.distance(reference, merged)["mean_kl"] > 1e-4


def test_the_merged_model_keeps_the_bases_dtype(tiny_model, adapter, tmp_path):
    models.load_model(tiny_model).to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    assert phases.merged(tmp_path / "bf16", [adapter], num_tokens=0).dtype == torch.bfloat16


def test_the_distance_of_a_model_to_itself_is_zero():
    logits = [torch.randn(3, 7, generator=torch.Generator().manual_seed(0))]
    measured = merging.distance(logits, logits)
    assert (measured["max_logit_difference"], measured["mean_kl"], measured["top1_agreement"]) == (
        0,
        0,
        1,
    )
