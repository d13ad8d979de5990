"""Rewards for the right answer, from 0 to 1.

An answer counts where it is given exactly once, in its place: whoever lists ten has given none. The
record's own answer may stand behind a reasoning, as in GSM8K.
"""

import re
import unicodedata
from typing import Annotated, Literal

from pydantic import Field

from siftune.data import scripts
from siftune.data.faults import Fault
from siftune.data.formats import Record
from siftune.data.turns import Message
from siftune.rewards import quantities, tags

Place = Literal["tags", "hashes", "boxed", "last_number", "whole"]
Tolerance = Annotated[float, Field(ge=0.0, lt=1.0)]

TAG = "answer"
HASHES = "####"
BOXED = "\\boxed{"
_NUMBERS = re.compile(r"(?:(?<![\w.)])[-+])?[$€£¥]?\d[\d.,/]*%?")
# Blanks and signs that say nothing; before a digit they do, and in 50 %.
_SEPARATORS = re.compile(r"(?:\s|(?:[^\w\s%]|_)(?!\d))+")


def correct_answer(
    prompt: list[Message], completion: str, record: Record, *, tag: tags.Tag = TAG
) -> float:
    """1 where the tag holds the true answer: the same number, else the same text."""
    found, truth = _inside(completion, tag), true_answer(record)
    number = quantities.read(truth, alone=True)
    if number is None:
        return float(_plain(found) == _plain(truth))
    given = quantities.read(found)
    return float(given is not None and given.equals(number, 0.0))


def integer_answer(
    prompt: list[Message], completion: str, record: Record, *, tag: tags.Tag = TAG
) -> float:
    """1 where the tag holds a whole number without a unit, be it right or wrong."""
    number = quantities.read(_inside(completion, tag), alone=True)
    return float(number is not None and not number.is_percent and number.value.denominator == 1)


def numeric_answer(
    prompt: list[Message],
    completion: str,
    record: Record,
    *,
    place: Place = "hashes",
    tolerance: Tolerance = 0.0,
) -> float:
    """1 where the answer is the true number, however both are written.

    Args:
        tolerance: the largest difference that is right, as a share of the true number.

    Raises:
        Fault: the true answer is no number.
    """
    truth = true_answer(record)
    number = quantities.read(truth)
    if number is None:
        raise Fault("the true answer is no number", repr(truth[:80]))
    given = quantities.read(final_answer(completion, place))
    return float(given is not None and given.equals(number, tolerance))


def exact_answer(
    prompt: list[Message], completion: str, record: Record, *, place: Place = "whole"
) -> float:
    """1 where the answer is the true text, but for case, blanks, punctuation and variants.

    爲 is 為, and Traditional characters are the Simplified ones.
    """
    return float(_plain(final_answer(completion, place)) == _plain(true_answer(record)))


def true_answer(record: Record) -> str:
    """The record's answer, without what leads to it.

    Raises:
        Fault: there is none.
    """
    answer = str(record.get("answer", ""))
    answer = final_answer(answer, "hashes") or final_answer(answer, "boxed") or answer
    if not _plain(answer):
        raise Fault("a record without an answer", repr(answer[:80]))
    return answer


def final_answer(text: str, place: Place) -> str:
    """The answer in its place; "" where that is not there, or there several times."""
    if place == "whole":
        return text.strip()
    if place == "tags":
        return _inside(text, TAG)
    if place == "last_number":
        return (_NUMBERS.findall(text) or [""])[-1]
    _, _, after = text.partition(HASHES if place == "hashes" else BOXED)
    if place == "hashes":
        return "" if HASHES in after else after.strip().partition("\n")[0]
    return "" if BOXED in after else _braced(after)


def _braced(text: str) -> str:
    """Up to the brace that closes."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:place].strip()
    return ""


def _inside(text: str, tag: str) -> str:
    parts = tags.pieces(text, (tag,))
    return parts[1].strip() if parts else ""


def _plain(text: str) -> str:
    text = scripts.simplified(unicodedata.normalize("NFKC", text).casefold())
    return _SEPARATORS.sub(" ", text).strip()
