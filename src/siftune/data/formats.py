"""What a row means: one function a format, from the columns of a row to a record.

A column is found by the name that `data.sources.columns` gives it, else by a usual one.
"""

import reprlib
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from siftune.data.columns import Pairs, Row
from siftune.data.faults import Fault
from siftune.data.turns import Message, parsed_list, plain_text, thought, turn_order

Record = dict[str, Any]

ALPACA: Pairs = (("instruction", "output"),)
INPUT_OUTPUT: Pairs = (("input", "output"),)
QUESTION_ANSWER: Pairs = (
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("problem", "solution"),
    ("question", "response"),
)
PROMPT = ("prompt", "instruction", "question", "query", "problem")
# DPO-zh-en-emoji: Chinese with emoji is to be preferred. The others are Argilla's.
CHOSEN = ("chosen", "chosen_response", "answer_zh")
REJECTED = ("rejected", "rejected_response", "answer_en")
GROUND_TRUTH = ("answer", "ground_truth", "solution")
TEXT = ("text", "content")


def convert(
    values: dict[str, Any],
    source_format: str,
    columns: dict[str, str],
    reasoning_tags: tuple[str, str],
) -> tuple[Record, list[str]]:
    """The record of a row, without its id, and what is odd about the row (the same text each time).

    Raises:
        Fault: the row has no meaning in this format.
    """
    row = Row(values, columns, reasoning_tags)
    record = FORMATS[source_format](row)
    return {"group": _group(row, record), **record}, list(dict.fromkeys(row.warnings))


def detect(values: dict[str, Any], columns: dict[str, str]) -> str | None:
    """The format of a row by its columns' names; None where nothing is known about them."""

    def has(key: str, *usual: str) -> bool:
        return columns[key] in values if key in columns else any(name in values for name in usual)

    def has_pair(pairs: Pairs) -> bool:
        return any(has("prompt", prompt) and has("response", answer) for prompt, answer in pairs)

    if has("chosen", *CHOSEN) and has("rejected", *REJECTED):
        return "preference"
    # A class of a text is a label, too, but not true or false.
    if "label" in columns or (isinstance(values.get("label"), bool) and has_pair(QUESTION_ANSWER)):
        return "labelled"
    if "answer" in columns:
        return "problems"
    if "text" in columns:
        return "text"
    if not {"prompt", "response"} & columns.keys():
        if has("messages", "messages"):
            return "messages"
        if "conversations" in values:
            return "sharegpt"
    if columns.get("prompt", "instruction") == "instruction" and has_pair(ALPACA):
        return "alpaca"
    if has_pair(QUESTION_ANSWER):
        return "columns"
    if has_pair(INPUT_OUTPUT):
        return "input-output"
    return "text" if any(name in values for name in TEXT) else None


def _alpaca(row: Row) -> Record:
    return _prompt_answer(row, ALPACA, extra=("input",))


def _input_output(row: Row) -> Record:
    return _prompt_answer(row, INPUT_OUTPUT)


def _columns(row: Row) -> Record:
    return _prompt_answer(row, QUESTION_ANSWER)


def _prompt_answer(row: Row, pairs: Pairs, extra: tuple[str, ...] = ()) -> Record:
    prompt, response = row.pair(pairs)
    turns = _opening(row, row.needed("prompt", prompt), extra)
    value = row.needed("response", response)
    if isinstance(value, list):  # of messages, as `prompt` then is
        return _conversation(row, turns + row.messages(value))
    answer = plain_text(value, f"column {response!r}")
    if not answer:
        raise Fault(f"column {response!r} is empty")
    answer = thought(row.any_text("reasoning", "reasoning"), answer, row.tags)
    return _conversation(row, [*turns, {"role": "assistant", "content": answer}])


def _sharegpt(row: Row) -> Record:
    return _conversation(row, _system(row) + row.messages(row.needed("messages", "conversations")))


def _messages(row: Row) -> Record:
    return _conversation(row, _system(row) + row.messages(row.needed("messages", "messages")))


def _text(row: Row) -> Record:
    text = plain_text(row.needed("text", *TEXT), "the text")
    if not text:
        raise Fault("the text is empty")
    return {"text": text}


def _preference(row: Row) -> Record:
    chosen = _answer(row, row.needed("chosen", *CHOSEN))
    rejected = _answer(row, row.needed("rejected", *REJECTED))
    if chosen == rejected:
        raise Fault("chosen and rejected are the same")
    pairs = zip(chosen, rejected, strict=False)
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    last = [turns[len(shared) :] for turns in (chosen, rejected)]
    if any(len(turns) != 1 or turns[0]["role"] != "assistant" for turns in last):
        raise Fault("chosen and rejected differ in more than the last answer")
    if any("tool_calls" in turns[0] for turns in last):
        raise Fault("a tool call as chosen or rejected answer")
    prompt = _prompt(row, needed=not shared)
    if prompt in (chosen, rejected):  # UltraFeedback's `messages` are the chosen conversation
        prompt = []
    # `prompt` often repeats what both answers begin with.
    is_repeated = prompt in (shared[: len(prompt)], shared[len(shared) - len(prompt) :])
    turns = shared if is_repeated else prompt + shared
    turn_order([*turns, *last[0]])
    record = {"messages": turns, "chosen": last[0][0]["content"]}
    return _with_tools(row, {**record, "rejected": last[1][0]["content"]})


def _labelled(row: Row) -> Record:
    """One answer, and whether it is good: what KTO learns from."""
    label = row.needed("label", "label")
    if isinstance(label, str):  # all that CSV can hold
        label = {"true": True, "false": False}.get(label.strip().lower(), label)
    if not isinstance(label, bool):
        raise Fault("label is neither true nor false", reprlib.repr(label))
    record = _prompt_answer(row, QUESTION_ANSWER)
    *turns, last = record.pop("messages")
    if "tool_calls" in last:
        raise Fault("a tool call as labelled answer")
    return {"messages": turns, "completion": last["content"], "label": label, **record}


def _problems(row: Row) -> Record:
    truth = row.needed("answer", *GROUND_TRUTH)
    if isinstance(truth, (int, float)) and not isinstance(truth, bool):
        truth = str(truth)
    answer = plain_text(truth, "the answer")
    if not answer:
        raise Fault("the answer is empty")
    turns = _prompt(row, needed=True)
    turn_order([*turns, {"role": "assistant", "content": answer}])
    fields = {name: value for name, value in row.values.items() if name not in row.used}
    return {"messages": turns, "answer": answer, "fields": fields}


FORMATS: dict[str, Callable[[Row], Record]] = {
    "alpaca": _alpaca,
    "input-output": _input_output,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "columns": _columns,
    "text": _text,
    "preference": _preference,
    "labelled": _labelled,
    "problems": _problems,
}


def _conversation(row: Row, turns: list[Message]) -> Record:
    turn_order(turns)
    return _with_tools(row, {"messages": turns})


def _with_tools(row: Row, record: Record) -> Record:
    value = row.value("tools", "tools")
    tools = parsed_list(value, "tools") if value else []
    if not all(isinstance(tool, dict) for tool in tools):
        raise Fault("tools: not a list of objects")
    return {**record, "tools": tools} if tools else record


def _prompt(row: Row, *, needed: bool) -> list[Message]:
    """The turns before an answer: messages, or a column of text and what stands around it."""
    listed = row.value("messages", "messages", "conversations")
    if listed is not None:
        return _system(row) + row.messages(listed)
    prompt = row.needed("prompt", *PROMPT) if needed else row.value("prompt", *PROMPT)
    return _system(row) if prompt is None else _opening(row, prompt, ("input",))


def _opening(row: Row, prompt: Any, extra: tuple[str, ...]) -> list[Message]:
    """System message, earlier turns, and the user's, to which the extra input is joined."""
    if isinstance(prompt, list):
        return _system(row) + row.messages(prompt)
    parts = [plain_text(prompt, "the prompt"), row.any_text("input", *extra)]
    text = "\n".join(part for part in parts if part)
    if not text:
        raise Fault("the prompt is empty")
    return [*_system(row), *_history(row), {"role": "user", "content": text}]


def _system(row: Row) -> list[Message]:
    text = row.any_text("system", "system")
    return [{"role": "system", "content": text}] if text else []


def _history(row: Row) -> list[Message]:
    value = row.value("history", "history")
    turns: list[Message] = []
    for pair in parsed_list(value, "history") if value else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Fault("history: not a list of [question, answer]")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": plain_text(text, "history")})
            if not turns[-1]["content"]:
                raise Fault("an empty turn", f"in the history ({role})")
    return turns


def _answer(row: Row, value: Any) -> list[Message]:
    if isinstance(value, (list, dict)):
        return row.messages(value if isinstance(value, list) else [value])
    text = plain_text(value, "chosen or rejected")
    if not text:
        raise Fault("chosen or rejected is empty")
    return [{"role": "assistant", "content": text}]


def _group(row: Row, record: Record) -> str:
    """What keeps rows in one split: the mapped column, else the first question or the text."""
    if "group" in row.columns:
        value = row.needed("group")
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
            column = row.columns["group"]
            raise Fault(
                f"column {column!r} is neither text nor number (data.sources.columns.group)"
            )
        return str(value)
    if "text" in record:
        return str(record["text"])
    return str(next(turn["content"] for turn in record["messages"] if turn["role"] == "user"))
