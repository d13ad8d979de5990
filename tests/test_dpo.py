"""Preferences: what TRL learns from text, by any micro batch, and resumed anywhere."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import small
import torch
from datasets import Dataset
from test_resume import in_ranks
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import use_adapter

from siftune import tokens
from siftune.chat import preference
from siftune.learning_curve import LearningCurve, summarise
from siftune.resume import checkpoints
from siftune.sections import Dpo
from siftune.stage import RunAgain, UserError
from siftune.training import adapters, dpo, phases, requirements

NUM_PAIRS, NUM_HELD_OUT = 7, 5  # two steps an epoch; the last has three pairs
TRAINER = {"gradient_checkpointing": False, "lr_scheduler_type": "constant"}
LN2 = math.log(2)


class Sink:
    """Takes what a run would log."""

    def __init__(self):
        self.rows = {}

    def log(self, values, *, step):
        for name, value in values.items():
            self.rows[step, name] = value

    def curve(self, name: str) -> list[float]:
        return [value for (_, found), value in sorted(self.rows.items()) if found == name]

    def learned(self) -> dict[tuple[int, str], float]:
        """What does not depend on the clock."""
        clocked = ("_per_second", "memory_mb")
        return {
            place: value for place, value in self.rows.items() if not place[1].endswith(clocked)
        }


def write(folder: Path, split: str, rows: list[dict]) -> None:
    numbered = [{"id": str(number), **row} for number, row in enumerate(rows)]
    with tokens.write(split, folder, "dpo") as out:
        out.write_batch(pa.RecordBatch.from_pylist(numbered, schema=tokens.SCHEMAS["dpo"]))


def pairs(number: int, *, seed: int) -> list[dict]:
    """Good answers are of six tokens, bad ones of six others: a rule that can be learned."""
    draw = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(3, 9, (), generator=draw))
        return torch.randint(low, high, (length,), generator=draw).tolist()

    return [
        {"prompt_ids": ids(3, 96), "chosen_ids": ids(3, 9), "rejected_ids": ids(60, 66)}
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write(folder, "train", pairs(NUM_PAIRS, seed=1))
    write(folder, "validation", pairs(NUM_HELD_OUT, seed=2))
    return folder


def random_model(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            pad_token_id=2,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    return random_model(100)


@pytest.fixture
def make(tokenizer, base, encoded, begin_attempt, tmp_path, monkeypatch):
    """A function: a trainer in the current folder, its log, and its start."""
    monkeypatch.chdir(tmp_path)

    def new(settings: Dpo, rows: Path = encoded, *, begin=base, num_new_tokens: int = 0):
        def load() -> LlamaForCausalLM:
            model = LlamaForCausalLM(begin.config)
            model.load_state_dict(begin.state_dict())
            return model

        log, start = Sink(), begin_attempt(settings.save_every)
        made = dpo.make_trainer(
            load,
            tokenizer,
            dpo=settings,
            encoded=rows,
            num_new_tokens=num_new_tokens,
            curve=LearningCurve(log, examples_per_step=settings.global_batch, also=dpo.CURVES),
            attempt=start,
            folder=tmp_path,
        )
        return made, log, start

    return new


def section(**changed) -> Dpo:
    return small.dpo(
        **{"num_epochs": 2.0, "eval_every": 2, "save_every": "1 steps", "trainer": TRAINER}
        | changed
    )


@pytest.fixture
def train(make):
    """A function: a trainer that has trained to its end, and its log."""

    def run(*args, begin=None, num_new_tokens=0, **changed):
        how = {"num_new_tokens": num_new_tokens} | ({"begin": begin} if begin else {})
        made, log, start = make(section(**changed), *args, **how)
        made.train_from(start.begin())
        shutil.rmtree("work")
        return made, log

    return run


def trained(made) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in made.model.named_parameters() if p.requires_grad}


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_the_margin_rises_from_zero_and_all_of_it_is_in_the_curve(train, tmp_path):
    made, log = train(num_epochs=6.0)
    assert log.curve("train_loss")[0] == pytest.approx(LN2, abs=1e-6)
    assert log.curve("reward_margin")[0] == pytest.approx(0.0, abs=1e-6)
    assert log.curve("reward_margin")[-1] > 0.5
    assert log.curve("validation_reward_margin")[-1] > 0.5
    assert log.curve("validation_reward_accuracy")[-1] >= 0.8
    assert log.curve("validation_loss")[-1] < 0.5
    assert log.curve("chosen_logprob")[-1] > log.curve("rejected_logprob")[-1]
    curve = made.callback_handler.callbacks[-1]
    found = summarise(made, curve)
    for name in ("validation_loss", "validation_reward_margin", "validation_chosen_logprob"):
        assert found[name] == log.curve(name)[-1]
    curve.write(tmp_path / "curve.csv")
    header, first, *_ = (tmp_path / "curve.csv").read_text().splitlines()
    named = dict(zip(header.split(","), first.split(","), strict=True))
    assert named["reward_accuracy"] == "0.0"
    assert named["validation_reward_margin"] == ""


def test_accumulation_changes_nothing(train):
    """Nor does it in the last step of an epoch, of three pairs in micro batches of two and one."""
    whole, log = train()
    for micro_batch in (1, 2):
        parts, other = train(micro_batch=micro_batch)
        assert largest_difference(trained(whole), trained(parts)) < 1e-5
        for name in ("train_loss", "validation_loss", "reward_margin", "validation_reward_margin"):
            assert other.curve(name) == pytest.approx(log.curve(name), abs=1e-5), name
    slower, _ = train(learning_rate=5e-3)
    assert largest_difference(trained(whole), trained(slower)) > 1e-3


def test_two_ranks_learn_what_one_does(make, train):
    _, log = train()

    def work(rank: int) -> None:
        made, mine, start = make(section(micro_batch=2))
        made.train_from(start.begin())
        if rank == 0:
            Path("log.json").write_text(json.dumps({n: mine.curve(n) for n in names}))

    names = ("train_loss", "validation_loss", "reward_margin", "validation_reward_accuracy")
    in_ranks(2, work)
    for name, values in json.loads(Path("log.json").read_text()).items():
        assert values == pytest.approx(log.curve(name), abs=1e-5), name


def log_prob(model, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, :-1]
    log_probs = logits.log_softmax(-1)[torch.arange(len(logits)), (prompt + answer)[1:]]
    return log_probs[len(prompt) - 1 :].sum().item()


def test_the_validation_loss_is_that_of_its_definition(train, base):
    """Rafailov et al. 2023, equation 7, pair by pair with the models' own logits."""
    made, log = train(micro_batch=2, beta=0.3)
    model = made.model.merge_and_unload()
    losses = []
    for pair in pairs(NUM_HELD_OUT, seed=2):
        chosen, rejected = (
            log_prob(model, pair["prompt_ids"], pair[name])
            - log_prob(base, pair["prompt_ids"], pair[name])
            for name in ("chosen_ids", "rejected_ids")
        )
        losses.append(math.log(1 + math.exp(-0.3 * (chosen - rejected))))
    assert sum(losses) / len(losses) == pytest.approx(log.curve("validation_loss")[-1], abs=1e-5)


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [("How much is 2 + 2?", "It is 4.", "I will not say."), ("And 7?", "7", "八"),
         ("Name a colour", "red", "7"), ("What is up?", "the sky", "It is 4.")]  # fmt: skip


def test_a_step_is_that_of_trl_on_text(make, tokenizer, tiny_model, encode_settings, tmp_path):
    """Where the template ends with its stop token: else TRL trains what is written after it, too.

    Losses of two steps and the weights after them agree to 1e-5.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = TEMPLATE
    records = [
        {"messages": [{"role": "user", "content": asked}], "chosen": good, "rejected": bad}
        for asked, good, bad in ASKED
    ]
    found = preference.encode(plain, records, encode_settings, ("<think>", "</think>"))
    rows = [
        {"prompt_ids": one.prompt, **{f"{k}_ids": ids for k, ids in one.answers.items()}}
        for one in found
    ]
    for split in ("train", "validation"):
        write(tmp_path, split, rows)

    def fresh():
        return AutoModelForCausalLM.from_pretrained(tiny_model)

    settings = section(lora=None, learning_rate=1e-4, eval_every=2)
    log = Sink()
    ours = dpo.make_trainer(
        fresh, plain, dpo=settings, encoded=tmp_path, num_new_tokens=0,
        curve=LearningCurve(log, examples_per_step=4, also=dpo.CURVES),
        attempt=make(section())[2], folder=tmp_path,
    )  # fmt: skip
    ours.train_from(None)
    theirs = DPOTrainer(
        fresh(), ref_model=fresh(), processing_class=plain,
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"), seed=1, data_seed=1, learning_rate=1e-4,
            num_train_epochs=2, per_device_train_batch_size=4, beta=0.5, logging_steps=1,
            report_to="none", use_cpu=True, bf16=False, save_strategy="no", **TRAINER,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": asked}],
                    "chosen": [{"role": "assistant", "content": good}],
                    "rejected": [{"role": "assistant", "content": bad}],
                }
                for asked, good, bad in ASKED
            ]
        ),
    )  # fmt: skip
    theirs.train()
    logged = [row for row in theirs.state.log_history if "loss" in row]
    assert [row["loss"] for row in logged] == pytest.approx(log.curve("train_loss"), abs=1e-5)
    assert [row["rewards/margins"] for row in logged] == pytest.approx(
        log.curve("reward_margin"), abs=1e-5
    )
    assert log.curve("train_loss")[1] < LN2 - 0.01
    assert largest_difference(trained(ours), trained(theirs)) < 1e-5


LOSSES = [
    *("sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "sigmoid_norm", "kto", "simpo", "orpo"),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_trains(loss, train):
    smooth = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair") else {}
    settings = {
        "loss": loss,
        "gamma": 0.25 if loss == "simpo" else None,
        "trainer": TRAINER | smooth,
        "eval_every": 1,
        "num_epochs": 1.0,
    }
    _, log = train(**settings)
    losses, margins = log.curve("validation_loss"), log.curve("validation_reward_margin")
    assert losses[-1] < losses[0]
    assert margins[-1] > margins[0]


def test_simpo_and_orpo_are_those_of_trl():
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = -torch.rand(2, 7, generator=draw) * 4
    device = SimpleNamespace(device="cpu")
    of_trl = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=2.0, label_smoothing=0.0,
        accelerator=device,
    )  # fmt: skip
    losses, *_ = CPOTrainer.cpo_loss(of_trl, chosen, rejected)
    torch.testing.assert_close(dpo.simpo(chosen, rejected, beta=2.0, gamma=0.7), losses)
    of_trl = SimpleNamespace(beta=0.3, accelerator=device)
    ratios, *_ = ORPOTrainer.odds_ratio_loss(of_trl, chosen, rejected)
    # TRL subtracts their mean from the loss of sft.
    torch.testing.assert_close(dpo.orpo(chosen, rejected, beta=0.3), -chosen - ratios)


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_they_are_of_the_mean_token_of_an_answer(loss, train):
    """Before any learning, from the base's own logits."""
    made, log = train(loss=loss, gamma=0.5 if loss == "simpo" else None, learning_rate=1e-12)
    model = made.model.merge_and_unload()
    means = [
        [
            log_prob(model, pair["prompt_ids"], pair[name]) / len(pair[name])
            for name in ("chosen_ids", "rejected_ids")
        ]
        for pair in pairs(NUM_HELD_OUT, seed=2)
    ]
    chosen, rejected = torch.tensor(means).T
    expected = (
        dpo.simpo(chosen, rejected, beta=0.5, gamma=0.5)
        if loss == "simpo"
        else dpo.orpo(chosen, rejected, beta=0.5)
    )
    assert log.curve("validation_loss")[-1] == pytest.approx(expected.mean().item(), abs=1e-5)


RESUMED = {
    "lora": {"lora": small.lora(dropout=0.3), "trainer": TRAINER | {"disable_dropout": False}},
    "pissa": {"lora": small.lora(init="pissa")},
    "all weights": {"lora": None, "learning_rate": 1e-3},
    "precomputed": {
        "lora": None,
        "learning_rate": 1e-3,
        "trainer": TRAINER | {"precompute_ref_log_probs": True},
    },
    "kto": {"loss": "kto"},
    "simpo": {"loss": "simpo", "gamma": 0.25, "keep": "best"},
}


@pytest.mark.parametrize("variant", RESUMED)
def test_stopped_anywhere_it_goes_on_exactly(variant, make, monkeypatch):
    settings = section(micro_batch=2, **RESUMED[variant])
    monkeypatch.setattr(checkpoints, "KEPT", 9)
    made, log, start = make(settings)
    asked = []
    start.stop.reason = lambda: asked.append(made.state.global_step)
    made.train_from(start.begin())
    assert made.state.global_step == (8 if settings.loss == "kto" else 4)
    places = [asked.index(2) + 1, len(asked) - 3]  # between micro batches, and in the evaluation
    for place in places:
        shutil.rmtree("work")
        first, before, start = make(settings)
        count = iter(range(len(asked)))
        start.stop.reason = lambda count=count, place=place: (
            "test" if next(count) == place else None
        )
        with pytest.raises(RunAgain):
            first.train_from(start.begin())
        again, after, start = make(settings)
        again.train_from(start.begin())
        assert largest_difference(trained(made), trained(again)) == 0.0
        assert before.learned() | after.learned() == log.learned()
        assert not set(before.rows) & set(after.rows)


def test_reference_log_probs_are_kept_beside_the_checkpoints(make, encoded):
    settings = section(lora=None, trainer=TRAINER | {"precompute_ref_log_probs": True})
    made, _, start = make(settings)
    assert made.ref_model is None
    assert len(list(start.folder.glob("reference-*.arrow"))) == 2
    assert {path.name for path in encoded.iterdir()} == {"train.arrow", "validation.arrow"}
    # A later start reads them.
    made.compute_ref_log_probs = None
    stamps = {path: path.stat().st_mtime_ns for path in start.folder.glob("reference-*")}
    make(settings)
    assert stamps == {path: path.stat().st_mtime_ns for path in start.folder.glob("reference-*")}


BEGINNINGS = {
    "default": {},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "the embedding whole": {"modules_to_save": ["embed_tokens"]},
}


def assert_reference_stays(made, base) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        with use_adapter(made.model, "ref"):
            found = made.model(input_ids=ids).logits
        torch.testing.assert_close(found, base(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
        assert (made.model(input_ids=ids).logits - found).abs().max() > 0.1


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_reference_is_the_model_at_the_start(beginning, train, base):
    """Also after training, which must not move it."""
    assert_reference_stays(train(lora=small.lora(**BEGINNINGS[beginning]))[0], base)


def test_so_it_is_where_tokens_are_new(train, tokenizer):
    begin = random_model(len(tokenizer))
    made, _ = train(begin=begin, num_new_tokens=2)
    assert any("trainable_tokens" in name for name in trained(made))
    assert_reference_stays(made, begin)


@pytest.mark.parametrize("init", ["default", "pissa"])
def test_merged_is_base_and_adapter_and_the_reference_is_not_published(
    init, train, base, tokenizer, tmp_path
):
    made, _ = train(lora=small.lora(init=init))
    adapters.save(made.model, tmp_path / "adapter", base="x", first=made.first_factors)
    names = {path.name for path in (tmp_path / "adapter").rglob("*")}
    assert names == {adapters.SETTINGS, adapters.WEIGHTS}
    base.save_pretrained(tmp_path / "base")
    merged = phases.merged(
        tmp_path / "base", [tmp_path / "adapter"], num_tokens=base.config.vocab_size
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = made.model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert (base(input_ids=ids).logits - expected).abs().max() > 0.1


@pytest.fixture
def turned(tmp_path) -> Path:
    """The validation split prefers what the training split rejects: there it gets worse."""
    write(tmp_path, "train", pairs(NUM_PAIRS, seed=1))
    held_out = [
        row | {"chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]}
        for row in pairs(NUM_HELD_OUT, seed=2)
    ]
    write(tmp_path, "validation", held_out)
    return tmp_path


@pytest.mark.parametrize("kept", ["last", "best"])
def test_the_best_weights_are_those_of_the_lowest_validation_loss(kept, train, turned):
    made, log = train(turned, keep=kept, eval_every=1)
    losses = log.curve("validation_loss")
    assert losses[0] < losses[-1] - 0.1
    found = made.evaluate()["eval_loss"]
    assert found == pytest.approx(losses[0 if kept == "best" else -1], abs=1e-6)


def test_patience_ends_it(train, turned):
    made, log = train(turned, patience=2, eval_every=1)
    assert made.state.global_step == 3
    assert len(log.curve("validation_loss")) == 3


def single(rows: list[dict]) -> list[dict]:
    """Each second answer is missing, in turn the good and the bad one."""
    names = ("chosen_ids", "rejected_ids")
    return [row | {names[number % 2]: None} for number, row in enumerate(rows)]


def test_kto_learns_from_single_answers(train, tmp_path):
    for split in ("train", "validation"):
        write(tmp_path, split, single(pairs(7, seed=1)))
    made, log = train(tmp_path, loss="kto", num_epochs=4.0)
    assert len(made.train_dataset) == 7
    assert sum(made.train_dataset["label"]) == 3
    assert log.curve("validation_loss")[0] > log.curve("validation_loss")[-1]
    assert log.curve("validation_reward_margin")[-1] > 0.2


def test_of_pairs_kto_learns_each_answer(make):
    made, *_ = make(section(loss="kto"))
    assert len(made.train_dataset) == 2 * NUM_PAIRS
    answers = [
        (row["prompt_ids"], row["completion_ids"], row["label"]) for row in made.train_dataset
    ]
    for pair in pairs(NUM_PAIRS, seed=1):
        assert (pair["prompt_ids"], pair["chosen_ids"], True) in answers
        assert (pair["prompt_ids"], pair["rejected_ids"], False) in answers


def test_kto_estimates_by_the_answers_of_its_neighbours(make):
    made, *_ = make(section(loss="kto"))
    rows = [made.train_dataset[number] for number in range(4)]
    batch = made.data_collator(rows)
    for number, row in enumerate(rows):
        own = batch["KL_input_ids"][number][batch["KL_completion_mask"][number] == 1]
        assert own.tolist() == rows[(number + 1) % 4]["completion_ids"]
        prompt = row["prompt_ids"]
        assert batch["KL_input_ids"][number][: len(prompt)].tolist() == prompt


def test_a_loss_of_pairs_refuses_single_answers(make, tmp_path):
    rows = pairs(4, seed=1)
    for split in ("train", "validation"):
        write(tmp_path, split, [*rows[:3], single(rows[3:])[0]])
    message = r"dpo\.loss: ipo compares two answers.*1 of 4 train rows.*Write dpo\.loss: kto"
    with pytest.raises(UserError, match=message):
        make(section(loss="ipo"), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 0.5}, r"dpo\.gamma: is of simpo only; with sigmoid, write null"),
        ({"loss": "simpo"}, r"dpo\.gamma: simpo needs one"),
        ({"loss": "kto", "micro_batch": 1}, r"dpo\.micro_batch: kto compares .*at least 2"),
        ({"loss": "exo_pair"}, r"dpo\.trainer: exo_pair needs label_smoothing"),
        ({"lora": small.lora(dropout=0.1)}, r"dpo\.lora\.dropout: TRL trains .* without dropout"),
    ],
)
def test_what_contradicts_itself_is_refused_before_torch(changed, message):
    with pytest.raises(UserError, match=message):
        requirements.require_consistent(small.dpo(**changed))
    requirements.require_consistent(small.dpo())


@pytest.mark.parametrize(
    ("loss", "trainer", "message"),
    [
        ("sigmoid", {"beta": 1.0}, r"dpo\.trainer\.beta: siftune sets this one itself"),
        ("sigmoid", {"sync_ref_model": True}, r"dpo\.trainer\.sync_ref_model: siftune sets"),
        ("sigmoid", {"betta": 1.0}, r"dpo\.trainer\.betta: trl\.DPOConfig has no such option"),
        ("kto", {"label_smoothing": 0.1}, r"trl\.KTOConfig has no such option"),
        ("simpo", {"label_smoothing": 0.1}, r"dpo\.trainer\.label_smoothing: siftune sets"),
    ],
)
def test_trls_options_are_checked(loss, trainer, message, tmp_path):
    settings = replace(small.dpo(), loss=loss, trainer=trainer)
    with pytest.raises(UserError, match=message):
        dpo.config(settings, micro_batch=4, num_accumulated=1, folder=tmp_path)


def test_an_adapter_on_the_head_is_refused_before_weights_are_read(base):
    with pytest.raises(UserError, match=r"lora\.targets: lm_head is not among the linear layers"):
        adapters.require(base, small.lora(targets=["q_proj", "lm_head"]))
