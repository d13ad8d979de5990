"""Preferences in packs are learned as on padded rows, exactly, and bugs would show."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import packs
import pyarrow as pa
import pytest
import small
import torch
from torch.nn import functional
from trainings import Sink, in_ranks, losses
from transformers import AutoConfig, AutoModelForCausalLM

from siftune import tokens
from siftune.learning_curve import LearningCurve
from siftune.sections import Dpo
from siftune.stage import RunAgain, UserError
from siftune.throughput import limits, padded, planner
from siftune.training import dpo as training
from siftune.training import requirements

TOLERANCE = 1e-5  # relative, in fp32, of one step: of the loss, and of each gradient by its norm
# Relative, of a whole training: see test_throughput_training.py.
OF_LOSSES, OF_WEIGHTS = 1e-4, 1e-3
NUM_PAIRS, NUM_HELD_OUT = 7, 5  # two steps an epoch; the last has three pairs
BUDGET = "48 tokens"  # two to three packs a step
TRAINER = {"gradient_checkpointing": False, "lr_scheduler_type": "constant"}


@pytest.fixture(autouse=True)
def _share_all(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)


def section(**changed) -> Dpo:
    values = {"num_epochs": 2.0, "eval_every": 2, "micro_batch": BUDGET, "trainer": TRAINER}
    return small.dpo(**values | changed)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """Pairs, some of one prompt, some prompts that begin alike, some answers, too."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = np.random.default_rng(0)

    def some(length: int) -> list[int]:
        return draw.integers(3, packs.VOCABULARY, length).tolist()

    system, turn = some(5), some(4)
    for split, number in (("train", NUM_PAIRS), ("validation", NUM_HELD_OUT)):
        rows = []
        for place in range(number):
            prompt = system + (turn if place % 3 == 0 else some(int(draw.integers(1, 8))))
            begin = some(2) if place % 2 else []
            chosen, rejected = (begin + some(int(draw.integers(2, 7))) for _ in range(2))
            ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            rows.append({"id": str(place), **ids})
        with tokens.write(split, folder, "dpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(rows, schema=tokens.SCHEMAS["dpo"]))
    return folder


@pytest.fixture
def make(tokenizer, encoded, begin_attempt, tmp_path, monkeypatch):
    """A function: a trainer in the current folder, its log, and its start."""
    monkeypatch.chdir(tmp_path)

    def new(settings: Dpo, shape: str = "llama-tied"):
        kind, special = packs.SHAPES[shape]

        def load():
            torch.manual_seed(0)
            config = AutoConfig.for_model(kind, **packs.COMMON | special)
            attention = "eager" if kind == "gemma2" else "sdpa"
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention)

        log, start = Sink(), begin_attempt(settings.save_every)
        made = training.make_trainer(
            load,
            tokenizer,
            dpo=settings,
            encoded=encoded,
            num_new_tokens=0,
            curve=LearningCurve(log, examples_per_step=4, also=training.CURVES),
            attempt=start,
            folder=start.folder / "scratch",
        )
        return made, log, start

    return new


@pytest.fixture
def step(make):
    """A function: the loss and the gradients of one step of four pairs, no matrix B at zero."""

    def run(settings: Dpo, shape: str = "llama-tied") -> packs.Result:
        made, *_ = make(settings, shape)
        draw = torch.Generator().manual_seed(0)
        trained = [one for one in made.model.parameters() if one.requires_grad]
        with torch.no_grad():
            for weight in trained:
                weight += 0.1 * torch.randn(weight.shape, generator=draw)
        made.create_optimizer()
        rows = [made.train_dataset[place] for place in range(settings.global_batch)]
        batch = made.data_collator(rows)
        number = made._get_num_items_in_batch([batch], made.args.device)
        batch["num_own"] = len(rows)
        loss = made.training_step(made.model, batch, number).item()
        shutil.rmtree("work")
        return loss, packs.gradients(made.model)

    return run


WAYS = {
    "sigmoid": {},
    "ipo": {"loss": "ipo"},
    "apo_zero": {"loss": "apo_zero"},
    "kto": {"loss": "kto", "global_batch": 6},
    "simpo": {"loss": "simpo", "gamma": 0.25},
    "orpo": {"loss": "orpo"},
    "all weights": {"lora": None},
    "weighted": {"trainer": TRAINER | {"use_weighting": True}},
    "by length": {"trainer": TRAINER | {"ld_alpha": 0.5}},
    "the reference asked once": {"trainer": TRAINER | {"precompute_ref_log_probs": True}},
    "gradient checkpointing": {"trainer": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_padded_rows(way, step):
    settings = section(**WAYS[way])
    rows = step(replace(settings, micro_batch=settings.global_batch))
    assert packs.difference(step(settings), rows) < TOLERANCE
    assert packs.difference(step(replace(settings, micro_batch="1000 tokens")), rows) < TOLERANCE


@pytest.mark.parametrize("shape", ["mistral-sliding", "gemma2", "qwen3", "phi3"])
def test_so_they_are_for_other_shapes(shape, step):
    rows = step(section(micro_batch=4), shape)
    assert packs.difference(step(section(), shape), rows) < TOLERANCE


def wrong_positions(monkeypatch) -> None:
    """Positions go on over the whole pack."""
    original = padded.lay_out

    def running(*given):
        made = original(*given)
        return replace(made, position_ids=torch.arange(made.input_ids.shape[1])[None])

    monkeypatch.setattr(padded, "lay_out", running)


def prompt_counted_once(monkeypatch) -> None:
    """A shared token learns from the first of its rows alone."""

    def first_only(states, pack, mask):
        known: set[int] = set()
        rows = []
        for row in np.argsort(pack.rows):
            place = torch.from_numpy(pack.places[row])
            is_new = torch.tensor([int(token) not in known for token in place])[:, None]
            rows.append(torch.where(is_new, states[place], states[place].detach()))
            known.update(place.tolist())
        return functional.pad(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                              (0, 0, 0, mask.shape[1] - max(map(len, rows))))  # fmt: skip

    monkeypatch.setattr(padded, "_padded", first_only)


def weighed_by_pack(monkeypatch) -> None:
    """Each pack is the mean of its own pairs, whatever their number."""
    original = training.PackedDpoTrainer._cut

    def uneven(self, batch):
        return [part | {"num_own": 1} for part in original(self, batch)]

    monkeypatch.setattr(training.PackedDpoTrainer, "_cut", uneven)


BUGS = [packs.leak, wrong_positions, prompt_counted_once, weighed_by_pack]


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_the_packs_would_show(bug, step, monkeypatch):
    rows = step(section(micro_batch=4))
    bug(monkeypatch)
    assert packs.difference(step(section()), rows) > 100 * TOLERANCE


@pytest.mark.parametrize("bug", [packs.leak, wrong_positions])
@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_the_proof_at_the_start_sees_it(bug, loss, make, monkeypatch):
    made, *_ = make(section(loss=loss, micro_batch="1000 tokens"))
    training.check_batches(made)
    bug(monkeypatch)
    with pytest.raises(UserError, match=r"dpo\.micro_batch: the log-probabilities of 2 examples"):
        training.check_batches(made)


@pytest.fixture
def train(make):
    """A function: what a whole training logs, and its trained weights."""

    def run(settings: Dpo):
        made, log, start = make(settings)
        made.train_from(start.begin())
        shutil.rmtree("work")
        weights = [one.detach().flatten() for one in made.model.parameters() if one.requires_grad]
        return log, torch.cat(weights)

    return run


NAMES = ("reward_margin", "validation_reward_margin", "chosen_logprob")


def assert_same(found, wanted) -> None:
    assert len(losses(wanted[0].rows)) == 8 + 4
    assert losses(found[0].rows) == pytest.approx(losses(wanted[0].rows), rel=OF_LOSSES)
    for name in NAMES:
        curve = wanted[0].curve(name)
        assert found[0].curve(name) == pytest.approx(curve, rel=1e-3, abs=1e-4), name
    difference = torch.linalg.vector_norm(found[1] - wanted[1]) / wanted[1].norm()
    assert difference < OF_WEIGHTS


@pytest.mark.parametrize("way", ["sigmoid", "simpo", "all weights", "the reference asked once"])
def test_a_training_in_packs_is_that_on_padded_rows(way, train):
    """The last batch of each epoch is uneven."""
    settings = section(num_epochs=4.0, learning_rate=3e-3, **WAYS[way])
    rows = train(replace(settings, micro_batch=4))
    assert rows[0].curve("train_loss")[-1] < 0.97 * rows[0].curve("train_loss")[0]
    assert_same(train(settings), rows)


def test_kto_estimates_by_all_rows_of_a_step_whatever_the_packs(train):
    settings = section(loss="kto", global_batch=7, num_epochs=4.0, learning_rate=3e-3)
    wanted = train(replace(settings, micro_batch=7))
    for budget in (BUDGET, "1000 tokens"):
        assert_same(train(replace(settings, micro_batch=budget)), wanted)


def test_two_ranks_learn_what_one_does(make, train):
    """With unequal numbers of packs; the last batch is made even with rows that do not count."""
    names = ("train_loss", "validation_loss", *NAMES)
    of_pairs = section(micro_batch="40 tokens")
    wanted = train(of_pairs)[0]

    def work(rank: int) -> None:
        made, mine, start = make(of_pairs)
        made.train_from(start.begin())
        if rank == 0:
            Path("log.json").write_text(json.dumps({name: mine.curve(name) for name in names}))
        # Of labelled answers the neighbours are a process's own; here they only have to agree.
        labelled, *_ = make(section(loss="kto"))
        labelled.train_from(None)

    in_ranks(2, work)
    for name, values in json.loads(Path("log.json").read_text()).items():
        assert values == pytest.approx(wanted.curve(name), rel=OF_LOSSES, abs=1e-5), name


@pytest.mark.parametrize("way", ["sigmoid", "kto", "the reference asked once"])
def test_stopped_anywhere_it_goes_on_exactly(way, make):
    settings = section(save_every="1 steps", **WAYS[way])
    made, log, start = make(settings)
    asked = []
    start.stop.reason = lambda: asked.append(made.state.global_step)
    made.train_from(start.begin())
    assert len(asked) > 2 * made.state.max_steps  # more than one pack a step
    wanted = packs_of_weights(made)
    for place in (asked.index(2) + 1, len(asked) - 2):  # between packs, and in the evaluation
        shutil.rmtree("work")
        first, before, start = make(settings)
        count = itertools.count()
        start.stop.reason = lambda count=count, place=place: (
            "test" if next(count) == place else None
        )
        with pytest.raises(RunAgain):
            first.train_from(start.begin())
        again, after, start = make(settings)
        again.train_from(start.begin())
        assert torch.equal(packs_of_weights(again), wanted)
        assert before.learned() | after.learned() == log.learned()


def packs_of_weights(made) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in made.model.parameters()])


def test_what_is_computed_is_told(make, capsys):
    made, log, start = make(section(micro_batch="1000 tokens"))
    made.train_from(start.begin())
    assert "Packs: the first step has" in capsys.readouterr().out
    shares = log.curve("computed_share")
    assert len(shares) == 4
    assert all(0.3 < share < 0.8 for share in shares)


def test_both_answers_of_a_pair_are_in_one_pack(make):
    made, *_ = make(section())
    batch = made.data_collator([made.train_dataset[place] for place in range(NUM_PAIRS)])
    parts = made._cut({**batch, "num_own": NUM_PAIRS})
    assert 1 < len(parts) < NUM_PAIRS
    rows = [row for part in parts for row in zip(*part["input_ids"].chunk(2), strict=True)]
    wanted = list(zip(*batch["input_ids"].chunk(2), strict=True))
    assert sorted(torch.cat(row).tolist() for row in rows) == sorted(
        torch.cat(row).tolist() for row in wanted
    )
    assert math.isclose(sum(part["num_own"] for part in parts), NUM_PAIRS)


def test_a_budget_below_a_pair_is_refused(make):
    with pytest.raises(
        UserError, match=r"dpo\.micro_batch: 8 tokens, but a pair of rows has \d+: "
    ):
        make(section(micro_batch="8 tokens"))


def test_a_family_that_is_not_proven_is_refused(make, monkeypatch):
    monkeypatch.setattr(limits, "FAMILIES", ("gemma2",))
    with pytest.raises(UserError, match=r"params\.yaml: dpo\.micro_batch: .* this is llama"):
        make(section())


def test_what_is_of_padded_rows_is_refused():
    requirements.require_consistent(section(loss="kto"))
    with pytest.raises(UserError, match=r"dpo\.load\.attention: eager does not go with packs"):
        requirements.require_consistent(section(load=replace(small.LOAD, attention="eager")))
