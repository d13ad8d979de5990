"""A training in packs learns what one on padded rows learns, exactly, wherever it is stopped."""

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import packs
import pytest
import small
import torch
from safetensors.torch import load_file
from trainings import ADAPTER, Sink, in_ranks, losses, put, state
from transformers import AutoConfig, AutoModelForCausalLM

from siftune import tokens
from siftune.learning_curve import LearningCurve
from siftune.resume import checkpoints
from siftune.sections import Sft
from siftune.stage import RunAgain, StartAgain, UserError
from siftune.throughput import limits, planner
from siftune.training import requirements
from siftune.training import sft as training

# Relative, in fp32: of every loss; of the weights by their norm, since Adam divides rounding by
# itself where a gradient is nearly zero.
OF_LOSSES, OF_WEIGHTS = 1e-4, 1e-3
NUM_ROWS, LONGEST = 19, 22  # five steps an epoch; the last has three rows
BUDGET = "26 tokens"  # two to three packs a step
SHAPES = {name: packs.SHAPES[name] for name in ("llama-tied", "mistral-sliding", "gemma2")}


@pytest.fixture(autouse=True)
def _share_all(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)


def sft(**changed) -> Sft:
    values = {
        "num_epochs": 2.0, "eval_every": 3, "save_every": "1 steps", "micro_batch": BUDGET,
        "lora": small.lora(rank=2, alpha=4),
        "trainer": {"gradient_checkpointing": False, "weight_decay": 0.1},
    }  # fmt: skip
    return small.sft(**values | changed)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """Rows of two prompts and several turns; some answers are shared, too, and some rows whole."""
    folder = tmp_path_factory.mktemp("tokens")
    draw = np.random.default_rng(0)

    def some(length: int) -> list[int]:
        return draw.integers(3, packs.VOCABULARY, length).tolist()

    prompts, answers = [some(6), some(9)], [some(4), some(5), some(3)]
    for split, num_rows in (("train", NUM_ROWS), ("validation", 7)):
        rows = []
        for number in range(num_rows):
            prompt, answer = prompts[number % 2], answers[number % 3]
            more = [] if number % 5 == 0 else some(int(draw.integers(1, 10)))
            labels = [-100] * len(prompt) + answer + [-100] * min(len(more), 2) + more[2:]
            rows.append((str(number), prompt + answer + more, labels))
        assert max(len(ids) for _, ids, _ in rows) <= LONGEST
        with tokens.write(split, folder) as out:
            out.write_batch(tokens.batch(rows))
    return folder


@pytest.fixture(scope="module")
def make(tokenizer, encoded, begin_attempt):
    """A function: a trainer in the current folder, its log, and its start."""

    def new(settings: Sft, shape: str = "llama-tied"):
        kind, special = SHAPES[shape]
        config = AutoConfig.for_model(kind, **packs.COMMON | special)
        torch.manual_seed(0)
        attention = "eager" if kind == "gemma2" else "sdpa"
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
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


@pytest.fixture
def train(make, tmp_path, monkeypatch):
    """A function: the losses of a whole training, and its trained weights."""
    count = itertools.count()

    def run(settings: Sft, shape: str = "llama-tied"):
        folder = tmp_path / f"training-{next(count)}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        made, log, start = make(replace(settings, save_every="100 steps"), shape)
        made.train_from(start.begin())
        weights = {n: w.detach() for n, w in made.model.named_parameters() if w.requires_grad}
        return losses(log.learned()), weights

    return run


def differences(one, other) -> tuple[float, float]:
    """The largest relative difference of a loss; that of all trained weights together."""
    assert one[1].keys() == other[1].keys()
    assert len(one[0]) == len(other[0])
    of_losses = max(abs(a / b - 1) for a, b in zip(one[0], other[0], strict=True))
    flat = [torch.cat([w.flatten() for w in weights.values()]) for weights in (one[1], other[1])]
    return of_losses, float(torch.linalg.vector_norm(flat[0] - flat[1]) / flat[1].norm())


def test_forty_steps_in_packs_are_those_on_padded_rows(train):
    """Train and validation losses and the weights; the last batch of each epoch is uneven."""
    settings = sft(num_epochs=8.0, eval_every=10)
    padded = train(replace(settings, micro_batch=4))
    assert len(padded[0]) == 40 + 4
    assert padded[0][-1] < 0.8 * padded[0][0]
    for budget in (BUDGET, "1000 tokens"):
        of_losses, of_weights = differences(train(replace(settings, micro_batch=budget)), padded)
        assert of_losses < OF_LOSSES
        assert of_weights < OF_WEIGHTS


VARIANTS = {
    "a sliding window": ("mistral-sliding", {}),
    "capped logits": ("gemma2", {}),
    "all weights": ("llama-tied", {"lora": None, "learning_rate": 1e-3}),
    "dora": ("llama-tied", {"lora": small.lora(rank=2, dora=True)}),
    "the embedding whole": (
        "llama-tied", {"lora": small.lora(rank=2, modules_to_save=["embed_tokens"])}
    ),
    "gradient checkpointing": ("llama-tied", {"trainer": {"gradient_checkpointing": True}}),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_so_they_are_however_weights_are_adapted(variant, train):
    shape, changed = VARIANTS[variant]
    settings = sft(num_epochs=1.0, **changed)
    of_losses, of_weights = differences(
        train(settings, shape), train(replace(settings, micro_batch=4), shape)
    )
    assert of_losses < OF_LOSSES
    assert of_weights < OF_WEIGHTS


@pytest.mark.parametrize(
    "bug", [packs.leak, packs.wrong_positions, packs.counted_once, packs.lost_weight]
)
def test_a_bug_in_the_packs_would_show(bug, train, monkeypatch):
    settings = sft(num_epochs=1.0)
    padded = train(replace(settings, micro_batch=4))
    bug(monkeypatch)
    of_losses, of_weights = differences(train(settings), padded)
    assert of_losses > 10 * OF_LOSSES
    assert of_weights > 10 * OF_WEIGHTS


@pytest.mark.parametrize("bug", [packs.leak, packs.wrong_positions, packs.counted_once])
def test_the_proof_at_the_start_sees_it(bug, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, _, _ = make(sft())
    training.check_batches(made)
    bug(monkeypatch)
    with pytest.raises(UserError, match=r"sft\.micro_batch: 2 rows together in packs have a loss"):
        training.check_batches(made)


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A function: the log of a training that nothing stopped, and its checkpoint of each step."""
    known = {}

    def run(**changed) -> tuple[dict, dict[int, Path]]:
        key = repr(changed)
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path_factory.mktemp("whole"))
                patch.setattr(checkpoints, "KEPT", 10)
                patch.setattr(planner, "MIN_SAVED", 1)
                made, log, start = make(sft(**changed))
                made.train_from(start.begin())
                folders = start.checkpoints.folder.resolve().glob("step-*")
                known[key] = log.learned(), {int(path.name[5:]): path for path in folders}
        return known[key]

    return run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [{}, {"lora": None}, {"lora": small.lora(rank=2, dropout=0.3)},
     {"load": replace(small.LOAD, dtype="bf16")}],
    ids=["lora", "all weights", "dropout", "bf16"],
)  # fmt: skip
@pytest.mark.parametrize("step", [2, 5])
def test_killed_after_a_step_it_ends_with_the_same_bits(step, changed, make, whole, here):
    log, folders = whole(**changed)
    made, resumed, start = make(sft(**changed))
    put(folders[step], start)
    made.train_from(start.begin())
    for later in (9, 10):
        assert state(start.checkpoints.folder / f"step-{later:08d}") == state(folders[later])
    assert resumed.learned() == {place: v for place, v in log.items() if place[0] > step}


def test_stopped_between_any_two_packs_it_goes_on_exactly(make, whole, here):
    log, folders = whole()
    settings = sft(save_every="100 steps")
    made, _, start = make(settings)
    asked = []
    start.stop.reason = lambda: asked.append(None)
    made.train_from(start.begin())
    assert len(asked) > 10 * 2 + 4 * 2  # more than two packs a step; validation has two batches
    for place in range(1, len(asked), 13):
        shutil.rmtree("work")
        made, before, start = make(settings)
        count = itertools.count()
        start.stop.reason = lambda count=count, place=place: (
            "test" if next(count) == place else None
        )
        with pytest.raises(RunAgain, match=r"stopped at step \d+ of 10 \(test\)"):
            made.train_from(start.begin())
        again, after, start = make(settings)
        again.train_from(start.begin())
        assert state(start.checkpoints.folder / "step-00000010") == state(folders[10]), place
        assert before.learned() | after.learned() == log


def test_two_ranks_learn_what_one_does(make, whole, here):
    """With unequal numbers of packs; the last batch is made even with rows that do not count."""
    log, folders = whole()

    def work(rank: int) -> None:
        made, mine, start = make(sft())
        training.check_batches(made)
        made.train_from(start.begin())
        if rank == 0:
            Path("losses.json").write_text(json.dumps(losses(mine.learned())))
            shutil.copy(start.checkpoints.folder / "step-00000010" / ADAPTER, "weights")

    in_ranks(2, work)
    found = json.loads(Path("losses.json").read_text()), load_file("weights")
    one = losses(log), load_file(folders[10] / ADAPTER)
    of_losses, of_weights = differences(found, one)
    assert of_losses < OF_LOSSES
    assert of_weights < OF_WEIGHTS


def test_ranks_stop_together_between_packs_and_go_on_exactly(make, here):
    """Only one of two is told to; they have unequal numbers of packs."""
    settings = sft(save_every="100 steps")

    def without_a_stop(rank: int) -> None:
        os.chdir("whole")
        made, _, start = make(settings)
        made.train_from(start.begin())

    def stopped(rank: int) -> None:
        made, _, start = make(settings)
        count = itertools.count()
        start.stop.reason = lambda: "test" if rank == 1 and next(count) == 9 else None
        with pytest.raises(RunAgain, match=r"stopped at step [1-9]"):
            made.train_from(start.begin())

    def again(rank: int) -> None:
        made, _, start = make(settings)
        made.train_from(start.begin())

    Path("whole").mkdir()
    for work in (without_a_stop, stopped, again):
        in_ranks(2, work)
    (expected,) = Path("whole").glob("work/*/checkpoints/step-00000010")
    (mine,) = Path().glob("work/*/checkpoints/step-00000010")
    assert state(mine) == state(expected)


def test_out_of_gpu_memory_halves_the_budget(make, whole, here):
    made, _, start = make(sft(micro_batch="52 tokens"))
    step = made.compute_loss

    def too_much(model, inputs, *args, **kwargs):
        if made.state.global_step == 3 and inputs["pack"].input_ids.shape[1] > 26:
            raise torch.OutOfMemoryError
        return step(model, inputs, *args, **kwargs)

    made.compute_loss = too_much
    with pytest.raises(StartAgain, match=r"of 52 tokens.*step 3 with a micro batch of 26 tokens"):
        made.train_from(start.begin())
    again, after, start = make(sft(micro_batch="52 tokens"))
    assert again.micro_batch == BUDGET
    again.train_from(start.begin())
    expected = {place: value for place, value in whole()[0].items() if place[0] > 3}
    assert losses(after.learned()) == pytest.approx(losses(expected), rel=OF_LOSSES)


def test_out_of_gpu_memory_with_the_longest_row_is_said(make, here):
    made, _, start = make(sft(micro_batch=f"{LONGEST} tokens"))

    def too_much(*args, **kwargs):
        raise torch.OutOfMemoryError

    made.compute_loss = too_much
    with pytest.raises(UserError, match="one row at a time"):
        made.train_from(start.begin())


def test_what_is_computed_is_told(make, here, capsys):
    made, log, start = make(sft())
    made.train_from(start.begin())
    assert "Packs: the first step has" in capsys.readouterr().out
    shares = [value for (_, name), value in log.rows.items() if name == "computed_share"]
    assert len(shares) == 10
    assert all(0.3 < share < 1 for share in shares)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_cpu_the_memory_of_a_step_is_kept(device, make, here, monkeypatch):
    asked = []
    monkeypatch.setattr("siftune.throughput.memory.keep_freed", lambda: asked.append(True))
    monkeypatch.setattr("siftune.training.packed.models.device", lambda: torch.device(device))
    make(sft(micro_batch=2))
    assert not asked
    make(sft())
    assert asked == [True] * (device == "cpu")


def test_with_dropout_nothing_is_shared(make, here, capsys):
    made, log, start = make(sft(lora=small.lora(rank=2, dropout=0.3)))
    training.check_batches(made)
    made.train_from(start.begin())
    assert "nothing is shared, because of dropout" in capsys.readouterr().out
    assert {v for (_, name), v in log.rows.items() if name == "computed_share"} == {1.0}


def test_a_budget_below_the_longest_row_is_refused(make, here):
    with pytest.raises(UserError, match=rf'sft\.micro_batch: 20 tokens, .* write "{LONGEST} tok'):
        make(sft(micro_batch="20 tokens"))


def test_a_family_that_is_not_proven_is_refused(make, here, monkeypatch):
    monkeypatch.setattr(limits, "FAMILIES", ("gemma2",))
    with pytest.raises(UserError, match=r"params\.yaml: sft\.micro_batch: .* this is llama"):
        make(sft())


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"trainer": {"packing": True}}, r"sft\.trainer\.packing: True"),
        ({"trainer": {"neftune_noise_alpha": 5.0}}, r"sft\.trainer\.neftune_noise_alpha: 5.0"),
        ({"load": replace(small.LOAD, attention="eager")}, r"sft\.load\.attention: eager"),
        ({"load": replace(small.LOAD, engine="unsloth")}, r"sft\.load\.engine: unsloth"),
    ],
)
def test_what_is_of_padded_rows_is_refused(changed, key):
    requirements.require_consistent(sft())
    with pytest.raises(UserError, match=f"{key} does not go with packs .*26 tokens.* a number of"):
        requirements.require_consistent(sft(**changed))
