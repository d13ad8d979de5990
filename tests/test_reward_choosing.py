"""The rewards of params.yaml: what is refused before anything is loaded, and the user's own."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from siftune.data.faults import Fault
from siftune.resume import fingerprint
from siftune.rewards import choosing, own
from siftune.rewards.choosing import Reward
from siftune.stage import UserError

ASKED = [{"role": "user", "content": "q"}]
RECORD = {"id": "r1", "messages": ASKED, "answer": "so\n#### 72", "fields": {"level": 3}}
KEY = "grpo.rewards"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function: put a file of rewards where a user would."""
    monkeypatch.chdir(tmp_path)
    own.OWN.mkdir(parents=True)

    def write(text: str, name: str = "mine.py") -> Path:
        path = own.OWN / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def choose(*rewards: Reward) -> list[choosing.Chosen]:
    return choosing.choose(list(rewards), KEY)


def test_every_reward_is_chosen_by_its_name_and_is_from_0_to_1():
    params = {
        "length": {"most": 3, "margin": 2},
        "poem_form": {"num_lines": 4, "num_characters": 5},
    }
    rewards = [Reward(name, 1.0, params.get(name, {})) for name in choosing.REWARDS]
    chosen = choose(*rewards)
    assert [one.name for one in chosen] == list(choosing.REWARDS)
    assert len(chosen) == 10
    for one in chosen:
        for completion in ("", "72", "<answer>72</answer>", "#### 72", "春眠不覺曉" * 3, "x" * 99):
            assert 0 <= one.score(ASKED, completion, RECORD) <= 1


def test_params_reach_the_function_and_weights_stay_beside():
    [chosen] = choose(Reward("numeric_answer", 2.0, {"place": "boxed", "tolerance": 0.5}))
    assert chosen.weight == 2.0
    assert chosen.score(ASKED, "\\boxed{71}", RECORD) == 1.0
    assert chosen.score(ASKED, "#### 72", RECORD) == 0.0


@pytest.mark.parametrize(
    ("rewards", "told"),
    [
        ([("numeric", {})], "there is no reward 'numeric'. Valid: correct_answer, integer_answer"),
        ([("length", {})], "length: missing a required argument: 'most'. Its params: most, margin"),
        ([("rhyme", {"tone": 1})], "rhyme: got an unexpected keyword argument 'tone'"),
        ([("rhyme", {"prompt": 1})], "rhyme: multiple values for argument 'prompt'"),
        (
            [("numeric_answer", {"place": "end"})],
            "numeric_answer: params.place: Input should be 't",
        ),
        ([("numeric_answer", {"tolerance": "1e-4"})], "params.tolerance: Input should be a valid "),
        ([("length", {"most": -1, "margin": 1})], "params.most: Input should be greater than or"),
        ([("soft_format", {"tags": "answer"})], "soft_format: params.tags: "),
        ([("soft_format", {"tags": ["a b"]})], "soft_format: params.tags: "),
        ([("rhyme", {}), ("rhyme", {})], "rhyme is there twice"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused(rewards, told):
    with pytest.raises(UserError) as refused:
        choose(
            Reward("exact_answer", 1.0), *[Reward(name, 1.0, params) for name, params in rewards]
        )
    assert str(refused.value).startswith(f"params.yaml: {KEY}[{len(rewards)}]: ")
    assert told in str(refused.value)


OWN = """from siftune.rewards.answers import true_answer


def mine(prompt, completion, record, *, bonus=0.0):
    level = record["fields"]["level"]
    return (true_answer(record) in completion) + bonus * level
"""


def test_ones_own_reward(write):
    path = write(OWN)
    [chosen] = choose(Reward("mine.py:mine", 0.5, {"bonus": 0.25}))
    assert chosen.score(ASKED, "72", RECORD) == 1.75
    assert chosen.score(ASKED, "7", RECORD) == 0.75
    assert type(chosen.score(ASKED, "7", RECORD)) is float
    # DVC looks at the folder: nothing may be left in it.
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(Fault, match="without an answer"):
        chosen.score(ASKED, "7", {"fields": {"level": 1}})


@pytest.mark.parametrize(
    ("text", "reference", "told"),
    [
        ("x = (\n", "mine.py:mine", "train/rewards/mine.py:1: SyntaxError: '(' was never closed"),
        ("\n\nimport nothing_there\n", "mine.py:mine", "mine.py:3: ModuleNotFoundError: No module"),
        ("def f():\n    return 1 / 0\n\nf()\n", "mine.py:f", "mine.py:2: ZeroDivisionError"),
        ("import re\nre.compile('(')\n", "mine.py:f", "mine.py:2: PatternError"),
        ("mine = 3\n", "mine.py:mine", "train/rewards/mine.py has no function 'mine'"),
        (OWN, "mine.py:his", "train/rewards/mine.py has no function 'his'"),
        (OWN, "his.py:mine", "train/rewards/his.py is not there; train/rewards has mine.py."),
        (OWN, "../mine.py:mine", "a reward of yours is file.py:function, in train/rewards"),
        (OWN, "/etc/mine.py:mine", "a reward of yours is file.py:function, in train/rewards"),
        (OWN, "mine:mine", "a reward of yours is file.py:function, in train/rewards"),
        (OWN, "mine.py:", "a reward of yours is file.py:function, in train/rewards"),
        ("def mine(text):\n    return 1\n", "mine.py:mine", "too many positional arguments"),
    ],
)
def test_a_file_with_an_error_is_told_with_its_line(text, reference, told, write):
    write(text)
    with pytest.raises(UserError) as refused:
        choose(Reward(reference, 1.0))
    expected = told if sys.version_info >= (3, 13) else told.replace("PatternError", "error")
    assert expected in str(refused.value)
    assert str(refused.value).startswith(f"params.yaml: {KEY}[0]: ")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return record['nothing']", "train/rewards/mine.py:2: KeyError: 'nothing'"),
        ("return None", "train/rewards/mine.py: mine returned None, which is no number"),
        ("return float('nan')", "mine returned nan, which is no number"),
        ("return '1'", "mine returned '1', which is no number"),
        ("return [1.0]", "mine returned [1.0], which is no number"),
    ],
)
def test_ones_own_reward_is_tried_before_anything_is_loaded(body, told, write):
    write(f"def mine(prompt, completion, record):\n    {body}\n")
    chosen = choose(Reward("mine.py:mine", 1.0))
    with pytest.raises(UserError) as refused:
        choosing.refuse_unfit(chosen, [RECORD], KEY)
    assert str(refused.value).startswith(f"params.yaml: {KEY}[0]: train/rewards/mine.py")
    assert told in str(refused.value)


def test_records_that_a_reward_cannot_score_are_counted():
    chosen = choose(Reward("numeric_answer", 1.0), Reward("length", 1.0, {"most": 1, "margin": 1}))
    choosing.refuse_unfit(chosen, [RECORD] * 3, KEY)
    many = {**RECORD, "id": "r2", "answer": "many"}
    with pytest.raises(UserError) as refused:
        choosing.refuse_unfit(chosen, [RECORD, many, {**many, "id": "r3"}], KEY)
    assert str(refused.value) == (
        "params.yaml: grpo.rewards: these rewards do not fit the data.\n"
        "  2 of 3 records: numeric_answer: the true answer is no number. The first: r2 'many'"
    )


def test_a_change_of_the_file_is_another_training(write):
    """train/rewards among a stage's deps: its checkpoints are another run's, and DVC runs it."""
    path = write(OWN)
    Path("dvc.yaml").write_text("stages: {grpo: {deps: [train/rewards], params: [grpo]}}")
    Path("params.yaml").write_text("grpo: {}")
    before = fingerprint.of_stage("grpo")
    assert fingerprint.of_stage("grpo") == before
    path.write_text(OWN.replace("0.0", "0.1"))
    assert fingerprint.of_stage("grpo").digest != before.digest


PAGE = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text()


def test_the_page_names_every_reward_with_its_params():
    told = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", PAGE, flags=re.M))
    assert {name: re.findall(r"`(\w+)`", told[name]) for name in choosing.REWARDS} == {
        name: list(inspect.signature(function).parameters)[3:]
        for name, function in choosing.REWARDS.items()
    }


def test_the_examples_of_the_page_run(write):
    write(re.search(r"```python\n(.*?)```", PAGE, flags=re.S)[1])
    lists = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)]
    chosen = [choose(*[Reward(**reward) for reward in one["rewards"]]) for one in lists]
    assert [len(one) for one in chosen] == [3, 5, 1]
    for one in chosen:
        choosing.refuse_unfit(one, [RECORD], KEY)
    form = "<reasoning>\nso\n</reasoning>\n<answer>\n72\n</answer>"
    assert sum(one.weight * one.score(ASKED, form, RECORD) for one in chosen[1]) == 4.0
    [own_one] = chosen[2]
    assert own_one.score(ASKED, "2=2\n3=3\n4=4\n#### 72", RECORD) == 1.0
    assert own_one.score(ASKED, "2=2\n#### 72", RECORD) == 0.0
    said_the_same = re.search(r"These say the same: (.*?)\. ", PAGE)[1]
    numbers = re.findall(r"`([^`]+)`", said_the_same)
    assert len(numbers) == 6
    for number in numbers:
        [chosen_one] = choose(Reward("numeric_answer", 1.0, {"place": "whole"}))
        assert chosen_one.score(ASKED, number, {**RECORD, "answer": "1234"}) == 1.0


def test_rewards_need_no_torch():
    code = "import sys, siftune.rewards.choosing; assert not {'torch', 'pypinyin'} & {*sys.modules}"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
