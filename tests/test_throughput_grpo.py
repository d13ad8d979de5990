"""GRPO in packs learns what it learns from padded rows, exactly, and bugs would show."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import packs
import pyarrow as pa
import pytest
import small
import torch
from test_throughput_preferences import prompt_counted_once, wrong_positions
from trainings import Sink, in_ranks, losses
from transformers import AutoConfig, AutoModelForCausalLM

from siftune import tokens
from siftune.learning_curve import LearningCurve
from siftune.rewards import choosing
from siftune.sections import Grpo, Reward
from siftune.stage import RunAgain, UserError
from siftune.throughput import limits, planner
from siftune.training import grpo as training
from siftune.training import packed_grpo, requirements

# In fp32, of one step: of each gradient, relative by its norm; of the loss, which is nearly zero,
# absolute.
TOLERANCE = 1e-5
# Relative, of a whole training: see test_throughput_training.py.
OF_LOSSES, OF_WEIGHTS = 1e-4, 1e-3
NUM_PROMPTS, NEW_TOKENS = 6, 7
BUDGET = "24 tokens"  # two to three packs a step
TRAINER = {"gradient_checkpointing": False, "lr_scheduler_type": "constant"}
MINE = """
def low(prompt, completion, record):
    return len(completion) % 7 / 7
"""


@pytest.fixture(autouse=True)
def _share_all(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)


def section(**changed) -> Grpo:
    values = {
        "num_epochs": 2.0, "global_batch": 8, "micro_batch": BUDGET, "eval_every": 3,
        "num_generations": 4, "max_new_tokens": NEW_TOKENS, "rewards": [Reward("mine.py:low", 1.0)],
        "generate": "transformers", "lora": small.lora(rank=2), "trainer": TRAINER,
        "learning_rate": 3e-3,
    }  # fmt: skip
    return Grpo(**vars(small.sft()) | values | changed)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """Prompts of which some begin alike."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = np.random.default_rng(0)
    system = draw.integers(3, packs.VOCABULARY, 5).tolist()
    for split, number in (("train", NUM_PROMPTS), ("validation", 2)):
        rows = []
        for place in range(number):
            own = draw.integers(3, packs.VOCABULARY, int(draw.integers(2, 9))).tolist()
            record = {"messages": [{"role": "user", "content": "x"}], "answer": "1", "fields": {}}
            rows.append({"id": str(place), "prompt_ids": system * (place % 2) + own,
                         "record": json.dumps({"id": str(place), **record})})  # fmt: skip
        with tokens.write(split, folder, "grpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(rows, schema=tokens.SCHEMAS["grpo"]))
    return folder


@pytest.fixture
def make(tokenizer, encoded, begin_attempt, tmp_path, monkeypatch):
    """A function: a trainer in the current folder, its log, and its start.

    Its completions depend on the step alone, not on what the model has learned.
    """
    monkeypatch.chdir(tmp_path)
    Path("train/rewards").mkdir(parents=True)
    Path("train/rewards/mine.py").write_text(MINE)

    def new(settings: Grpo, *, generates: bool = False):
        kind, special = packs.SHAPES["llama-tied"]
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **packs.COMMON | special)
        log, start = Sink(), begin_attempt(settings.save_every)
        made = training.make_trainer(
            AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"),
            tokenizer,
            grpo=settings,
            chosen=choosing.choose(settings.rewards, "grpo.rewards"),
            encoded=encoded,
            num_new_tokens=0,
            curve=LearningCurve(log, examples_per_step=8, also=training.curves(settings.rewards)),
            attempt=start,
            folder=start.folder / "scratch",
        )
        if not generates:
            made._generate_single_turn = lambda prompt_ids, *_: drawn(made, prompt_ids)
        return made, log, start

    return new


def drawn(made, prompt_ids: list[list[int]]) -> tuple[list[list[int]], None]:
    """Completions of 1 to 7 tokens, some of which begin alike, some of which are the same."""
    found = []
    for ids, number in zip(prompt_ids, itertools.count()):
        draw = np.random.default_rng([made.state.global_step, *ids, number % 4 % 3])
        found.append(
            [5, *draw.integers(3, packs.VOCABULARY, draw.integers(0, NEW_TOKENS)).tolist()]
        )
    return found, None


@pytest.fixture
def step(make):
    """A function: the loss and the gradients of one step, no matrix B at zero."""

    def run(settings: Grpo) -> packs.Result:
        made, *_ = make(settings)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in made.model.parameters():
                if weight.requires_grad:
                    weight += 0.1 * torch.randn(weight.shape, generator=draw)
        made.create_optimizer()
        made.model.train()
        made.current_gradient_accumulation_steps = made.args.gradient_accumulation_steps
        prompts = [made.train_dataset[place] for place in (0, 1) for _ in range(4)]
        loss = 0.0
        for _ in range(made.args.gradient_accumulation_steps):
            loss += made.training_step(made.model, prompts, None).item()
        shutil.rmtree("work")
        return 1.0 + loss, packs.gradients(made.model)

    return run


WAYS = {
    "dapo": {},
    "grpo": {"trainer": TRAINER | {"loss_type": "grpo"}},
    "bnpo": {"trainer": TRAINER | {"loss_type": "bnpo"}},
    "dr_grpo": {"trainer": TRAINER | {"loss_type": "dr_grpo"}},
    "sequences": {"trainer": TRAINER | {"importance_sampling_level": "sequence"}},
    "held to a reference": {"trainer": TRAINER | {"beta": 0.1}},
    "all weights": {"lora": None},
    "gradient checkpointing": {"trainer": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_padded_rows(way, step):
    settings = section(**WAYS[way])
    rows = step(replace(settings, micro_batch=8))
    assert packs.difference(step(settings), rows) < TOLERANCE
    assert packs.difference(step(replace(settings, micro_batch="1000 tokens")), rows) < TOLERANCE


def unweighed(monkeypatch) -> None:
    """Each pack is a mean of its own."""
    original = packed_grpo.RewardedInPacks._part
    monkeypatch.setattr(
        packed_grpo.RewardedInPacks,
        "_part",
        lambda self, made, rows: {**original(self, made, rows), "weight": 1.0},
    )


@pytest.mark.parametrize("bug", [packs.leak, wrong_positions, prompt_counted_once, unweighed])
def test_a_bug_in_the_packs_would_show(bug, step, monkeypatch):
    settings = section(trainer=TRAINER | {"loss_type": "grpo"})
    rows = step(replace(settings, micro_batch=8))
    bug(monkeypatch)
    assert packs.difference(step(settings), rows) > 100 * TOLERANCE


@pytest.mark.parametrize("bug", [packs.leak, wrong_positions])
def test_the_proof_at_the_start_sees_it(bug, make, monkeypatch):
    made, *_ = make(section(micro_batch="1000 tokens"))
    packed_grpo.check_batches(made)
    bug(monkeypatch)
    with pytest.raises(UserError, match=r"grpo\.micro_batch: the log-probabilities of prompts"):
        packed_grpo.check_batches(made)


@pytest.fixture
def train(make):
    def run(settings: Grpo):
        made, log, start = make(settings)
        made.train_from(start.begin())
        shutil.rmtree("work")
        weights = [one.detach().flatten() for one in made.model.parameters() if one.requires_grad]
        return log, torch.cat(weights)

    return run


@pytest.mark.parametrize("way", ["dapo", "held to a reference", "twice"])
def test_a_training_in_packs_is_that_on_padded_rows(way, train):
    """Twice: each step's completions are learned from in two steps."""
    special = {"trainer": TRAINER | {"num_iterations": 2}} if way == "twice" else WAYS[way]
    settings = section(num_epochs=3.0, **special)
    wanted = train(replace(settings, micro_batch=8))
    found = train(settings)
    assert len(losses(wanted[0].rows)) > 9
    for name in ("train_loss", "reward", "entropy", "kl", "validation_reward"):
        curve = wanted[0].curve(name)
        assert found[0].curve(name) == pytest.approx(curve, rel=OF_LOSSES, abs=1e-6), name
    assert torch.linalg.vector_norm(found[1] - wanted[1]) / wanted[1].norm() < OF_WEIGHTS


def test_two_ranks_learn_what_one_does(make, train):
    """With unequal numbers of packs."""
    settings = section()
    log, _ = train(settings)
    names = ("reward", "entropy")

    def work(rank: int) -> None:
        made, mine, start = make(settings)
        packed_grpo.check_batches(made)
        made.train_from(start.begin())
        if rank == 0:
            Path("log.json").write_text(json.dumps({name: mine.curve(name) for name in names}))

    in_ranks(2, work)
    for name, values in json.loads(Path("log.json").read_text()).items():
        assert values == pytest.approx(log.curve(name), rel=OF_LOSSES), name


def test_stopped_anywhere_it_goes_on_exactly(make):
    """With completions of its own, which need the attention that the model came with."""
    settings = section(save_every="1 steps")
    made, log, start = make(settings, generates=True)
    asked = []
    start.stop.reason = lambda: asked.append(made.state.global_step)
    made.train_from(start.begin())
    assert len(asked) > 3 * made.state.max_steps  # more than one pack a step
    wanted = torch.cat([one.detach().flatten() for one in made.model.parameters()])
    for place in (asked.index(2) + 2, len(asked) - 2):
        shutil.rmtree("work")
        first, before, start = make(settings, generates=True)
        count = itertools.count()
        start.stop.reason = lambda count=count, place=place: (
            "test" if next(count) == place else None
        )
        with pytest.raises(RunAgain):
            first.train_from(start.begin())
        again, after, start = make(settings, generates=True)
        again.train_from(start.begin())
        found = torch.cat([one.detach().flatten() for one in again.model.parameters()])
        assert torch.equal(found, wanted)
        assert before.learned() | after.learned() == log.learned()


def test_what_is_computed_is_told(make, capsys):
    made, log, start = make(section())
    made.train_from(start.begin())
    assert "Packs: the first step has" in capsys.readouterr().out
    assert all(0.2 < share < 0.9 for share in log.curve("computed_share"))


def test_what_would_not_be_exact_is_refused(make, monkeypatch):
    with pytest.raises(UserError, match=r"grpo\.micro_batch: 15 tokens, but a row has \d+: "):
        make(section(micro_batch="15 tokens"))
    monkeypatch.setattr(limits, "FAMILIES", ("gemma2",))
    with pytest.raises(UserError, match=r"params\.yaml: grpo\.micro_batch: .* this is llama"):
        make(section())


@pytest.mark.parametrize("option", ["top_entropy_quantile", "entropy_coef"])
def test_what_looks_at_a_micro_batch_is_refused(option):
    requirements.require_consistent(section(trainer={"loss_type": "grpo"}))
    with pytest.raises(UserError, match=rf"grpo\.trainer\.{option}: 0\.5 does not go with packs"):
        requirements.require_consistent(section(trainer={option: 0.5}))
