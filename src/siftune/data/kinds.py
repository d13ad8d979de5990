"""What a record is for: the phase of training that its kind is trained in. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from siftune.stage import UserError

Record = dict[str, Any]

# By phase.
ROWS = {
    "pretrain": "plain text (data.sources.format: text)",
    "sft": "conversations that end with an answer",
    "dpo": "pairs of a chosen and a rejected answer, or answers labelled good or bad",
    "grpo": "problems with a true answer",
}
# Of a format that params name; the other formats are conversations.
_OF_FORMAT = {"text": "pretrain", "preference": "dpo", "labelled": "dpo", "problems": "grpo"}


# What stands beside the messages of a record, and not in a conversation.
_BESIDE = ("chosen", "rejected", "completion", "label", "answer", "fields")


def phase_of(record: Mapping[str, Any]) -> str:
    """The phase that a canonical record is for."""
    if "text" in record:
        return "pretrain"
    if "chosen" in record or "completion" in record:
        return "dpo"
    return "grpo" if "answer" in record else "sft"


def phase_of_format(name: str) -> str | None:
    """The phase that the rows of a format are for; None: `auto`, which only the rows tell."""
    return None if name == "auto" else _OF_FORMAT.get(name, "sft")


def with_answer(record: Record, answer: str) -> Record:
    """The conversation of a record whose answers stand beside its messages, with one of them."""
    turns = [*record["messages"], {"role": "assistant", "content": answer}]
    return {name: value for name, value in record.items() if name not in _BESIDE} | {
        "messages": turns
    }


def as_conversation(record: Record) -> Record | None:
    """A record of any kind as a conversation that ends with an answer; None for plain text."""
    for answer in ("chosen", "completion", "answer"):
        if answer in record:
            return with_answer(record, record[answer])
    return None if "text" in record else record


def require(found: Mapping[str, tuple[bool, bool]]) -> None:
    """Refuse rows whose phase is left out, and phases without rows.

    Args:
        found: by phase, whether its section is set and whether it has rows.

    Raises:
        UserError: with all that does not agree.
    """
    problems = []
    for phase, (is_set, has_rows) in found.items():
        if has_rows and not is_set:
            problems.append(
                f"{phase}: null, but data.sources have rows for it: {ROWS[phase]}. Set the "
                f"section, for example by method={phase}-lora, or leave those rows out."
            )
        if is_set and not has_rows:
            problems.append(
                f"{phase}: this section is set, but data.sources have no rows for it: "
                f"{ROWS[phase]}. Add such rows, or leave the phase out: {phase}: null."
            )
    if problems:
        raise UserError("\n  ".join(f"params.yaml: {problem}" for problem in problems))
