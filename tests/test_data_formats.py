import json
import re

import pytest

from siftune.data import formats
from siftune.data.faults import Fault

TAGS = ("<think>", "</think>")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def convert(row, row_format=None, **columns):
    return formats.convert(row, row_format or formats.detect(row, columns), columns, TAGS)


QA = {"messages": [user("q"), assistant("a")]}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
SHARED = [user("q"), assistant("a"), user("q2")]

# Row, columns, the format that is detected, the record.
GOOD = {
    "alpaca": ({"instruction": " q\n", "input": "", "output": "a"}, {}, "alpaca", QA),
    "alpaca with input": (
        {"instruction": "q", "input": "more", "output": "a", "id": 5},
        {}, "alpaca", {"messages": [user("q\nmore"), assistant("a")]},
    ),
    "alpaca with only input": ({"instruction": "", "input": "q", "output": "a"}, {}, "alpaca", QA),
    "alpaca with system and history": (
        {"instruction": "q2", "output": "a2", "system": "s", "history": [["q", "a"]]},
        {}, "alpaca",
        {"messages": [system("s"), user("q"), assistant("a"), user("q2"), assistant("a2")]},
    ),
    "alpaca, null where nothing is": (
        {"instruction": "q", "input": None, "output": "a", "system": None, "history": None},
        {}, "alpaca", QA,
    ),
    "alpaca in CSV": (
        {"instruction": "q", "input": "", "output": "a", "system": "", "history": ""},
        {}, "alpaca", QA,
    ),
    "NeMo": ({"input": "q", "output": "a"}, {}, "input-output", QA),
    "question and answer": ({"question": "q", "answer": "a", "level": 3}, {}, "columns", QA),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, {}, "columns", QA),
    "prompt and completion of messages": (
        {"prompt": [system("s"), user("q")], "completion": [assistant("a")]},
        {}, "columns", {"messages": [system("s"), user("q"), assistant("a")]},
    ),
    "query and response": ({"query": "q", "response": "a"}, {}, "columns", QA),
    "problem and solution": ({"problem": "q", "solution": "a", "answer": 1}, {}, "columns", QA),
    "reasoning": (
        {"question": "q", "reasoning": " r ", "response": "a"},
        {}, "columns", {"messages": [user("q"), assistant("<think>\nr\n</think>\n\na")]},
    ),
    "no reasoning in this row": (
        {"question": "q", "reasoning": None, "response": "a"}, {}, "columns", QA,
    ),
    "mapped columns": (
        {"problem": "x", "Q": "q", "A": "a", "S": "s", "C": "more", "R": "r", "T": TOOLS},
        {
            "prompt": "Q", "response": "A", "system": "S", "input": "C", "reasoning": "R",
            "tools": "T",
        },
        "columns",
        {
            "messages": [
                system("s"), user("q\nmore"), assistant("<think>\nr\n</think>\n\na"),
            ],
            "tools": TOOLS,
        },
    ),
    "one column is mapped": ({"question": "q", "A": "a"}, {"response": "A"}, "columns", QA),
    "mapped beside messages": (
        {"Q": "q", "A": "a", "messages": []}, {"prompt": "Q", "response": "A"}, "columns", QA,
    ),
    "sharegpt": (
        {"conversations": [
            {"from": "system", "value": "s"}, {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]},
        {}, "sharegpt", {"messages": [system("s"), user("q"), assistant("a")]},
    ),
    "sharegpt with a tool": (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "a"},
            ],
            "system": "s", "tools": json.dumps(TOOLS),
        },
        {}, "sharegpt",
        {
            "messages": [
                system("s"), user("q"), assistant("", tool_calls=[CALL]),
                {"role": "tool", "content": "2"}, assistant("a"),
            ],
            "tools": TOOLS,
        },
    ),
    "openai": ({"messages": [user("q"), assistant("a")]}, {}, "messages", QA),
    "openai, mapped": ({"chat": [user("q"), assistant("a")]}, {"messages": "chat"}, "messages", QA),
    "messages as JSON text, in CSV": (
        {"messages": json.dumps([user("q"), assistant("a")])}, {}, "messages", QA,
    ),
    "openai with parts, a weight and a call": (
        {"messages": [
            {"role": "developer", "content": "s"},
            user([{"type": "text", "text": "q"}, {"type": "text", "text": "more"}]),
            assistant("a", weight=0),
            user("q2"),
            assistant(None, tool_calls=[
                {"id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}},
            ]),
            {"role": "tool", "content": "2", "tool_call_id": "1", "name": None},
            assistant("a2", weight=1, train=True),
        ]},
        {}, "messages",
        {"messages": [
            system("s"), user("q\nmore"), assistant("a", train=False), user("q2"),
            assistant("", tool_calls=[{"id": "1", **CALL}]),
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            assistant("a2"),
        ]},
    ),
    "reasoning beside content": (
        {"messages": [user("q"), assistant("a", reasoning_content="r")]},
        {}, "messages", {"messages": [user("q"), assistant("<think>\nr\n</think>\n\na")]},
    ),
    "keys that are null, as in Parquet": (
        {"messages": [
            {"role": "user", "content": "q", "value": None, "tool_calls": None, "train": None},
            {"from": "gpt", "role": None, "content": None, "value": "a", "weight": None},
        ]},
        {}, "messages", QA,
    ),
    "text": ({"text": " all of it ", "url": "x"}, {}, "text", {"text": "all of it"}),
    "content": ({"content": "x"}, {}, "text", {"text": "x"}),
    "text, mapped": (
        {"body": "x", "question": "q", "answer": "a"}, {"text": "body"}, "text", {"text": "x"},
    ),
    "preference": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"},
        {}, "preference",
        {"messages": [system("s"), user("q")], "chosen": "a", "rejected": "b"},
    ),
    "preference, alpaca": (
        {"instruction": "q", "input": "more", "chosen": "a", "rejected": "b"},
        {}, "preference", {"messages": [user("q\nmore")], "chosen": "a", "rejected": "b"},
    ),
    "preference, sharegpt": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"},
        },
        {}, "preference", {"messages": [user("q")], "chosen": "a", "rejected": "b"},
    ),
    "preference of whole conversations": (
        {"chosen": [*SHARED, assistant("a2")], "rejected": [*SHARED, assistant("b2")]},
        {}, "preference", {"messages": SHARED, "chosen": "a2", "rejected": "b2"},
    ),
    "preference of whole conversations, with the prompt": (
        {"prompt": "q", "chosen": [*QA["messages"]], "rejected": [user("q"), assistant("b")]},
        {}, "preference", {"messages": [user("q")], "chosen": "a", "rejected": "b"},
    ),
    "preference, UltraFeedback": (
        {
            "prompt": "q", "prompt_id": "x", "score_chosen": 8.0, "score_rejected": 3.0,
            "chosen": QA["messages"], "rejected": [user("q"), assistant("b")],
            "messages": QA["messages"],
        },
        {}, "preference", {"messages": [user("q")], "chosen": "a", "rejected": "b"},
    ),
    "preference, Argilla": (
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "response": "b"},
        {}, "preference", {"messages": [user("q")], "chosen": "a", "rejected": "b"},
    ),
    "preference, the conversation's beginning beside it": (
        {
            "messages": SHARED,
            "chosen": {"role": "assistant", "content": "a"}, "rejected": [assistant("b")],
        },
        {}, "preference", {"messages": SHARED, "chosen": "a", "rejected": "b"},
    ),
    "labelled": (
        {"prompt": "q", "completion": "a", "label": False},
        {}, "labelled", {"messages": [user("q")], "completion": "a", "label": False},
    ),
    "labelled, of messages": (
        {"prompt": SHARED, "completion": [assistant("a")], "label": True, "tools": TOOLS},
        {}, "labelled",
        {"messages": SHARED, "completion": "a", "label": True, "tools": TOOLS},
    ),
    "labelled, mapped, in CSV": (
        {"question": "q", "answer": "a", "kto_tag": "True"},
        {"label": "kto_tag"}, "labelled",
        {"messages": [user("q")], "completion": "a", "label": True},
    ),
    "an answer with the class of its question": (
        {"question": "q", "answer": "a", "label": 1}, {}, "columns", QA,
    ),
    "preference, a prompt of messages": (
        {"prompt": SHARED, "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {}, "preference", {"messages": SHARED, "chosen": "a", "rejected": "b"},
    ),
    "DPO-zh-en-emoji": (
        {"question": "q", "answer_zh": "答😀", "answer_en": "a"},
        {}, "preference", {"messages": [user("q")], "chosen": "答😀", "rejected": "a"},
    ),
    "problem": (
        {"question": "q", "answer": 7, "level": "hard"},
        {"answer": "answer"}, "problems",
        {"messages": [user("q")], "answer": "7", "fields": {"level": "hard"}},
    ),
    "problem of messages": (
        {"prompt": [system("s"), user("q")], "truth": "7"},
        {"answer": "truth"}, "problems",
        {"messages": [system("s"), user("q")], "answer": "7", "fields": {}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_row_means_this_record(name):
    row, columns, row_format, expected = GOOD[name]
    assert formats.detect(row, columns) == row_format
    before = json.dumps(row)
    record, warnings = formats.convert(row, row_format, columns, TAGS)
    group = record.pop("group")
    assert record == expected
    assert group in ("q", "q\nmore", expected.get("text"))
    assert warnings == []
    assert json.dumps(row) == before


def test_formats_are_those_of_the_params():
    from typing import get_args

    from siftune.sections import RowFormat

    assert {"auto", *formats.FORMATS} == set(get_args(RowFormat))
    assert {row_format for _, _, row_format, _ in GOOD.values()} == set(formats.FORMATS)


def test_problems_keep_their_other_columns():
    row = {"problem": "q", "answer": "7", "solution": "s", "system": "", "grade": [1, {"x": None}]}
    record, _ = convert(row, "problems")
    assert record["fields"] == {"solution": "s", "grade": [1, {"x": None}]}


def test_tags_are_those_asked_for():
    row = {"question": "q", "reasoning": "r", "response": "a"}
    record, _ = formats.convert(row, "columns", {}, ("[T]", "[/T]"))
    assert record["messages"][1]["content"] == "[T]\nr\n[/T]\n\na"


@pytest.mark.parametrize(
    ("value", "group"), [("x", "x"), (3, "3"), (1.5, "1.5"), (None, None), (True, None), ("", None)]
)
def test_a_group_is_a_text_or_a_number(value, group):
    row = {"question": "q", "answer": "a", "topic": value}
    if group is None:
        with pytest.raises(Fault, match=r"'topic' is neither .*data\.sources\.columns\.group"):
            convert(row, group="topic")
    else:
        assert convert(row, group="topic")[0]["group"] == group


@pytest.mark.parametrize(
    ("messages", "expected", "warning"),
    [
        ([user("q"), {"role": "Assistant", "content": "a"}], QA, "role written in capitals"),
        ([{"from": "HUMAN", "value": "q"}, assistant("a")], QA, "role written in capitals"),
        ([system(" "), user("q"), assistant("a")], QA, "empty system message left out"),
    ],
)
def test_what_is_odd_is_used_and_told_once(messages, expected, warning):
    record, warnings = convert({"messages": messages})
    assert record["messages"] == expected["messages"]
    assert warnings == [warning]
    upper = [{**turn, "role": "USER"} if turn.get("role") == "user" else turn for turn in SHARED]
    assert convert({"messages": [*upper, assistant("a")]})[1] == ["role written in capitals"]


# Format, row, reason, detail.
BAD = [
    ("columns", {"question": "q"}, "no column 'answer' (data.sources.columns.response)", "it has"),
    ("columns", {}, "no column 'question' (data.sources.columns.prompt)", "it has"),
    ("columns", {"question": "q", "answer": None}, "column 'answer' is no text", "None"),
    ("columns", {"question": "q", "answer": 2}, "column 'answer' is no text", "2"),
    ("columns", {"question": "q", "answer": " \n"}, "column 'answer' is empty", ""),
    ("columns", {"question": "q", "answer": "\0"}, "NUL character", "column 'answer'"),
    ("columns", {"question": "", "answer": "a"}, "the prompt is empty", ""),
    ("columns", {"question": 5, "answer": "a"}, "the prompt is no text", "5"),
    ("columns", {"question": "q", "answer": "a", "system": 1}, "column 'system' is no text", "1"),
    ("columns", {"question": "q", "answer": "a", "tools": "x"}, "tools: not JSON", "Expecting"),
    ("columns", {"question": "q", "answer": "a", "tools": {"a": 1}}, "tools: not a list", "{"),
    ("columns", {"question": "q", "answer": "a", "tools": [1]}, "tools: not a list of objects", ""),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]},
     "history: not a list of [question, answer]", ""),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", ""]]},
     "an empty turn", "history (assistant)"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", None]]},
     "history is no text", "None"),
    ("alpaca", {"instruction": "q", "output": "a", "input": 5}, "column 'input' is no text", "5"),
    ("input-output", {"input": "q"}, "no column 'output' (data.sources.columns.response)", "input"),
    ("text", {"text": "  "}, "the text is empty", ""),
    ("text", {"text": ["x"]}, "the text is no text", "['x']"),
    ("text", {"x": "y"}, "no column 'text' (data.sources.columns.text)", "it has x"),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "a "},
     "chosen and rejected are the same", ""),
    ("preference", {"prompt": "q", "chosen": "a"},
     "no column 'rejected' (data.sources.columns.rejected)", "prompt, chosen"),
    ("preference", {"chosen": "a", "rejected": "b"},
     "no column 'prompt' (data.sources.columns.prompt)", "chosen"),
    ("preference", {"prompt": "q", "chosen": "", "rejected": "b"},
     "chosen or rejected is empty", ""),
    ("preference", {"prompt": "q", "chosen": None, "rejected": "b"},
     "chosen or rejected is no text", "None"),
    ("preference", {"chosen": QA["messages"], "rejected": [user("other"), assistant("b")]},
     "chosen and rejected differ in more than the last answer", ""),
    ("preference", {"chosen": [*SHARED, assistant("x")], "rejected": SHARED[:2]},
     "chosen and rejected differ in more than the last answer", ""),
    ("preference", {"prompt": [user("q"), assistant("a")], "chosen": "a", "rejected": "b"},
     "same role twice in a row", "message 3"),
    ("labelled", {"prompt": "q", "completion": "a"},
     "no column 'label' (data.sources.columns.label)", "prompt, completion"),
    ("labelled", {"prompt": "q", "completion": "a", "label": None},
     "label is neither true nor false", "None"),
    ("labelled", {"prompt": "q", "completion": "a", "label": "1"},
     "label is neither true nor false", "'1'"),
    ("labelled", {"prompt": "q", "completion": "", "label": True},
     "column 'completion' is empty", ""),
    ("labelled",
     {"prompt": [user("q")], "completion": [assistant("", tool_calls=[CALL])], "label": True},
     "a tool call as labelled answer", ""),
    ("preference", {"prompt": "q", "chosen": [assistant("", tool_calls=[CALL])], "rejected": "b"},
     "a tool call as chosen or rejected answer", ""),
    ("problems", {"question": "q"}, "no column 'answer' (data.sources.columns.answer)", "question"),
    ("problems", {"question": "q", "answer": ["7"]}, "the answer is no text", "['7']"),
    ("problems", {"question": "q", "answer": True}, "the answer is no text", "True"),
    ("problems", {"question": "q", "answer": " "}, "the answer is empty", ""),
    ("problems", {"messages": [user("q"), assistant("a")], "answer": "7"},
     "same role twice in a row", "message 3"),
]  # fmt: skip


@pytest.mark.parametrize(("row_format", "row", "reason", "detail"), BAD)
def test_a_bad_row_has_a_reason_to_count_and_a_detail(row_format, row, reason, detail):
    with pytest.raises(Fault) as caught:
        formats.convert(row, row_format, {}, TAGS)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_a_mapped_column_must_be_there():
    row = {"question": "q", "answer": "a"}
    for key in ("prompt", "response", "system", "history", "reasoning", "tools", "group", "input"):
        with pytest.raises(
            Fault, match=rf"no column 'x' \(data\.sources\.columns\.{key}\): it has"
        ):
            convert(row, "columns", **{key: "x"})


# Messages, reason, detail.
BAD_MESSAGES = [
    ([], "no messages", ""),
    (None, "messages: not a list", "None"),
    ("hello", "messages: not JSON", "Expecting value"),
    ({"role": "user"}, "messages: not a list", "role"),
    (["hello"], "a message is no object", "message 1: 'hello'"),
    ([{"content": "q"}], "a message without a role", "message 1 has content"),
    ([user("q"), {"role": "narrator", "content": "a"}],
     "unknown role", "message 2: 'narrator'; valid"),
    ([user("q"), {"role": 3, "content": "a"}], "unknown role", "message 2: 3"),
    ([user("q"), {"role": ["user"], "content": "a"}], "unknown role", "message 2"),
    ([user("q"), {"role": "assistant"}], "content is no text", "message 2 None"),
    ([user("q"), assistant(None)], "content is no text", "message 2 None"),
    ([user("q"), assistant(5)], "content is no text", "message 2 5"),
    ([user("q"), assistant({"a": 1})], "content is no text", "message 2"),
    ([user("q"), assistant(" \n\t")], "an empty turn", "message 2 (assistant)"),
    ([user("　"), assistant("a")], "an empty turn", "message 1 (user)"),
    ([user("q"), assistant([])], "an empty turn", "message 2"),
    ([user("q"), assistant("a\0b")], "NUL character", "message 2"),
    ([user([{"type": "image_url", "image_url": "x"}]), assistant("a")],
     "content that is not only text", "message 1"),
    ([user(["q"]), assistant("a")], "content that is not only text", "message 1: 'q'"),
    ([user([{"type": "text", "text": None}]), assistant("a")], "content is no text", "message 1"),
    ([user("q"), assistant("a", train="no")],
     "train is neither true nor false, or weight neither 0 nor 1", "message 2 train: 'no'"),
    ([user("q"), assistant("a", weight=0.5)],
     "train is neither true nor false, or weight neither 0 nor 1", "weight: 0.5"),
    ([user("q", ) | {"tool_calls": [CALL]}, assistant("a")],
     "a tool call of another role than assistant", "message 1 (user)"),
    ([user("q"), assistant(None, tool_calls=[{"function": {}}])],
     "a tool call without a name", "message 2"),
    ([user("q"), assistant(None, tool_calls=["add"])], "a tool call without a name", "message 2"),
    ([user("q"), assistant(None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}])],
     "arguments of a tool call: not JSON", "Expecting"),
    ([user("q"), assistant(None, tool_calls=[{"function": {"name": "f", "arguments": [1]}}])],
     "arguments of a tool call: not an object", "message 2"),
    ([user("q"), {"from": "function_call", "value": "add(1)"}],
     "a tool call: not JSON", "Expecting"),
    ([user("q"), {"from": "function_call", "value": "[" * 9999}],
     "a tool call: not JSON", "nested too deeply"),
    ([user("q"), {"from": "function_call", "value": "[]"}], "an empty turn", "message 2"),
    ([user("q"), assistant("a"), system("s"), user("q"), assistant("a")],
     "system message not at the start", "message 3"),
    ([system("s"), system("s"), user("q"), assistant("a")],
     "system message not at the start", "message 2"),
    ([assistant("a"), user("q"), assistant("a")], "assistant speaks first", "message 1"),
    ([system("s"), assistant("a")], "assistant speaks first", "message 2"),
    ([user("q"), user("q"), assistant("a")], "same role twice in a row", "message 2"),
    ([user("q"), assistant("a"), assistant("a")], "same role twice in a row", "message 3"),
    ([user("q"), assistant("", tool_calls=[CALL]), assistant("a")],
     "same role twice in a row", "message 3"),
    ([user("q"), assistant("a"), user("q")], "ends without an answer", "'user'"),
    ([user("q")], "ends without an answer", "'user'"),
    ([system("s")], "ends without an answer", "'system'"),
    ([system("")], "ends without an answer", "0 turns"),
    ([user("q"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "1"}],
     "ends without an answer", "'tool'"),
    ([user("q"), {"role": "tool", "content": "1"}, assistant("a")],
     "tool result without a call", "message 2"),
    ([user("q"), assistant("a"), {"role": "tool", "content": "1"}, assistant("a")],
     "tool result without a call", "message 3"),
    ([{"role": "tool", "content": "1"}, user("q"), assistant("a")],
     "tool result without a call", "message 1"),
    ([user("q"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "1"}, user("q"),
      assistant("a")], "tool result without an answer", "message 4"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "reason", "detail"), BAD_MESSAGES)
def test_a_bad_conversation_has_a_reason_and_the_message(messages, reason, detail):
    with pytest.raises(Fault) as caught:
        formats.convert({"messages": messages}, "messages", {}, TAGS)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_two_tools_may_answer_two_calls():
    turns = [
        user("q"), assistant("", tool_calls=[CALL, CALL]), {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"}, assistant("a"), user("q"), assistant("a"),
    ]  # fmt: skip
    assert convert({"messages": turns})[0]["messages"] == turns


@pytest.mark.parametrize(
    "row", [{}, {"instruction": "q", "input": "i"}, {"a": "b"}, {"question": "q"}, {"chosen": "a"}]
)
def test_what_nobody_knows_is_not_guessed(row):
    assert formats.detect(row, {}) is None


def test_a_mapping_that_the_rows_lack_detects_nothing():
    assert formats.detect({"question": "q", "answer": "a"}, {"response": "reply"}) is None


def test_reasons_do_not_depend_on_the_row():
    numbers = re.compile(r"message \d|\d{2}")
    assert not [reason for _, reason, _ in BAD_MESSAGES if numbers.search(reason)]
