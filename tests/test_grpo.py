"""GRPO on a tiny model with thirty words: what it learns, how it goes on, and what it shows."""

import copy
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import small
import torch
import yaml
from datasets import Dataset
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from trainings import ADAPTER, Sink, in_ranks, put, uninterrupted
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer

from siftune import batches, tokens
from siftune.learning_curve import LearningCurve
from siftune.resume import checkpoints
from siftune.resume.trainer import STATE
from siftune.rewards import choosing, completions, scoring
from siftune.sections import Grpo, Reward
from siftune.stage import RunAgain, UserError
from siftune.training import adapters, grpo, requirements

ROOT = Path(__file__).parent.parent
WORDS = ["<pad>", "</s>", *"0123456789", *"abcdefghijklmn", "+", "=", "####", "<think>"]
SEVENS = Reward("mine.py:sevens", 1.0)
NUM_PROMPTS, NUM_STEPS = 10, 10  # two a step, two epochs
MINE = """
def sevens(prompt, completion, record):
    words = completion.split()
    return words.count("7") / max(len(words), 1)

def length(prompt, completion, record):
    return record["num_tokens"] / 8

def number(prompt, completion, record):
    return int(record["answer"])
"""


def section(**changed) -> Grpo:
    values = {
        "num_epochs": 2.0, "global_batch": 8, "micro_batch": 8, "eval_every": 4,
        "save_every": "1 steps", "num_generations": 4, "max_new_tokens": 8, "rewards": [SEVENS],
        "generate": "transformers", "lora": small.lora(dropout=0.1),
        "trainer": {"gradient_checkpointing": False},
    }  # fmt: skip
    return Grpo(**vars(small.sft()) | values | changed)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="</s>")


def problem(number: int) -> dict:
    question = f"{number % 10} + {number // 3} ="
    messages = [{"role": "user", "content": question}]
    return {"id": f"p{number}", "messages": messages, "answer": str(number % 7), "fields": {}}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tokenizer) -> Path:
    """Prompts of different lengths, as encode leaves them."""
    folder = tmp_path_factory.mktemp("tokens")
    for split, numbers in (("train", range(NUM_PROMPTS)), ("validation", range(20, 25))):
        records = [problem(number) for number in numbers]
        rows = [
            {
                "id": record["id"],
                "prompt_ids": tokenizer(
                    ("a " * place) + record["messages"][0]["content"]
                ).input_ids,
                "record": json.dumps(record),
            }
            for place, record in enumerate(records)
        ]
        with tokens.write(split, folder, "grpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(rows, schema=tokens.SCHEMAS["grpo"]))
    return folder


@pytest.fixture(scope="module")
def base(tokenizer):
    """A function: the tiny model, always with the same random weights."""
    settings = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip

    def new() -> LlamaForCausalLM:
        torch.manual_seed(0)
        model = LlamaForCausalLM(copy.deepcopy(settings))  # a training writes into it
        model.lm_head.weight.data *= 10  # or no word can become much likelier than another
        return model

    return new


@pytest.fixture(scope="module")
def make(base, tokenizer, encoded, begin_attempt):
    """A function: a trainer in the current folder, its log, and its start."""

    def new(settings: Grpo, data: Path = encoded):
        Path("train/rewards").mkdir(parents=True, exist_ok=True)
        Path("train/rewards/mine.py").write_text(MINE)
        log, start = Sink(), begin_attempt(settings.save_every)
        made = grpo.make_trainer(
            base(),
            tokenizer,
            grpo=settings,
            chosen=choosing.choose(settings.rewards, "grpo.rewards"),
            encoded=data,
            num_new_tokens=0,
            curve=LearningCurve(log, examples_per_step=8, also=grpo.curves(settings.rewards)),
            attempt=start,
            folder=start.folder / "scratch",
        )
        return made, log, start

    return new


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    return uninterrupted(make, section, partial(tmp_path_factory.mktemp, "whole"), 2 * NUM_STEPS)


def state(folder: Path) -> dict[str, str]:
    """What the training goes on from, as sha256."""
    files = checkpoints.verify(folder).manifest["files"]
    return {name: files[name]["sha256"] for name in (ADAPTER, "optimizer.pt", STATE)}


# It is TRL's


def test_a_step_is_that_of_trl(make, base, tokenizer, encoded, here):
    """TRL gets text and draws from the same seeds; the largest weight differs by 1e-7 of 1e-2."""
    settings = section(
        micro_batch=4, lora=small.lora(),
        trainer={"gradient_checkpointing": False, "max_steps": 1, "shuffle_dataset": False},
    )  # fmt: skip
    ours, _, start = make(settings)
    before = {name: one.clone() for name, one in get_peft_model_state_dict(ours.model).items()}
    ours.train_from(start.begin())

    class Plain(GRPOTrainer):
        def training_step(self, *args, **kwargs):
            place = (settings.seed, 0, self._step + 1, 0)
            set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
            return super().training_step(*args, **kwargs)

    def sevens(completions, **_):
        return [text.split().count("7") / max(len(text.split()), 1) for text in completions]

    texts = [tokenizer.decode(row["prompt_ids"]) for row in tokens.read("train", encoded)]
    plain = Plain(
        adapters.attach(base(), settings, num_tokens=len(tokenizer), num_new_tokens=0),
        reward_funcs=sevens,
        args=GRPOConfig(
            output_dir=str(here / "plain"),
            seed=settings.seed,
            learning_rate=1e-2,
            max_steps=1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=8,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
    )
    plain.train()
    mine, theirs = (get_peft_model_state_dict(one.model) for one in (ours, plain))
    assert mine.keys() == theirs.keys()
    moved = max((mine[name] - before[name]).abs().max().item() for name in mine)
    assert moved > 5e-3
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-7


# It goes on exactly


@pytest.mark.parametrize("step", [3, 5, 7])
def test_killed_in_either_epoch_or_between_them_it_ends_with_the_same_bits(step, make, whole, here):
    assert_goes_on_exactly(make, whole, step)


@pytest.mark.parametrize(
    "variant", ["accumulation", "several steps", "best", "reference", "all weights"]
)
def test_so_it_does_however_it_trains(variant, make, whole, here):
    changed = {
        "accumulation": {"micro_batch": 2},
        "several steps": {"trainer": {"gradient_checkpointing": False, "num_iterations": 2}},
        "best": {"keep": "best", "patience": 5},
        "reference": {"trainer": {"gradient_checkpointing": False, "beta": 0.5}},
        "all weights": {"lora": None, "learning_rate": 1e-3},
    }[variant]
    assert_goes_on_exactly(make, whole, 14 if variant == "several steps" else 7, **changed)


def assert_goes_on_exactly(make, whole, step, **changed):
    log, folders = whole(**changed)
    last = max(folders)
    made, resumed, start = make(section(**changed))
    put(folders[step], start)
    made.train_from(start.begin())
    mine = start.checkpoints.folder / f"step-{last:08d}"
    assert checkpoints.verify(mine).manifest["files"].keys() == (
        checkpoints.verify(folders[last]).manifest["files"].keys()
    )
    weights = [name for name in ("model.safetensors", ADAPTER) if (mine / name).exists()]
    assert weights
    for name in (*weights, "optimizer.pt", STATE):
        assert (mine / name).read_bytes() == (folders[last] / name).read_bytes(), name
    expected = {place: value for place, value in log.items() if place[0] > step}
    assert resumed.learned() == expected


def test_the_order_of_the_second_epoch_is_another(make, here):
    made, _, _ = make(section())
    sampler = made._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append([*sampler])
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == len(orders[0]) == NUM_PROMPTS * 4


@pytest.mark.parametrize("place", [0, 6, 13])
def test_told_to_stop_it_waits_for_where_completions_are_made(place, make, whole, here):
    """Two steps learn from the same completions: between them it does not stop, nor save."""
    changed = {
        "trainer": {"gradient_checkpointing": False, "num_iterations": 2}, "micro_batch": 4
    }  # fmt: skip
    _, folders = whole(**changed)
    assert sorted(folders) == [*range(2, 2 * NUM_STEPS + 1, 2)]
    made, _, start = make(section(**changed))
    asked = []
    start.stop.reason = lambda: asked.append(0) or ("test" if len(asked) > place else None)
    with pytest.raises(RunAgain, match=r"stopped at step (0|\d*[02468]) of 20"):
        made.train_from(start.begin())
    again, _, start = make(section(**changed))
    again.train_from(start.begin())
    assert state(start.checkpoints.folder / "step-00000020") == state(folders[20])


def test_two_processes_that_are_stopped_go_on_exactly(make, here, monkeypatch):
    """Each makes the completions of its own prompts, from dice of its own."""
    monkeypatch.setattr(checkpoints, "KEPT", 2 * NUM_STEPS)
    num_steps, stop = 5, 2

    def train(folder: str, *, stops: bool = False) -> None:
        Path(folder).mkdir(exist_ok=True)
        os.chdir(folder)
        made, _, start = make(section(micro_batch=2, num_epochs=1.0))
        if stops:
            start.stop.reason = lambda: "test" if made.state.global_step == stop else None
            with pytest.raises(RunAgain, match=f"stopped at step {stop} of {num_steps}"):
                made.train_from(start.begin())
        else:
            made.train_from(start.begin())

    in_ranks(2, lambda rank: train("whole"))
    in_ranks(2, lambda rank: train("resumed", stops=True))
    assert not [*here.glob(f"resumed/**/step-{num_steps:08d}")]
    in_ranks(2, lambda rank: train("resumed"))
    for step in (stop, num_steps):
        [mine], [theirs] = (
            [*here.glob(f"{folder}/**/step-{step:08d}")] for folder in ("resumed", "whole")
        )
        assert state(mine) == state(theirs)
        assert checkpoints.verify(mine).manifest["world_size"] == 2


def test_what_is_accumulated_changes_nothing(make, whole, here):
    """Also after the GPU's memory was too small: the completions are the same."""
    changed = {"lora": small.lora()}
    log, folders = whole(**changed)
    other, accumulated = whole(**changed, micro_batch=2)
    exact = [place for place in log if place[1] in ("reward", "validation_reward") and place[0] < 3]
    assert len(exact) == 3  # before rounding has another token drawn
    assert [other[place] for place in exact] == [log[place] for place in exact]
    one, two = (load_file(one[2] / ADAPTER) for one in (folders, accumulated))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5
    later = load_file(folders[3] / ADAPTER)
    assert max((one[name] - later[name]).abs().max().item() for name in one) > 1e-3


# What it learns


def test_a_reward_that_is_easy_to_earn_rises(make, here):
    settings = section(
        num_epochs=6.0, global_batch=16, micro_batch=16, num_generations=8, eval_every=30,
        save_every="100 steps", learning_rate=2e-2, lora=small.lora(),
    )  # fmt: skip
    made, log, start = make(settings)
    made.train_from(start.begin())
    rewards = log.curve("reward")
    assert len(rewards) == made.state.global_step == 30
    assert np.mean(rewards[:3]) < 0.1
    assert np.mean(rewards[-5:]) > 0.5
    before, after = log.curve("validation_reward")
    assert before < 0.15
    assert after > 0.5


def test_a_reward_of_weight_0_is_drawn_and_not_trained(make, here):
    """Its groups are all equal in what they earn, so no weight moves."""
    watched = [Reward("mine.py:sevens", 0.0), Reward("mine.py:number", 1.0)]
    made, log, start = make(section(rewards=watched, lora=small.lora()))
    before = {name: one.clone() for name, one in get_peft_model_state_dict(made.model).items()}
    made.train_from(start.begin())
    after = get_peft_model_state_dict(made.model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert len(set(log.curve("rewards/mine.py:sevens"))) > 3
    assert log.curve("share_of_equal_groups") == [1.0] * NUM_STEPS


def test_the_best_weights_are_those_that_earn_most(make, whole, here, monkeypatch):
    log, folders = whole(keep="best", patience=5)
    found = {step: value for (step, name), value in log.items() if name == "validation_reward"}
    assert list(found) == [0, 4, 8, 10]
    step = max(found, key=found.get)
    made, _, start = make(section(keep="best", patience=5))
    put(folders[NUM_STEPS], start)
    made.train_from(start.begin())
    assert (made.best.step, made.best.loss) == (step, -found[step])
    kept = get_peft_model_state_dict(made.model)
    expected = load_file(folders[step] / ADAPTER)
    assert all(torch.equal(kept[name], expected[name]) for name in kept)


# What it shows


def test_what_shows_cheating_is_logged_at_each_step(whole):
    rewards = [Reward("mine.py:sevens", 2.0), Reward("mine.py:length", -0.5)]
    log, _ = whole(rewards=rewards)
    steps = {step for step, _ in log} - {0}
    assert steps == {*range(1, NUM_STEPS + 1)}
    for step in steps:
        sevens, length = (log[step, f"rewards/{reward.name}"] for reward in rewards)
        assert log[step, "reward"] == pytest.approx(2 * sevens - 0.5 * length, abs=1e-6)
        assert log[step, "completion_tokens"] == pytest.approx(8 * length, abs=1e-5)
        for name in ("share_cut", "share_of_equal_groups", "entropy", "train_loss"):
            assert (step, name) in log
        assert 0 <= log[step, "share_cut"] <= 1
    assert [step for step, name in log if name == "validation_reward"] == [0, 4, 8, 10]


def test_the_mean_over_the_validation_split_counts_each_prompt_once(make, whole, here):
    """Five prompts in batches of two: the mean of means would be another."""
    rewards = [SEVENS, Reward("mine.py:number", 1.0)]
    made, log, start = make(section(rewards=rewards, micro_batch=2, global_batch=4, num_epochs=0.1))
    made.train_from(start.begin())
    numbers = [number % 7 for number in range(20, 25)]
    assert log.curve("validation_rewards/mine.py:number")[0] == pytest.approx(np.mean(numbers))
    by_batch = [np.mean(numbers[place : place + 4]) for place in (0, 4)]
    assert abs(np.mean(by_batch) - np.mean(numbers)) > 0.05


def test_completions_can_be_read_from_the_best_to_the_worst(make, whole, here):
    _, folders = whole()
    made, _, start = make(section())
    shutil.copy(folders[5].parents[1] / completions.NAME, start.folder)
    expected = completions.read(start.folder / completions.NAME)
    assert list(expected) == [0, 4, 8, 10]
    made.completions.rewind(5)
    assert list(completions.read(made.completions.path)) == [0, 4]
    shutil.copy(folders[5].parents[1] / completions.NAME, start.folder)
    put(folders[5], start)
    made.train_from(start.begin())
    assert completions.read(made.completions.path) == expected
    for rows in expected.values():
        assert len(rows) == 5
        assert {row["id"] for row in rows} == {f"p{number}" for number in range(20, 25)}
        earned = [row["reward"] for row in rows]
        assert earned == sorted(earned, reverse=True)
        for row in rows:
            words = row["completion"].split()
            assert row["scores"] == {SEVENS.name: pytest.approx(words.count("7") / len(words))}
            assert row["prompt"].endswith("=")


def test_of_many_completions_some_are_kept_from_both_ends(tmp_path):
    log = completions.Completions(tmp_path)
    log.add(3, [{"reward": float(number)} for number in range(100)])
    kept = [row["reward"] for row in completions.read(log.path)[3]]
    assert kept == [99, 85, 71, 57, 42, 28, 14, 0]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a b <think>", "<think> 7"),
        ("a <think> b", " 7"),
        ("<think>", "<think> 7"),
        ("a b =", " 7"),
    ],
)
def test_rewards_see_the_tag_that_the_prompt_opened(prompt, text, tokenizer):
    """As templates for reasoning do: the completion closes what it has not opened."""
    assert scoring.seen(tokenizer, tokenizer(prompt).input_ids, " 7") == text


# What is refused


def test_batches_are_whole_groups_of_prompts_that_are_there(make, here):
    told = r"grpo\.global_batch: 8 completions.*num_generations 3: 8 / 3 = 2\.67 prompts"
    with pytest.raises(UserError, match=told):
        batches.require_prompts(section(num_generations=3))
    with pytest.raises(UserError, match=r"4 of each of 12 prompts.* has 10\. Choose at most 40\."):
        make(section(global_batch=48))


def test_too_little_memory_for_completions_is_said(make, here):
    made, _, start = make(section(micro_batch=2))

    def too_much(*args, **kwargs):
        raise torch.OutOfMemoryError

    made.model.generate = too_much
    told = r"at step 0, while 5 completions of up to 8 tokens.*Lower grpo\.global_batch.*vllm"
    with pytest.raises(UserError, match=told):
        made.train_from(start.begin())


@pytest.mark.parametrize("name", ["num_generations", "max_completion_length", "use_vllm"])
def test_trls_options_are_not_set_past_ours(name, tmp_path):
    settings = section(trainer={name: 1})
    with pytest.raises(UserError, match=rf"grpo\.trainer\.{name}: siftune sets this one itself"):
        grpo.config(settings, micro_batch=8, num_accumulated=1, folder=tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_vllm_needs_a_gpu():
    with pytest.raises(UserError, match=r"grpo\.generate: vllm needs an NVIDIA GPU.*transformers"):
        requirements.require_generation(section(generate="vllm"))
    requirements.require_generation(section())


@pytest.fixture
def stage(encoded, default_params, here):
    """A function: the stage's script on these rewards, and all that it says."""
    shutil.copytree(encoded, tokens.folder_of("grpo"))
    Path("train/rewards").mkdir(parents=True)
    preset = yaml.safe_load((ROOT / "conf/method/grpo-lora.yaml").read_text())["grpo"]

    def run(rewards: list[dict] | None) -> subprocess.CompletedProcess:
        params = yaml.safe_load(default_params.read_text())
        params["grpo"] = None if rewards is None else preset | {"rewards": rewards}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-X", "importtime", "-P", str(ROOT / "train/grpo.py")]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        (
            [{"name": "mine.py:sevens", "weight": 1.0}],
            "params.yaml: grpo.rewards[0]: train/rewards/mine.py:2: NameError: name 'worsd' is",
        ),
        ([{"name": "lenght", "weight": 1.0}], "grpo.rewards[0]: there is no reward 'lenght'."),
        ([{"name": "rhyme", "weight": 0.0}], "grpo.rewards: all weights are 0"),
        (None, "params.yaml: grpo: null, but data.sources have rows for it"),
    ],
)
def test_what_is_wrong_with_rewards_is_one_error_before_torch_is_loaded(rewards, told, stage):
    Path("train/rewards/mine.py").write_text("def sevens(prompt, completion, record):\n    worsd\n")
    ended = stage(rewards)
    lines = ended.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    assert ended.returncode == 78, said
    assert told in said[0]
    assert len(said) == 1
    assert not [line for line in lines if line.endswith((" torch", " trl"))]
    assert any(line.endswith(" siftune.rewards.choosing") for line in lines)


def test_a_phase_that_is_left_out_publishes_nothing_at_once(stage):
    for split in tokens.SPLITS:
        with tokens.write(split, tokens.folder_of("grpo"), "grpo"):
            pass
    ended = stage(None)
    assert ended.returncode == 0, ended.stderr
    assert " torch\n" not in ended.stderr
    assert Path("data/completions.jsonl").read_text() == ""
    assert list(Path("models/grpo").iterdir()) == [Path("models/grpo/left_out.txt")]
