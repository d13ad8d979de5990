"""Stopped or killed anywhere, a training ends with the same bits as one that was not."""

import itertools
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from trainings import ADAPTER, STATE, Sink, in_ranks, kill_after, losses, put, state, uninterrupted
from transformers import LlamaConfig, LlamaForCausalLM

from siftune import tokens
from siftune.learning_curve import LearningCurve
from siftune.resume import attempt, best, checkpoints
from siftune.sections import Sft
from siftune.stage import RunAgain, StartAgain, UserError
from siftune.training import sft as training

NUM_ROWS, NUM_STEPS = 19, 10  # two epochs of five steps; the last of an epoch has three rows


def sft(**changed) -> Sft:
    values = {
        "num_epochs": 2.0, "eval_every": 3, "save_every": "1 steps",
        "lora": small.lora(rank=2, alpha=4, dropout=0.3),
        "trainer": {"gradient_checkpointing": False, "weight_decay": 0.1},
    }  # fmt: skip
    return small.sft(**values | changed)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    draw = torch.Generator().manual_seed(0)
    for split, num_rows in (("train", NUM_ROWS), ("validation", 6)):
        rows = []
        for number in range(num_rows):
            length = int(torch.randint(4, 12, (), generator=draw))
            ids = torch.randint(3, 96, (length,), generator=draw).tolist()
            rows.append((str(number), ids, [-100, *ids[1:]]))
        with tokens.write(split, folder) as out:
            out.write_batch(tokens.batch(rows))
    return folder


@pytest.fixture(scope="module")
def make(tokenizer, encoded, begin_attempt):
    """A function: a trainer in the current folder, its log, and its start."""
    small = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(small).state_dict()

    def new(settings: Sft):
        model = LlamaForCausalLM(small)
        model.load_state_dict(base)
        log, start = Sink(), begin_attempt(settings.save_every)
        made = training.make_trainer(
            model,
            tokenizer,
            sft=settings,
            encoded=encoded,
            num_new_tokens=0,
            curve=LearningCurve(log, examples_per_step=4),
            attempt=start,
            folder=start.folder / "scratch",
        )
        return made, log, start

    return new


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    return uninterrupted(make, sft, partial(tmp_path_factory.mktemp, "whole"), NUM_STEPS)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_goes_on_exactly(make, whole, step, **changed):
    log, folders = whole(**changed)
    made, resumed, start = make(sft(**changed))
    put(folders[step], start)
    found = start.begin()
    assert found.step == step
    made.train_from(found)
    for later in range(max(step + 1, NUM_STEPS - 1), NUM_STEPS + 1):
        mine = start.checkpoints.folder / f"step-{later:08d}"
        assert state(mine) == state(folders[later]), later
    expected = {place: value for place, value in log.items() if place[0] > step}
    assert resumed.learned() == expected


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_killed_after_any_step_it_ends_with_the_same_bits(make, whole, here, step):
    assert_goes_on_exactly(make, whole, step)


@pytest.mark.parametrize("step", [2, 5, 7])
def test_with_accumulation_too(make, whole, here, step):
    assert_goes_on_exactly(make, whole, step, micro_batch=1)


VARIANTS = {
    "all weights": {"lora": None},
    "dora": {"lora": small.lora(rank=2, dora=True)},
    "pissa": {"lora": small.lora(rank=2, init="pissa")},
    "the embedding whole": {"lora": small.lora(rank=2, modules_to_save=["embed_tokens"])},
    "best": {"keep": "best"},
    "bf16": {"load": replace(small.LOAD, dtype="bf16")},
    "neftune": {"trainer": {"gradient_checkpointing": False, "neftune_noise_alpha": 5.0}},
    "gradient checkpointing": {"trainer": {"gradient_checkpointing": True}},
    "fused": {"trainer": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}},
    "adafactor": {"trainer": {"gradient_checkpointing": False, "optim": "adafactor"}},
    "plateau": {
        "trainer": {"gradient_checkpointing": False, "lr_scheduler_type": "reduce_lr_on_plateau"}
    },
    "restarts": {
        "trainer": {
            "gradient_checkpointing": False,
            "lr_scheduler_type": "cosine_with_restarts",
            "lr_scheduler_kwargs": {"num_cycles": 2},
        }
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_it_does_however_weights_are_adapted(variant, make, whole, here):
    assert_goes_on_exactly(make, whole, 4, **VARIANTS[variant])


@pytest.mark.parametrize("losses", [[3.0, 1.0, 2.0, 2.0], [4.0, 3.0, 2.0, 1.0]])
@pytest.mark.parametrize("step", [None, 2, 3, 5, 6, 8])
def test_the_best_weights_survive_a_kill(losses, step, make, whole, here, monkeypatch):
    """Evaluations at the steps 3, 6, 9 and 10 find these losses."""
    _, folders = whole()
    expected = load_file(folders[[3, 6, 9, 10][losses.index(min(losses))]] / ADAPTER)
    told = dict(zip([3, 6, 9, 10], losses, strict=True))
    seen = best.Best.seen
    monkeypatch.setattr(
        best.Best, "seen", lambda self, _, at, model: seen(self, told[at], at, model)
    )
    made, _, start = make(sft(keep="best"))
    if step is not None:
        kill_after(made, start, step)
        made, _, start = make(sft(keep="best"))
    made.train_from(start.begin())
    kept = get_peft_model_state_dict(made.model)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


@pytest.mark.parametrize("step", [None, 2, 4, 6, 7, 9])
def test_patience_ends_at_the_same_step_after_a_kill(step, make, whole, here, monkeypatch):
    """A loss that never gets better ends it at the second evaluation after the first."""
    seen = best.Best.seen
    monkeypatch.setattr(best.Best, "seen", lambda self, _, at, model: seen(self, 1.0, at, model))
    settings = sft(patience=2, save_every="2 steps")
    made, _, start = make(settings)
    if step is not None:
        kill_after(made, start, step)
        made, _, start = make(settings)
    made.train_from(start.begin())
    assert made.state.global_step == 9
    assert start.checkpoints.newest().step == 9
    # Should it die before the adapter is published, it has nothing left to do.
    again, log, start = make(settings)
    again.train_from(start.begin())
    assert log.rows == {}


def test_the_bits_would_show_a_difference(make, whole, here):
    """Other dropout, other rows or a lost optimiser, each is seen."""
    _, folders = whole()
    others = [whole(seed=2)[1], whole(micro_batch=1)[1]]
    for other in others:
        assert state(other[NUM_STEPS]) != state(folders[NUM_STEPS])
    made, _, start = make(sft())
    put(folders[5], start)
    found = start.begin()
    made._load_optimizer_and_scheduler = lambda folder: None
    made.train_from(found)
    mine = state(start.checkpoints.folder / f"step-{NUM_STEPS:08d}")
    assert (
        mine["adapter_model.safetensors"] != state(folders[NUM_STEPS])["adapter_model.safetensors"]
    )


@pytest.fixture(scope="module")
def polls(make, tmp_path_factory) -> int:
    """How often a whole training, with accumulation, asks whether to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("polls"))
        made, _, start = make(sft(micro_batch=2, save_every="100 steps"))
        asked = []
        start.stop.reason = lambda: asked.append(None)
        made.train_from(start.begin())
        return len(asked)


def test_stopped_between_any_two_micro_batches_it_goes_on_exactly(make, whole, here, polls):
    """Also in an evaluation: at each place where it asks, it is told to stop once."""
    settings = {"micro_batch": 2, "save_every": "100 steps"}
    log, folders = whole(micro_batch=2)
    # 19 rows in twos are 10 micro batches an epoch; 4 evaluations of 3 batches.
    assert polls == 2 * 10 + 4 * 3
    for place in range(0, polls, 3):  # `make faults` tries all of them
        shutil.rmtree("work", ignore_errors=True)
        made, before, start = make(sft(**settings))
        count = itertools.count()
        start.stop.reason = lambda count=count, place=place: (
            "test" if next(count) == place else None
        )
        with pytest.raises(RunAgain, match=r"stopped at step \d+ of 10 \(test\)"):
            made.train_from(start.begin())
        again, after, start = make(sft(**settings))
        again.train_from(start.begin())
        last = start.checkpoints.folder / f"step-{NUM_STEPS:08d}"
        assert state(last) == state(folders[NUM_STEPS]), place
        assert not set(before.rows) & set(after.rows)
        assert before.learned() | after.learned() == log


NO_DROPOUT = small.lora(rank=2, alpha=4)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_two_ranks_learn_what_one_does(micro_batch, make, whole, here):
    """Also from the last batch of an epoch, which is made even with rows that do not count."""
    log = whole(lora=NO_DROPOUT)[0]

    def work(rank: int) -> None:
        made, mine, start = make(sft(lora=NO_DROPOUT, micro_batch=micro_batch))
        made.train_from(start.begin())
        if rank == 0:
            Path("losses.json").write_text(json.dumps(losses(mine.learned())))

    in_ranks(2, work)
    assert json.loads(Path("losses.json").read_text()) == pytest.approx(losses(log), rel=1e-4)


def test_ranks_stop_together_and_go_on_exactly(make, here):
    """Only one of two is told to, in the middle of a step."""
    settings = sft(micro_batch=1)

    def without_a_stop(rank: int) -> None:
        os.chdir("whole")
        made, _, start = make(settings)
        made.train_from(start.begin())

    def stopped(rank: int) -> None:
        made, _, start = make(settings)
        count = itertools.count()
        start.stop.reason = lambda: "test" if rank == 1 and next(count) == 9 else None
        with pytest.raises(RunAgain, match=r"stopped at step (\d+)") as ended:
            made.train_from(start.begin())
        Path(f"stopped-{rank}").write_text(str(ended.value).partition("(")[0])

    def again(rank: int) -> None:
        made, _, start = make(settings)
        made.train_from(start.begin())

    Path("whole").mkdir()
    for work in (without_a_stop, stopped, again):
        in_ranks(2, work)
    assert Path("stopped-0").read_text() == Path("stopped-1").read_text()
    (expected,) = Path("whole").glob(f"work/*/checkpoints/step-{NUM_STEPS:08d}")
    (mine,) = Path().glob(f"work/*/checkpoints/step-{NUM_STEPS:08d}")
    assert state(mine) == state(expected)


def test_without_progress_nothing_is_saved(make, here):
    made, _, start = make(sft())
    start.stop.reason = lambda: "test"
    with pytest.raises(RunAgain, match="stopped at step 0"):
        made.train_from(start.begin())
    assert start.begin() is None


def test_a_loss_that_is_no_number_ends_it_with_the_checkpoint_before(make, here):
    made, _, start = make(sft(save_every="2 steps"))
    step = type(made).compute_loss

    def spoilt(*args, **kwargs):
        loss = step(made, *args, **kwargs)
        return loss * math.nan if made.state.global_step == 4 else loss

    made.compute_loss = spoilt
    with pytest.raises(UserError, match=r"loss at step 5 is nan.*checkpoint of step 4 is kept"):
        made.train_from(start.begin())
    assert start.begin().step == 4


def test_out_of_gpu_memory_halves_the_micro_batch(make, whole, here):
    """At the same global batch: what it learns is the same, up to rounding."""
    made, _, start = make(sft(lora=NO_DROPOUT))
    step = type(made).training_step

    def too_much(model, inputs, *args, **kwargs):
        if made.state.global_step == 3 and len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError
        return step(made, model, inputs, *args, **kwargs)

    made.training_step = too_much
    with pytest.raises(StartAgain, match=r"micro batch of 4.*step 3 with a micro batch of 2"):
        made.train_from(start.begin())
    again, after, start = make(sft(lora=NO_DROPOUT))
    assert again.args.per_device_train_batch_size == 2
    assert again.args.gradient_accumulation_steps == 2
    again.train_from(start.begin())
    expected = {place: value for place, value in whole(lora=NO_DROPOUT)[0].items() if place[0] > 3}
    assert losses(after.learned()) == pytest.approx(losses(expected), rel=1e-4)


def test_out_of_gpu_memory_with_one_row_is_said(make, here):
    made, _, start = make(sft(micro_batch=1))

    def too_much(*args, **kwargs):
        raise torch.OutOfMemoryError

    made.training_step = too_much
    with pytest.raises(UserError, match="one row at a time"):
        made.train_from(start.begin())


def test_checkpoints_hold_no_pickle_but_tensors(whole):
    """training_args.bin is a pickle of a class; optimizer.pt is tensors and numbers."""
    _, folders = whole()
    names = sorted(path.name for path in folders[NUM_STEPS].iterdir())
    others = [ADAPTER, "adapter_config.json", checkpoints.MANIFEST, checkpoints.PUBLISHED]
    assert names == sorted([*STATE, *others])
    torch.load(folders[NUM_STEPS] / "optimizer.pt", weights_only=True)


def test_the_same_crash_is_not_tried_for_ever(begin_attempt, here):
    for _ in range(attempt.MAX_WITHOUT_PROGRESS):
        start = begin_attempt()
        start.begin()
        start.ended("crashed", "ValueError: at step 7")
    with pytest.raises(UserError, match=r"3 times at step 0.*ValueError: at step 7.*starts\.jsonl"):
        begin_attempt().begin()


def test_a_start_that_stopped_of_its_own_will_is_no_crash(begin_attempt, here):
    for how in ("crashed", "crashed", "stopped", "crashed", "crashed"):
        start = begin_attempt()
        start.begin()
        start.ended(how)
    assert begin_attempt().begin() is None


def test_another_number_of_processes_is_refused_unless_asked(
    whole, begin_attempt, here, monkeypatch
):
    _, folders = whole()
    start = begin_attempt()
    put(folders[5], start)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="written by 1 processes, and here are 2"):
        start.begin()
    monkeypatch.setenv(attempt.ANY_WORLD_SIZE, "1")
    assert start.begin().step == 5
