"""What is done with a conversation that is longer than `encode.max_length`."""

from collections.abc import Callable
from typing import Any

from siftune.chat.masking import IGNORED, Either, Encoded
from siftune.data.faults import Fault

Record = dict[str, Any]


def cut(
    record: Record,
    encoded: Either,
    rule: str,
    max_length: int,
    encode: Callable[[Record], Encoded | Fault],
) -> Either | Fault | None:
    """What is left of a conversation that is too long; None: nothing, it is dropped.

    `cut_first_turns` leaves out the oldest exchanges until the rest fits, and never part of one;
    `cut_answer` leaves out the end: the model does not see how that answer stops.

    Raises nothing; a Fault says that nothing is left to train on.
    """
    if rule == "cut_answer":
        left = encoded.beginning(max_length)
        if all(label == IGNORED for label in left.labels):
            return Fault("no trained token after cutting", f"of {len(encoded.input_ids)}")
        return left
    if rule == "cut_first_turns":
        for shorter in without_first_turns(record):
            found = encode(shorter)
            if isinstance(found, Fault) or len(found.input_ids) <= max_length:
                return found
    return None


def without_first_turns(record: Record) -> list[Record]:
    """The record without its oldest exchange, without its two oldest, and so on."""
    messages = record.get("messages", [])
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return [{**record, "messages": [*head, *messages[start:]]} for start in asked[1:]]
