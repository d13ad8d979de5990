"""Each reward as a table: what is right, what is nearly right, and what only pretends to be."""

import time

import pytest

from siftune.data.faults import Fault
from siftune.rewards import answers, lengths, poems, quantities, tags

ASKED = [{"role": "user", "content": "How many apples are left?"}]
GSM8K = {"id": "a", "messages": ASKED, "answer": "12/60 = 0.2\n0.2 x 50 = 10\n#### 10"}
FORM = "<reasoning>\n{}\n</reasoning>\n<answer>\n{}\n</answer>"
GOOD = FORM.format("0.2 x 50 = 10\nso ten", "10")


def truth(answer):
    return {"id": "a", "messages": ASKED, "answer": answer}


# What a text says, as value and whether in percent; None: no number, or several.
NUMBERS = {
    "72": ("72", False),
    " 1,234 ": ("1234", False),
    "$1,234.50": ("2469/2", False),
    "１，２３４": ("1234", False),
    "-5": ("-5", False),
    "−5": ("-5", False),
    "-$5": ("-5", False),
    "+5": ("5", False),
    "x-5": ("5", False),
    ".5": ("1/2", False),
    "3/4 cup": ("3/4", False),
    "1 1/2": ("3/2", False),
    "1½": ("3/2", False),
    "½": ("1/2", False),
    "\\frac{3}{4}": ("3/4", False),
    "1{,}234": ("1234", False),
    "\\$72": ("72", False),
    "\\text{72 apples}": ("72", False),
    "50%": ("50", True),
    "50 \\%": ("50", True),
    "72 clips.": ("72", False),
    "一共72個": ("72", False),
    "3萬": ("30000", False),
    "1.5億": ("150000000", False),
    "一百二十三": ("123", False),
    "壹佰貳拾參": ("123", False),
    "壹佰贰拾叁": ("123", False),
    "三萬零五": ("30005", False),
    "一億三千萬": ("130000000", False),
    "一万亿": ("1000000000000", False),
    "兩千五": ("2500", False),
    "两千五百": ("2500", False),
    "廿三": ("23", False),
    "十": ("10", False),
    "零": ("0", False),
    "二〇二六": ("2026", False),
    "十二點五": ("25/2", False),
    "负三": ("-3", False),
    "四分之三": ("3/4", False),
    "百分之五十": ("50", True),
    "": None,
    "none": None,
    "72 or 73": None,
    "12,34": None,
    "1e9": None,
    "1.2.3": None,
    "3:30": None,
    "10-5": None,
    "1/0": None,
    "零分之一": None,
    "點五": None,
    "一、二、三": None,
    "9" * 5000: None,
    "九" * 5000: None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_exactly_or_not_at_all(text):
    found = quantities.read(text)
    assert (found and (str(found.value), found.is_percent)) == NUMBERS[text]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_alone_has_no_word_beside_it(text):
    words = {"x-5", "3/4 cup", "\\text{72 apples}", "72 clips.", "一共72個"}
    expected = None if text in words else quantities.read(text)
    assert quantities.read(text, alone=True) == expected


@pytest.mark.parametrize(
    ("answer", "given", "is_right"),
    [
        ("Apollo 11", "apollo 11.", True),
        ("Apollo 11", "11", False),
        ("Apollo 11", "Gemini 11", False),
        ("三心二意", "3", False),
        ("一帆風順", "一帆风顺", True),
        ("一帆風順", "一", False),
        ("三十六", "36", True),
        ("36", "三十六個", True),
    ],
)
def test_a_text_with_a_number_in_it_is_a_text(answer, given, is_right):
    completion = f"<answer>{given}</answer>"
    assert answers.correct_answer(ASKED, completion, truth(answer)) == is_right


@pytest.mark.parametrize(
    ("answer", "given", "tolerance", "is_right"),
    [
        ("50%", "0.5", 0.0, True),
        ("0.5", "50%", 0.0, True),
        ("50", "50%", 0.0, True),
        ("50%", "5000%", 0.0, False),
        ("0.3", "0.30000000000000004", 0.0, False),
        ("3.14", "3.1416", 0.001, True),
        ("3.14", "3.1416", 0.0001, False),
        ("-100", "-99", 0.01, True),
        ("0", "0.001", 0.5, False),
        ("1/3", "0.333", 0.01, True),
        ("1,234", "一千二百三十四", 0.0, True),
    ],
)
def test_numbers_are_equal_within_a_tolerance(answer, given, tolerance, is_right):
    found = answers.numeric_answer(ASKED, given, truth(answer), place="whole", tolerance=tolerance)
    assert found == is_right


# Place, completion, whether it says 1234 there.
PLACES = [
    ("hashes", "9\n#### 1,234", True),
    ("hashes", "#### $1234.00 in all", True),
    ("hashes", "#### 1234\nThat is it.", True),
    ("hashes", "1234", False),
    ("hashes", "####", False),
    ("hashes", "#### 1234\n" * 10, False),
    ("hashes", "\n".join(f"#### {number}" for number in range(1230, 1240)), False),
    ("hashes", "#### 1233 1234 1235", False),
    ("boxed", "so \\boxed{1{,}234}.", True),
    ("boxed", "\\boxed{\\frac{2468}{2}}", True),
    ("boxed", "\\boxed{1234", False),
    ("boxed", "\\boxed{1234} or \\boxed{1}", False),
    ("boxed", "{" * 100_000, False),
    ("tags", "<answer>１２３４</answer>", True),
    ("tags", "<answer>1</answer><answer>1234</answer>", False),
    ("tags", "1234</answer>", False),
    ("last_number", "5 + 1229 = 1,234.", True),
    ("last_number", "所以答案是1234個。", True),
    ("last_number", "1234, I mean 5", False),
    ("last_number", "none", False),
    ("whole", "1234", True),
    ("whole", "It is 1234, not 5", False),
]


@pytest.mark.parametrize(("place", "completion", "is_right"), PLACES)
def test_a_number_counts_where_it_is_given_once_in_its_place(place, completion, is_right):
    assert answers.numeric_answer(ASKED, completion, truth("#### 1,234"), place=place) == is_right


@pytest.mark.parametrize("record", [truth("many"), truth(""), {"id": "a", "messages": ASKED}])
def test_a_true_answer_that_is_no_number_is_a_fault(record):
    with pytest.raises(Fault, match=r"no number|without an answer"):
        answers.numeric_answer(ASKED, "#### 1", record)


@pytest.mark.parametrize(
    ("answer", "given", "is_right"),
    [
        ("New York", " new york. ", True),
        ("New York", "New York or Paris", False),
        ("New York", "", False),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("50%", "50", False),
        ("夫子何爲者", "夫子何為者", True),
        ("夫子何爲者", "夫子何为者", True),
        ("車軌同八表\t書文混四方", "車軌同八表，書文混四方。", True),
        ("車軌同八表\t書文混四方", "车轨同八表，\n书文混四方。", True),
        ("車軌同八表\t書文混四方", "車軌同八表，書文混四海。", False),
        ("so it is\n#### Ａ", "a", True),
    ],
)
def test_an_exact_answer_is_the_same_but_for_how_it_is_written(answer, given, is_right):
    assert answers.exact_answer(ASKED, given, truth(answer)) == is_right


# Completion → correct, integer, strict, soft, count of tags: S1's five, each from 0 to 1.
S1 = {
    GOOD: (1, 1, 1, 1, 1),
    GOOD + "\n": (1, 1, 1, 1, 1),
    GOOD.replace("\n", " "): (1, 1, 0, 1, 1),
    GOOD.replace("10\n</answer>", "$10\n</answer>"): (1, 1, 1, 1, 1),
    FORM.format("r", "-3"): (0, 1, 1, 1, 1),
    FORM.format("r", "10 apples"): (1, 0, 1, 1, 1),
    FORM.format("r", "10.0"): (1, 1, 1, 1, 1),
    FORM.format("r", "一十"): (1, 1, 1, 1, 1),
    FORM.format("r", "10.5"): (0, 0, 1, 1, 1),
    FORM.format("r", "²"): (0, 1, 1, 1, 1),
    GOOD + " and more": (1, 1, 0, 0, 1 - 0.002 * 8),
    GOOD + "x" * 5000: (1, 1, 0, 0, 0),
    GOOD + "\n\n\n": (1, 1, 0, 1, 1),
    "Sure!\n" + GOOD: (1, 1, 0, 0, 1),
    "<answer>10</answer>": (1, 1, 0, 0, 0.5),
    "10": (0, 0, 0, 0, 0),
    "": (0, 0, 0, 0, 0),
    ASKED[0]["content"]: (0, 0, 0, 0, 0),
    FORM.format("", ""): (0, 0, 0, 0, 0.5),
    "<reasoning></reasoning><answer></answer>": (0, 0, 0, 0, 0.5),
    GOOD * 100: (0, 0, 0, 0, 0),
    "<answer>10</answer>" * 10: (0, 0, 0, 0, 0),
    FORM.format("r", "9 10 11"): (0, 0, 1, 1, 1),
    "</answer><answer></reasoning><reasoning>10": (0, 0, 0, 0, None),
    "<answer>10</answer><reasoning>r</reasoning>": (1, 1, 0, 0, None),
    FORM.format("<answer>10</answer>", "10"): (0, 0, 0, 0, 0.5),
}


@pytest.mark.parametrize("completion", S1)
def test_the_five_rewards_of_a_reasoning_form(completion):
    functions = (
        *(answers.correct_answer, answers.integer_answer),
        *(tags.strict_format, tags.soft_format, tags.tag_count),
    )
    for function, expected in zip(functions, S1[completion], strict=True):
        found = function(ASKED, completion, GSM8K)
        if expected is None:  # out of order, less than whole
            assert 0 <= found < 0.8
        else:
            assert found == pytest.approx(expected, abs=1e-12), function.__name__


def test_a_form_may_have_other_tags():
    completion = "<think>\nr\n</think>\n<plan>\np\n</plan>\n<answer>\nten\n</answer>"
    names = ("think", "plan", "answer")
    assert tags.strict_format(ASKED, completion, {}, tags=names) == 1
    assert tags.tag_count(ASKED, completion, {}, tags=names) == 1
    assert tags.soft_format(ASKED, completion, {}, tags=names[::2]) == 0
    assert answers.correct_answer(ASKED, "<r>Ten</r>", truth("ten"), tag="r") == 1


@pytest.mark.parametrize(
    ("completion", "params", "expected"),
    [
        ("x" * 10, {"most": 10, "margin": 5}, 1.0),
        ("x" * 12, {"most": 10, "margin": 5}, 0.6),
        ("x" * 15, {"most": 10, "margin": 5}, 0.0),
        ("x" * 10**6, {"most": 10, "margin": 5}, 0.0),
        ("x" * 4, {"least": 5, "most": 10, "margin": 5}, 0.8),
        ("", {"least": 5, "most": 10, "margin": 5}, 0.0),
        (" " * 50, {"least": 5, "most": 10, "margin": 5}, 0.0),
        ("a b 春眠不覺曉", {"most": 7, "margin": 1, "unit": "words"}, 1.0),
        ("a b 春眠不覺曉", {"most": 6, "margin": 2, "unit": "words"}, 0.5),
        ("anything", {"most": 30, "margin": 24, "unit": "tokens"}, 0.5),
    ],
)
def test_a_length_is_rewarded_within_bounds(completion, params, expected):
    found = lengths.length(ASKED, completion, {"num_tokens": 42}, **params)
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_length_in_tokens_needs_their_number():
    with pytest.raises(Fault, match="num_tokens"):
        lengths.length(ASKED, "a", {}, most=1, margin=1, unit="tokens")


COUPLET = [
    {
        "role": "user",
        "content": "以下是一首唐詩的第一句話，請完成整首詩。\n萍間日彩亂，荷處香風舉。",
    }
]
TRUE_ENDING = "桂楫滿中川\t絃歌振長嶼\t豈必汾河曲\t方為歡宴所"
ENDING = "桂楫滿中川，絃歌振長嶼。豈必汾河曲，方爲歡宴所。"
FIRST, SECOND = ENDING[:12], ENDING[12:]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (ENDING, 1),
        (TRUE_ENDING, 1),
        (ENDING.replace("，", "\n").replace("。", "\n"), 1),
        ("「桂楫滿中川，絃歌振長嶼。」\n豈必汾河曲，方為歡宴所！", 1),
        (FIRST, 0.5),
        ("好的，以下是這首詩：\n" + ENDING, 4 / 6),
        (ENDING + SECOND, 4 / 6),
        (ENDING * 100, 4 / 400),
        (FIRST * 2, 0.5),
        (COUPLET[0]["content"].rpartition("\n")[2] * 2, 0),
        ("桂楫滿中川舟，絃歌振長嶼。豈必汾河曲，方爲歡宴所。", 0.75),
        ("Lorem，絃歌振長嶼。豈必汾河曲，方爲歡宴所。", 0.75),
        ("12345，絃歌振長嶼。豈必汾河曲，方爲歡宴所。", 0.75),
        ("一一一一一，" * 4, 0.25),
        ("", 0),
        ("，。" * 1000, 0),
    ],
)
def test_the_form_of_a_poem_is_that_of_the_true_ending(completion, expected):
    assert poems.poem_form(COUPLET, completion, truth(TRUE_ENDING)) == pytest.approx(expected)


def test_the_form_of_a_poem_may_be_given():
    found = poems.poem_form(COUPLET, "春眠不覺曉\n處處聞啼鳥", {}, num_lines=2, num_characters=5)
    assert found == 1
    with pytest.raises(Fault, match="without an answer"):
        poems.poem_form(COUPLET, "春眠不覺曉", {}, num_lines=2)


@pytest.mark.parametrize(
    ("completion", "params", "expected"),
    [
        # 光 霜 月 鄉: the second and fourth line rhyme, in both scripts.
        ("床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。", {}, 1),
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。", {}, 1),
        ("床前明月光\t疑是地上霜\t舉頭望明月\t低頭思故鄉", {}, 1),
        ("床前明月光，疑是地上霜。舉頭望明月，低頭思故里。", {}, 0),
        # 家 花 斜 and 人: 斜 has its old reading, too.
        ("一，遠上人家。二，二月開花。三，石徑已斜。四，不見有人。", {}, 2 / 3),
        # The same character, or the same line, is no rhyme.
        ("一，疑是地上霜。二，我見地上霜。", {}, 0),
        ("一，疑是地上霜。" * 50, {}, 0),
        ("疑是地上霜", {}, 0),
        ("", {}, 0),
        ("a, b, c, d, e, f", {}, 0),
        # 舉 嶼 所: with the couplet of the prompt; 所 is another rhyme today.
        (ENDING, {"follows_prompt": True}, 1 / 2),
        ("萍間日彩亂，荷處香風舉。" * 2, {"follows_prompt": True}, 0),
    ],
)
def test_even_lines_rhyme(completion, params, expected):
    assert poems.rhyme(COUPLET, completion, {}, **params) == pytest.approx(expected)


def test_readings_and_variants_rhyme():
    assert poems.rhymes_of("為") == poems.rhymes_of("爲") == poems.rhymes_of("为") == {"灰堆"}
    assert poems.rhymes_of("樂") >= {"梭坡", "遙條"}
    assert poems.rhymes_of("A") == poems.rhymes_of("，") == frozenset()


HOSTILE = {
    "tags": "<reasoning>" * 40_000,
    "half tags": "<answer" * 60_000,
    "pairs": "<answer>1</answer>" * 20_000,
    "hashes": "#" * 400_000,
    "digits": "9" * 400_000,
    "commas": "1," * 200_000,
    "braces": "\\boxed{" + "{" * 400_000,
    "blanks": " \n" * 200_000 + "x",
    "numerals": "一億" * 200_000,
    "one line": "春" * 400_000,
    "lines": "春眠不覺曉，處處聞啼鳥。" * 30_000,
    "signs": "-$" * 200_000,
    "dots": "." * 400_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_huge_completion_takes_no_long_time(kind):
    """400,000 characters in a second or so; what grows with their square takes minutes."""
    completion, record = HOSTILE[kind], {**truth("72"), "num_tokens": 1}
    before = time.process_time()
    for place in ("tags", "hashes", "boxed", "last_number", "whole"):
        assert answers.numeric_answer(ASKED, completion, record, place=place) == 0
    for function in (
        *(answers.correct_answer, answers.integer_answer, answers.exact_answer),
        *(tags.strict_format, tags.soft_format, poems.rhyme, poems.poem_form),
    ):
        assert function(ASKED, completion, record) in (0, pytest.approx(0, abs=1e-3))
    assert 0 <= tags.tag_count(ASKED, completion, record) <= 0.25
    assert lengths.length(ASKED, completion, record, most=9, margin=9, unit="words") in (0, 1)
    assert time.process_time() - before < 20
