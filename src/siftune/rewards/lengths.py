"""A reward for a length within bounds."""

from typing import Annotated, Literal

from pydantic import Field

from siftune.data.faults import Fault
from siftune.data.formats import Record
from siftune.data.turns import Message
from siftune.data.words import words

Unit = Literal["characters", "words", "tokens"]
Bound = Annotated[int, Field(ge=0)]
Margin = Annotated[int, Field(gt=0)]


def length(
    prompt: list[Message],
    completion: str,
    record: Record,
    *,
    most: Bound,
    margin: Margin,
    least: Bound = 0,
    unit: Unit = "characters",
) -> float:
    """1 from `least` to `most`, then falling in a straight line to 0 at `margin` beyond either.

    So is DAPO's soft punishment of what is too long (Yu et al. 2025, equation 13), but for a
    constant, which the mean of a group takes away.

    Args:
        unit: blanks at both ends do not count; a Chinese character is a word; the number of tokens
            is the record's `num_tokens`, which the training puts there.

    Raises:
        Fault: tokens are asked for, and the record has no number of them.
    """
    number = _number(completion.strip(), record, unit)
    beyond = max(least - number, number - most, 0)
    return max(0.0, 1.0 - beyond / margin)


def _number(text: str, record: Record, unit: Unit) -> int:
    if unit == "words":
        return len(words(text))
    if unit == "characters":
        return len(text)
    if not isinstance(record.get("num_tokens"), int):
        raise Fault("a record without num_tokens")
    return int(record["num_tokens"])
