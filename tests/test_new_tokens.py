"""A base model that gets a chat template and the tokens it needs: they are trained, and merged."""

from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import files, merging, models, tokens
from siftune.chat import masking, templates
from siftune.learning_curve import LearningCurve
from siftune.training import adapters, phases, sft

TAGS = ("<think>", "</think>")


class Sink:
    def log(self, values, *, step):
        pass


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer):
    return templates.choose(tokenizer, "phi-3")


@pytest.fixture(params=["tied", "untied"])
def base(request, tokenizer, tmp_path) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=request.param == "tied",
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def encoded(chat_tokenizer, encode_settings, tmp_path) -> Path:
    records = [
        {
            "messages": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": f"{n + 1}."},
            ]
        }
        for n in range(12)
    ]
    settings = replace(encode_settings, template="phi-3")
    rows = masking.encode(chat_tokenizer, records, settings, TAGS)
    for split in tokens.SPLITS:
        with tokens.write(split, tmp_path) as out:
            out.write_batch(tokens.batch([(str(n), *row) for n, row in enumerate(rows)]))
    return tmp_path


def test_new_tokens_are_trained_and_merged(
    base, tokenizer, chat_tokenizer, encoded, tmp_path, begin_attempt, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    num_new = len(chat_tokenizer) - len(tokenizer)
    assert num_new == 4
    trainer = sft.make_trainer(
        models.load_model(base, num_tokens=len(chat_tokenizer)),
        chat_tokenizer,
        sft=small.sft(),
        encoded=encoded,
        num_new_tokens=num_new,
        curve=LearningCurve(Sink(), examples_per_step=4),
        attempt=begin_attempt(),
        folder=tmp_path / "trainer",
    )
    sft.check_batches(trainer)
    trainer.train()
    adapter = tmp_path / "adapter"
    adapters.save(trainer.model, adapter, base="x", first={})
    # The adapter is small: it holds rows of the embedding, not the embedding.
    whole = len(tokenizer) * 32 * 4
    assert (adapter / "adapter_model.safetensors").stat().st_size < whole / 4

    size = {"num_tokens": len(chat_tokenizer)}
    rows = [tokens.read("train", encoded)[0]["input_ids"]]
    reference = merging.logits(merging.load_trained(base, [adapter], **size), rows)
    merged = phases.merged(base, [adapter], **size)
    models.stop_as_encoded(merged, chat_tokenizer, base)
    merged.save_pretrained(tmp_path / "merged")
    measured = merging.distance(
        reference, merging.logits(models.load_model(tmp_path / "merged"), rows)
    )
    assert measured["max_logit_difference"] < 1e-4
    assert files.read_json(tmp_path / "merged/generation_config.json")["eos_token_id"][0] == (
        chat_tokenizer.eos_token_id
    )

    before = models.load_model(base, **size)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, layer)().weight, getattr(merged, layer)().weight
        torch.testing.assert_close(new[: len(tokenizer)], old[: len(tokenizer)])
        stop = chat_tokenizer.eos_token_id
        assert (new[stop] - old[stop]).abs().max() > 1e-3
