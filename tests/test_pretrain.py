"""Text in contiguous blocks: every token once, in order, and the numbers of the model itself."""

import math
import shutil
from pathlib import Path

import chain
import pytest
import torch

from siftune import models, tokens
from siftune.resume import checkpoints
from siftune.sections import Pretrain
from siftune.stage import UserError
from siftune.training import pretrain, sft

END = 2


@pytest.fixture
def here(tmp_path, tokenizer, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chain.make_base(tokenizer)
    return tmp_path


def write(texts: list[list[int]], folder: Path) -> None:
    with tokens.write("train", folder) as out:
        for number, ids in enumerate(texts):  # batches of their own, as of a large file
            out.write_batch(tokens.batch([(str(number), ids, ids)]))


def test_texts_are_one_stream_that_is_cut_into_blocks(tmp_path, capsys):
    texts = [[3, 4, END], [5, 6, 7, 8, 9, END], [10, END], [11, 12, END]]
    write(texts, tmp_path)
    rows = pretrain.blocks("train", tmp_path, 4)
    assert rows["input_ids"] == [[3, 4, 2, 5], [6, 7, 8, 9], [2, 10, 2, 11]]
    assert rows["labels"] == rows["input_ids"]
    assert "train: 3 blocks of 4 tokens; 2 at the end are left out" in capsys.readouterr().out


def test_less_than_a_block_is_refused(tmp_path):
    write([[3, 4, END]], tmp_path)
    with pytest.raises(UserError, match=r"pretrain\.block_size: the train split has 3 tokens"):
        pretrain.blocks("train", tmp_path, 4)


def test_perplexity_and_accuracy_are_the_models_own(here, begin_attempt):
    # Five blocks in batches of two: the last batch is half as large.
    section = chain.section(Pretrain, block_size=7, micro_batch=2, num_epochs=0.3)
    trainer, sink = chain.trainer_of(section, begin_attempt)
    sft.check_batches(trainer)
    trainer.train_from(None)
    blocks = pretrain.blocks("validation", tokens.folder_of("pretrain"), 7)
    ids = torch.tensor(blocks["input_ids"], device=models.device())
    assert len(ids) == 5
    with torch.no_grad():
        logits = trainer.model.eval()(input_ids=ids).logits[:, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    logged = sink.logged[max(sink.logged)]
    assert logged["validation_loss"] == pytest.approx(nats, abs=1e-5)
    assert logged["validation_perplexity"] == pytest.approx(math.exp(nats), rel=1e-5)
    share = (logits.argmax(dim=-1) == ids[:, 1:]).float().mean().item()
    assert logged["validation_token_accuracy"] == pytest.approx(share, abs=1e-6)


def test_it_goes_on_exactly_where_it_was(here, begin_attempt, monkeypatch):
    monkeypatch.setattr(checkpoints, "KEPT", 9)
    section = chain.section(Pretrain, save_every="1 steps", num_epochs=2.0)
    whole, log = chain.trainer_of(section, begin_attempt)
    whole.train_from(None)
    assert len(log.logged) == 6
    again, resumed = chain.trainer_of(section, begin_attempt)
    for later in ("step-00000005", "step-00000006"):
        shutil.rmtree(again._attempt.checkpoints.folder / later)
    found = again._attempt.begin()
    assert found.step == 4
    again.train_from(found)
    assert sorted(resumed.logged) == [5, 6]
    for step in resumed.logged:
        for name in ("train_loss", "validation_perplexity", "validation_token_accuracy"):
            assert resumed.logged[step][name] == log.logged[step][name]
    expected = dict(whole.model.named_parameters())
    assert all(
        torch.equal(weight, expected[name]) for name, weight in again.model.named_parameters()
    )
