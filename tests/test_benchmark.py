import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
import yaml
from lm_eval.api.model import LM
from tokenizers.processors import TemplateProcessing

from siftune import benchmark, files, models, scored
from siftune.chat import conversation
from siftune.sections import Benchmark
from siftune.stage import UserError
from siftune.throughput import planner

ROOT = Path(__file__).parent.parent
SETTINGS = Benchmark(
    tasks=["gsm8k_form"],
    num_fewshot=0,
    limit=None,
    batch_size=2,
    max_new_tokens=8,
    chat_template=True,
)
# Five answers to problems whose solution is 45, and whether they are right: strictly, flexibly.
ANSWERS = {
    "51 - 6 = 45\n#### 45": (1.0, 1.0),
    "So 45 are left.": (0.0, 1.0),
    "#### 44, or rather 45": (0.0, 1.0),
    "#### 1,045": (0.0, 0.0),
    "": (0.0, 0.0),
}
PETS = """
task: pets
dataset_path: json
dataset_kwargs: {data_files: {test: pets.jsonl}, cache_dir: work/datasets}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
LOSSES = """
task: losses
dataset_path: json
dataset_kwargs: {data_files: {test: pets.jsonl}, cache_dir: work/datasets}
output_type: loglikelihood
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


class KnownAnswers(LM):
    """Says what it is told, in the order of the questions."""

    max_length = 512
    tokenizer_name = "none"
    asked = ()

    def __init__(self, *_, **__) -> None:
        super().__init__()

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return "\n".join(turn["content"] for turn in chat_history)

    def generate_until(self, requests):
        KnownAnswers.asked = [request.args for request in requests]
        return list(ANSWERS)

    def loglikelihood(self, requests):
        return [(-1.0 if "b" in request.args[1] else -2.0, False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Makes a folder with test data and tasks the current one; returns the canonical records."""
    monkeypatch.chdir(tmp_path)
    # It asks pip and the compilers for their versions: seconds each time.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    shutil.copytree(ROOT / "eval/tasks", "eval/tasks")
    records = [
        {
            "id": f"problem-{number}",
            "group": f"left:{number}",
            "messages": [
                {"role": "user", "content": f"{number}: 51 apples, 6 go. How many are left?"},
                {"role": "assistant", "content": "51 - 6 = 45\n#### 45"},
            ],
        }
        for number in range(len(ANSWERS))
    ]
    for split in ("train", "test"):
        files.write_jsonl(Path(f"data/prepared/{split}.jsonl"), records)
    files.write_jsonl(
        Path("pets.jsonl"),
        [
            {
                "id": "pets",  # the same for all
                "question": f"{number}: which barks?",
                "choices": [" a cat", " a dob"],
                "answer": right,
            }
            for number, right in enumerate([1, 0, 1])
        ],
    )
    for name, text in (("pets", PETS), ("losses", LOSSES)):
        Path(f"eval/tasks/{name}.yaml").write_text(text)
    return records


def evaluate(folder: Path = Path(), *, system: str | None = None, **changes) -> dict:
    settings = replace(SETTINGS, **changes)
    tasks = benchmark.load_tasks(settings.tasks)
    model = benchmark.ChatModel(folder, folder, settings, system=system)
    return benchmark.evaluate(model, "sha", tasks, settings)


def test_the_local_task_scores_as_lm_evals_gsm8k():
    installed = Path(lm_eval.tasks.__file__).parent / "gsm8k/gsm8k.yaml"
    theirs = yaml.safe_load(installed.read_text())
    text = (ROOT / "eval/tasks/gsm8k_form/gsm8k_form.yaml").read_text()
    ours = yaml.safe_load(text.replace("!function ", ""))
    scoring = ("metric_list", "filter_list", "generation_kwargs", "output_type", "repeats")
    assert {key: ours[key] for key in scoring} == {key: theirs[key] for key in scoring}


def test_known_answers_get_the_known_scores(data, monkeypatch):
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    results = evaluate()
    rows = list(scored.items(results))
    assert [row["id"] for row in rows] == [record["id"] for record in data]
    assert [row["answer"] for row in rows] == list(ANSWERS)
    assert rows[0] == {
        "task": "gsm8k_form",
        "id": "problem-0",
        "prompt": "0: 51 apples, 6 go. How many are left?",
        "target": "51 - 6 = 45\n#### 45",
        "answer": "51 - 6 = 45\n#### 45",
        "scores": {"exact_match/strict-match": 1.0, "exact_match/flexible-extract": 1.0},
    }
    scores = [tuple(row["scores"].values()) for row in rows]
    assert scores == list(ANSWERS.values())
    measured = scored.metrics(results)
    assert measured == {
        "gsm8k_form/exact_match/strict-match": {
            "value": pytest.approx(0.2), "stderr": pytest.approx(0.2), "n": 5,
        },
        "gsm8k_form/exact_match/flexible-extract": {
            "value": pytest.approx(0.6), "stderr": pytest.approx(0.2449, abs=1e-4), "n": 5,
        },
    }  # fmt: skip
    assert scored.directions(results) == dict.fromkeys(measured, True)
    json.dumps([measured, rows], allow_nan=False)


def test_rows_of_every_kind_are_asked(data, monkeypatch):
    """Each with its true answer; what has none is left out: plain text, an answer called bad."""
    question, right, wrong = "How many?", "#### 45", "#### 46"
    prompt = [{"role": "user", "content": question}]
    rows = [
        {"text": "A book."},
        {"messages": [*prompt, {"role": "assistant", "content": right}]},
        {"messages": prompt, "chosen": right, "rejected": wrong},
        {"messages": prompt, "completion": right, "label": True},
        {"messages": prompt, "completion": wrong, "label": False},
        {"messages": prompt, "answer": right, "fields": {"level": 1}},
        {"messages": prompt, "answer": right, "fields": {"level": 2}},
    ]
    named = [{"id": str(n), "group": "g", **row} for n, row in enumerate(rows)]
    files.write_jsonl(Path("data/prepared/test.jsonl"), named)
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    asked = list(scored.items(evaluate()))
    assert [row["id"] for row in asked] == ["1", "2", "3", "5", "6"]
    assert {(row["prompt"], row["target"]) for row in asked} == {(question, right)}
    files.write_jsonl(Path("data/prepared/test.jsonl"), named[:1])
    with pytest.raises(UserError, match=r"has no row with a question and a true answer"):
        benchmark.load_tasks(["gsm8k_form"])


BEGUN, ENDING = "秦川雄帝宅，函谷壯皇居。", "綺殿千尋起，離宮百雉餘。連甍遙接漢，飛觀迥凌虛。"
# Endings and their scores: form, lines, characters, rhyme.
POEMS = {
    ENDING: (1.0, 1.0, 1.0, 1.0),
    "綺殿千尋起　離宮百雉餘　連甍遙接漢\n飛觀迥凌虛\n": (1.0, 1.0, 1.0, 1.0),
    ENDING + "雲日隱層闕，風煙出綺疎。": (0.0, 0.0, 1.0, 2 / 3),
    "綺殿起，離宮餘。連甍漢，飛觀虛。": (0.0, 1.0, 0.0, 1.0),
    "綺殿千尋起，離宮百雉餘。綺殿千尋起，離宮百雉餘。": (0.0, 1.0, 0.0, 0.5),
    BEGUN + "連甍遙接漢，飛觀迥凌虛。": (0.0, 1.0, 0.0, 0.5),
    "Here is a poem.": (0.0, 1.0, 0.0, 0.0),
    "": (0.0, 0.0, 0.0, 0.0),
}


class Poet(KnownAnswers):
    def generate_until(self, requests):
        return list(POEMS)


def test_known_endings_of_a_poem_get_the_known_scores(data, monkeypatch):
    turns = [("user", f"完成整首詩。\n{BEGUN}"), ("assistant", ENDING)]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [{"id": str(n), "group": str(n), "messages": messages} for n in range(len(POEMS))]
    files.write_jsonl(Path("data/prepared/test.jsonl"), rows)
    monkeypatch.setattr(benchmark, "ChatModel", Poet)
    results = evaluate(tasks=["poem_form"])
    names = ("right_form", "right_lines", "right_characters", "rhyme")
    scores = [row["scores"] for row in scored.items(results)]
    found = {
        text: tuple(one[name] for name in names) for text, one in zip(POEMS, scores, strict=True)
    }
    assert found == POEMS
    measured = scored.metrics(results)
    assert measured["poem_form/right_form"]["value"] == 2 / len(POEMS)
    assert scored.directions(results) == dict.fromkeys(measured, True)


def test_the_length_limit_reaches_every_request(data, monkeypatch):
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    evaluate(max_new_tokens=17)
    assert {options["max_gen_toks"] for _, options in KnownAnswers.asked} == {17}


def test_examples_before_the_question_come_from_train(data, monkeypatch):
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    evaluate(num_fewshot=2)
    assert all(prompt.count("#### 45") == 2 for prompt, _ in KnownAnswers.asked)


def test_records_may_bring_their_own_system_message(data, monkeypatch):
    for record in data:
        record["messages"].insert(0, {"role": "system", "content": "Count."})
    files.write_jsonl(Path("data/prepared/test.jsonl"), data)
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    rows = list(scored.items(evaluate()))
    assert rows[3]["prompt"] == "Count.\n3: 51 apples, 6 go. How many are left?"


def test_choices_are_scored_and_shown(data, monkeypatch):
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    results = evaluate(tasks=["pets"])
    rows = list(scored.items(results))
    assert [(row["answer"], row["target"]) for row in rows] == [
        (" a dob", " a dob"), (" a dob", " a cat"), (" a dob", " a dob"),
    ]  # fmt: skip
    assert [row["scores"] for row in rows] == [{"acc": 1.0}, {"acc": 0.0}, {"acc": 1.0}]
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert scored.metrics(results)["pets/acc"]["value"] == pytest.approx(2 / 3)


def test_a_perplexity_is_reported_but_its_items_have_no_score(data, monkeypatch):
    monkeypatch.setattr(benchmark, "ChatModel", KnownAnswers)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    results = evaluate(tasks=["losses"])
    assert scored.metrics(results)["losses/perplexity"]["value"] == pytest.approx(math.e**2)
    assert scored.directions(results) == {"losses/perplexity": False, "losses/acc": True}
    assert [row["scores"] for row in scored.items(results)] == [{"acc": 0.0}] * 3


def test_prompts_are_those_that_training_ended_with(tiny_model, tokenizer, data):
    rows = list(scored.items(evaluate(tiny_model, system="Be brief.", limit=2)))
    assert [row["prompt"] for row in rows] == [
        conversation.prompt_text(tokenizer, record["messages"], "Be brief.") for record in data[:2]
    ]


@pytest.fixture
def eager_model(tiny_model, tokenizer, tmp_path) -> Path:
    """A model whose tokenizer begins every text with a token that its template does not write."""
    folder = shutil.copytree(tiny_model, tmp_path / "eager")
    eager = models.read_tokenizer(folder)
    eager.bos_token = "<|endoftext|>"
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    eager.save_pretrained(folder)
    assert models.read_tokenizer(folder)("x")["input_ids"] == [0, *tokenizer("x")["input_ids"]]
    return folder


@pytest.mark.parametrize("folder", ["tiny_model", "eager_model"])
def test_the_model_gets_the_tokens_of_its_prompt_and_stops_where_it_should(
    folder, tokenizer, data, monkeypatch, request
):
    calls = []
    generate = benchmark.ChatModel._model_generate

    def spy(self, context, max_length, stop, **options):
        calls.append((context, options["attention_mask"], max_length - context.shape[1]))
        assert self.model.generation_config.eos_token_id == [tokenizer.eos_token_id]
        assert tokenizer.eos_token in stop
        return generate(self, context, max_length, stop, **options)

    monkeypatch.setattr(benchmark.ChatModel, "_model_generate", spy)
    evaluate(request.getfixturevalue(folder), limit=1)
    [(context, mask, room)] = calls
    prompt = conversation.prompt_text(tokenizer, data[0]["messages"])
    assert context[0].tolist() == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert mask.all()
    assert room == SETTINGS.max_new_tokens


class Stock(benchmark.ChatModel):
    """Prompted as ours, but all else is lm-eval's own."""

    _model_generate = benchmark.HFLM._model_generate
    _loglikelihood_tokens = benchmark.HFLM._loglikelihood_tokens


@pytest.mark.parametrize("shots", [0, 3])
def test_answers_and_scores_are_those_of_lm_evals_own_model(
    shots, tiny_model, data, tmp_path, monkeypatch
):
    """Items of different lengths, some of which share their beginnings; answers of several ends."""
    monkeypatch.setattr(planner, "MIN_SAVED", 1)
    tuned = shutil.copytree(tiny_model, tmp_path / "tuned")
    less_sure(tuned)

    def found(kind: type) -> list[dict]:
        monkeypatch.setattr(benchmark, "ChatModel", kind)
        monkeypatch.setattr(benchmark, "CACHE", tmp_path / kind.__name__)
        results = evaluate(
            tuned, system="Be brief.", tasks=["gsm8k_form", "pets", "losses"], num_fewshot=shots,
            batch_size=3, max_new_tokens=24,
        )  # fmt: skip
        return [
            {"arguments": entry["arguments"], "resps": entry["resps"]}
            for entries in results["samples"].values()
            for entry in entries
        ]

    ours, stock = found(benchmark.ChatModel), found(Stock)
    assert len(ours) == 2 * len(ANSWERS) + 3 + 3
    for one, other in zip(ours, stock, strict=True):
        assert one["arguments"] == other["arguments"]
        for mine, theirs in zip(one["resps"], other["resps"], strict=True):
            assert type(mine[0]) is type(theirs[0])
            if isinstance(mine[0], str):
                assert mine == theirs
            else:
                assert mine[0][0] == pytest.approx(theirs[0][0], rel=1e-5)
                assert mine[0][1] == theirs[0][1]


def less_sure(folder: Path) -> None:
    """Make a random model's answers differ from each other, and end sooner or later."""
    model = models.load_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("of_model", "asked", "is_greedy"),
    [
        ({}, {}, True),
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": False, "temperature": 0.0}, True),
        ({"repetition_penalty": 1.1}, {}, False),
        ({}, {"do_sample": True, "temperature": 1.0}, False),
        ({}, {"num_beams": 2}, False),
    ],
)
def test_only_the_likeliest_tokens_are_taken_by_our_own_loop(
    of_model, asked, is_greedy, tiny_model
):
    model = benchmark.ChatModel(tiny_model, tiny_model, SETTINGS, system=None)
    model.model.generation_config.update(**of_model)
    assert model.takes_likeliest({"attention_mask": None, **asked}) is is_greedy


def test_what_was_answered_is_not_asked_again(tiny_model, data, monkeypatch):
    asked = []
    generate, score = benchmark.ChatModel._model_generate, benchmark.ChatModel._loglikelihood_tokens

    def generating(self, context, **options):
        asked.append(len(context))
        return generate(self, context, **options)

    def scoring(self, requests, **options):
        asked.append(len(requests))
        return score(self, requests, **options)

    monkeypatch.setattr(benchmark.ChatModel, "_model_generate", generating)
    monkeypatch.setattr(benchmark.ChatModel, "_loglikelihood_tokens", scoring)
    both = ["gsm8k_form", "pets"]

    def num_asked(weights: str = "sha", **changes) -> int:
        asked.clear()
        settings = replace(SETTINGS, tasks=both, **changes)
        tasks = benchmark.load_tasks(both)
        model = benchmark.ChatModel(tiny_model, tiny_model, settings, system=None)
        results = benchmark.evaluate(model, weights, tasks, settings)
        answers.append([row["answer"] for row in scored.items(results)])
        return sum(asked)

    answers: list[list[str]] = []
    assert num_asked(limit=2) == 2 + 4
    assert num_asked() == 3 + 2  # only the other items
    assert num_asked() == 0
    assert answers[2] == answers[1]
    assert answers[1][:2] == answers[0][:2]
    assert num_asked("other weights") == 5 + 6
    assert num_asked(max_new_tokens=9) == 5  # asks for longer answers; choices stay as they are
    assert num_asked(batch_size=3) == 5 + 6


def test_an_interrupted_run_keeps_its_answers(tiny_model, data, monkeypatch):
    generate = benchmark.ChatModel._model_generate
    asked = []

    def dies_at_the_second_batch(self, context, **options):
        asked.append(len(context))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(self, context, **options)

    monkeypatch.setattr(benchmark.ChatModel, "_model_generate", dies_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model)
    evaluate(tiny_model)
    assert asked == [2, 2, 2, 1]


def test_a_limit_beyond_the_models_reach_is_refused(tiny_model, data):
    with pytest.raises(UserError, match=r"benchmark\.max_new_tokens is 512.* 512 tokens"):
        evaluate(tiny_model, max_new_tokens=512)


@pytest.fixture
def only_local(monkeypatch):
    """Without lm-eval's own tasks, whose index takes 20 seconds to read."""
    manager = benchmark.TaskManager
    monkeypatch.setattr(
        benchmark,
        "TaskManager",
        lambda **options: manager(**(options | {"include_defaults": False})),
    )


def test_an_unknown_task_is_refused_with_its_neighbours(data, only_local):
    with pytest.raises(UserError, match=r"no task 'gsm8k_from'. Near it: gsm8k_form"):
        benchmark.load_tasks(["pets", "gsm8k_from"])


def test_data_that_only_the_hub_has_is_a_clear_error(data, only_local, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match=r"pets is not on this disk.*Couldn't reach.*HF_HOME"):
        benchmark.load_tasks(["pets"])


def test_lacking_test_data_is_a_clear_error(data, only_local):
    Path("data/prepared/test.jsonl").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: .*test\.jsonl"):
        benchmark.load_tasks(["gsm8k_form"])


def test_tasks_that_run_the_models_code_are_refused(data, only_local):
    Path("eval/tasks/pets.yaml").write_text(PETS + "unsafe_code: true\n")
    with pytest.raises(UserError, match="pets runs code that the model writes"):
        benchmark.load_tasks(["pets"])
