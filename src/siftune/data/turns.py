"""The turns of a conversation: from the messages of ShareGPT, OpenAI and their kin to ours."""

import reprlib
from typing import Any

from siftune.data.faults import Fault
from siftune.data.strict_json import Parser

Message = dict[str, Any]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # roles whose text is a call


def messages(value: Any, tags: tuple[str, str], warnings: list[str]) -> list[Message]:
    """Our messages, from a list of {role, content} or {from, value}, or its JSON text.

    What is odd and can be used all the same is added to `warnings`.

    Raises:
        Fault: something in them has no meaning; the turns' order is not looked at.
    """
    listed = parsed_list(value, "messages")
    if not listed:
        raise Fault("no messages")
    turns = (
        _message(message, f"message {number}", tags, warnings)
        for number, message in enumerate(listed, start=1)
    )
    return [turn for turn in turns if turn is not None]


def turn_order(turns: list[Message]) -> None:
    """Check that turns alternate, from a user's (or a system message) to an assistant's.

    Raises:
        Fault: they do not.
    """
    before = ""
    for number, turn in enumerate(turns, start=1):
        role = turn["role"]
        reason = _disorder(before, role)
        if reason:
            raise Fault(reason, f"message {number}")
        # A call may be answered by tools, other assistant turns not.
        before = "call" if turn.get("tool_calls") else role
    if before not in ("assistant", "call"):
        raise Fault("ends without an answer", f"the last of {len(turns)} turns is of {before!r}")


def plain_text(value: Any, what: str, where: str = "") -> str:
    """A text without the white space around it.

    Raises:
        Fault: it is none; `what` and "is no text" is the reason.
    """
    if not isinstance(value, str):
        raise Fault(f"{what} is no text", f"{where} {reprlib.repr(value)}".strip())
    if "\0" in value:
        raise Fault("NUL character", f"in {what} {where}".strip())
    return value.strip()


def thought(reasoning: str, answer: str, tags: tuple[str, str]) -> str:
    """An answer after the reasoning that leads to it."""
    return f"{tags[0]}\n{reasoning}\n{tags[1]}\n\n{answer}".strip() if reasoning else answer


def parsed(value: Any, what: str) -> Any:
    """A value, or what JSON text, which is all that CSV can hold, has as one.

    Raises:
        Fault: it is text and not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return Parser().parse(value)
    except Fault as fault:
        raise Fault(f"{what}: not JSON", str(fault)) from None


def parsed_list(value: Any, what: str) -> list[Any]:
    """The same, where it must be a list."""
    value = parsed(value, what)
    if not isinstance(value, list):
        raise Fault(f"{what}: not a list", reprlib.repr(value))
    return value


PLAIN = {"role", "content"}
PLAIN_ROLES = ("system", "user", "assistant", "tool")


def _message(
    message: Any, where: str, tags: tuple[str, str], warnings: list[str]
) -> Message | None:
    if not isinstance(message, dict):
        raise Fault("a message is no object", f"{where}: {reprlib.repr(message)}")
    if message.keys() == PLAIN and message["role"] in PLAIN_ROLES:  # nearly all; the same, faster
        said = message["content"]
        if isinstance(said, str) and "\0" not in said and (text := said.strip()):
            return {"role": message["role"], "content": text}
    name, role = _role(message, where, warnings)
    value = message.get("content")
    value = message.get("value") if value is None else value
    if name in CALLS:
        calls, text = _calls(parsed(value, "a tool call"), where), ""
    else:
        calls = _calls(message.get("tool_calls") or message.get("function_call") or [], where)
        text = "" if calls and value is None else _content(value, where)
    if role == "assistant" and message.get("reasoning_content"):
        reasoning = plain_text(message["reasoning_content"], "reasoning_content", where)
        text = thought(reasoning, text, tags)
    if role == "system" and not text:
        warnings.append("empty system message left out")
        return None
    if not text and not calls:
        raise Fault("an empty turn", f"{where} ({role})")
    turn: Message = {"role": role, "content": text}
    if calls and role != "assistant":
        raise Fault("a tool call of another role than assistant", f"{where} ({role})")
    if calls:
        turn["tool_calls"] = calls
    if role == "tool":
        named = {key: message.get(key) for key in ("name", "tool_call_id")}
        turn |= {key: text for key, text in named.items() if isinstance(text, str) and text}
    if role == "assistant" and not _is_trained(message, where):
        turn["train"] = False
    return turn


def _role(message: Message, where: str, warnings: list[str]) -> tuple[str, str]:
    """The role's own name, and ours."""
    name = message.get("role") or message.get("from")
    if not name:
        raise Fault("a message without a role", f"{where} has {', '.join(message)[:100]}")
    if isinstance(name, str) and name not in ROLES and name.lower() in ROLES:
        warnings.append("role written in capitals")
        name = name.lower()
    if not isinstance(name, str) or name not in ROLES:
        raise Fault("unknown role", f"{where}: {reprlib.repr(name)}; valid: {', '.join(ROLES)}")
    return name, ROLES[name]


def _content(value: Any, where: str) -> str:
    if not isinstance(value, list):
        return plain_text(value, "content", where)
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Fault("content that is not only text", f"{where}: {reprlib.repr(part)}")
        texts.append(plain_text(part.get("text"), "content", where))
    return "\n".join(text for text in texts if text)


def _calls(value: Any, where: str) -> list[Message]:
    """Tool calls, from a list of them or from a single one."""
    calls = [value] if isinstance(value, dict) else parsed_list(value, "tool calls")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else {}
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name or not isinstance(function, dict):
        raise Fault("a tool call without a name", f"{where}: {reprlib.repr(call)}")
    # Templates write arguments as JSON: text would be quoted twice.
    arguments = parsed(function.get("arguments") or {}, "arguments of a tool call")
    if not isinstance(arguments, dict):
        raise Fault("arguments of a tool call: not an object", where)
    kept: Message = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": call["id"], **kept} if isinstance(call.get("id"), str) else kept


def _is_trained(message: Message, where: str) -> bool:
    train, weight = message.get("train"), message.get("weight")
    if train not in (None, True, False) or weight not in (None, 0, 1):
        found = f"train: {reprlib.repr(train)}, weight: {reprlib.repr(weight)}"
        raise Fault(
            "train is neither true nor false, or weight neither 0 nor 1", f"{where} {found}"
        )
    return train in (None, True) and weight in (None, 1)


def _disorder(before: str, role: str) -> str | None:
    """What is wrong with a turn of `role` after one of `before` ("" before the first)."""
    if role == "system":
        return "system message not at the start" if before else None
    if role == "tool":
        return None if before in ("call", "tool") else "tool result without a call"
    if role == "assistant" and before in ("", "system"):
        return "assistant speaks first"
    if role == "user" and before == "tool":
        return "tool result without an answer"
    same = before == role or (before == "call" and role == "assistant")
    return "same role twice in a row" if same else None
