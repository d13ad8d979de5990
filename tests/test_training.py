"""Batch 1 x accumulation 8 = batch 8; one seed, the same bits; the loss is the model's own."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file

from siftune import models, tokens, word_problems
from siftune.chat import masking
from siftune.learning_curve import LearningCurve, summarise
from siftune.sections import Sft
from siftune.stage import UserError
from siftune.training import adapters, sft

SFT = small.sft(
    learning_rate=1e-3, global_batch=8, micro_batch=8,
    trainer={"gradient_checkpointing": False, "lr_scheduler_type": "constant"},
)  # fmt: skip


class Sink:
    """Takes what a run would log."""

    def __init__(self):
        self.logged = []

    def log(self, values, *, step):
        self.logged.append((step, values))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tokenizer, encode_settings) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    problems = list(word_problems.make(num_problems=40, seed=1))
    for split, part in (("train", problems[:32]), ("validation", problems[32:])):
        records = [
            {
                "messages": [
                    {"role": "user", "content": problem.question},
                    {"role": "assistant", "content": problem.answer},
                ]
            }
            for problem in part
        ]
        rows = masking.encode(tokenizer, records, encode_settings, ("<think>", "</think>"))
        with tokens.write(split, folder) as out:
            out.write_batch(tokens.batch([(str(n), *row) for n, row in enumerate(rows)]))
    return folder


@pytest.fixture
def make(tiny_model, tokenizer, encoded, tmp_path, begin_attempt, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def trainer(settings: Sft):
        curve = LearningCurve(Sink(), examples_per_step=settings.global_batch)
        made = sft.make_trainer(
            models.load_model(tiny_model),
            tokenizer,
            sft=settings,
            encoded=encoded,
            num_new_tokens=0,
            curve=curve,
            attempt=begin_attempt(),
            folder=tmp_path,
        )
        return made, curve

    return trainer


@pytest.fixture
def train(make):
    def run(settings: Sft):
        trainer, curve = make(settings)
        trainer.train()
        return trainer, curve

    return run


def losses(curve) -> list[float]:
    return [row["train_loss"] for row in curve.rows.values()]


def adapter(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


def largest_difference(a, b) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_accumulation_changes_nothing(train):
    at_once, curve = train(SFT)
    in_parts, other = train(replace(SFT, micro_batch=1))
    assert losses(other) == pytest.approx(losses(curve), rel=1e-4)
    assert largest_difference(adapter(at_once), adapter(in_parts)) < 1e-4
    # The same test must see a real difference: half the learning rate.
    slower, _ = train(replace(SFT, learning_rate=SFT.learning_rate / 2))
    assert largest_difference(adapter(at_once), adapter(slower)) > 1e-3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(train):
    first, second, third = (train(replace(SFT, seed=seed))[0] for seed in (1, 1, 2))
    assert largest_difference(adapter(first), adapter(second)) == 0.0
    assert largest_difference(adapter(first), adapter(third)) > 0.0


def test_the_loss_is_the_models_own_over_the_trained_tokens(train, tiny_model, encoded):
    _, curve = train(replace(SFT, learning_rate=1e-12))
    model = models.load_model(tiny_model)
    total = num_trained = 0.0
    for row in tokens.read("validation", encoded):
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
        count = (labels != masking.IGNORED).sum().item()
        total, num_trained = total + loss.item() * count, num_trained + count
    assert curve.last("validation_loss") == pytest.approx(total / num_trained, rel=1e-4)


def test_the_curve_has_every_step_and_the_last_evaluation(train, tmp_path):
    trainer, curve = train(SFT)
    assert list(curve.rows) == [1, 2, 3, 4]
    assert [step for step, row in curve.rows.items() if "validation_loss" in row] == [2, 4]
    curve.write(tmp_path / "curve.csv")
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [row["validation_loss"] != "" for row in rows] == [False, True, False, True]
    summary = summarise(trainer, curve)
    assert summary["num_steps"] == 4
    assert summary["mean_tokens_per_second"] > 0
    assert summary["train_loss"] == losses(curve)[-1]


def test_the_saved_adapter_names_its_base_by_source(train, tmp_path):
    trainer, _ = train(SFT)
    adapters.save(trainer.model, tmp_path / "adapter", base="package:x/y.gguf", first={})
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (
        '"base_model_name_or_path": "package:x/y.gguf"'
        in (tmp_path / "adapter" / "adapter_config.json").read_text()
    )
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"learning_rat": 1}, r"sft\.trainer\.learning_rat: trl\.SFTConfig has no such option"),
        ({"seed": 1}, r"sft\.trainer\.seed: siftune sets this one itself"),
        ({"lr_scheduler_type": "steep"}, r"sft\.trainer: .*steep"),
    ],
)
def test_trls_own_options_are_checked_by_trl(trainer, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sft.config(replace(SFT, trainer=trainer), micro_batch=8, num_accumulated=1, folder=tmp_path)
