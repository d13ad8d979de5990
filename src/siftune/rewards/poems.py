"""Rewards for the form of a Chinese poem: lines, characters a line, rhyme."""

import re
from collections import Counter
from functools import cache
from typing import Annotated

from pydantic import Field

from siftune.data import scripts
from siftune.data.faults import Fault
from siftune.data.formats import Record
from siftune.data.turns import Message

Number = Annotated[int, Field(gt=0)]

# Line breaks, tabs, and punctuation: Chinese, full-width or ASCII.
_ENDS_OF_LINES = re.compile(r"[\s,.;:!?，。；：！？、．｡､]+")
_QUOTES = re.compile(r"[「」『』“”‘’《》〈〉（）()\"']")

# The thirteen rhymes (十三轍) of northern verse and opera, by pypinyin's finals. Tang rhymes are
# another language's: 80 % of S3's poems rhyme throughout in these, 5 % of poems of random lines do.
_RHYMES = {
    "發花": "a ia ua", "梭坡": "o e uo", "乜斜": "ie ve ê", "姑蘇": "u", "一七": "i v er",
    "懷來": "ai uai", "灰堆": "ei uei", "遙條": "ao iao", "油求": "ou iou",
    "言前": "an ian uan van", "人辰": "en in uen vn", "江陽": "ang iang uang",
    "中東": "eng ing ueng ong iong",
}  # fmt: skip
_RHYME_OF = {final: rhyme for rhyme, finals in _RHYMES.items() for final in finals.split()}


def poem_form(
    prompt: list[Message],
    completion: str,
    record: Record,
    *,
    num_lines: Number | None = None,
    num_characters: Number | None = None,
) -> float:
    """Good lines, divided by the lines that are asked for or there, whichever are more.

    A good line has the right number of characters, all of them Chinese, and repeats neither an
    earlier line nor one of the prompt.

    Args:
        num_lines: null: as many as the record's answer has.
        num_characters: of a line; null: as many as the first line of the record's answer has.

    Raises:
        Fault: what is asked for is neither given nor in the record.
    """
    answer = lines(str(record.get("answer", "")))
    if not answer and not (num_lines and num_characters):
        raise Fault("a record without an answer", "num_lines and num_characters are not both given")
    num_lines = num_lines or len(answer)
    num_characters = num_characters or len(answer[0])
    found = lines(completion)
    good = set(_own(found, prompt))
    num_good = sum(len(line) == num_characters and _is_chinese(line) for line in good)
    return min(num_good, num_lines) / max(len(found), num_lines)


def rhyme(
    prompt: list[Message], completion: str, record: Record, *, follows_prompt: bool = False
) -> float:
    """The share of even lines that rhyme with one of them; from 0, none with another, to 1, all.

    Of n even lines, of which the largest group that rhymes has k different last characters, it is
    (k − 1) / (n − 1). A line that repeats another, or one of the prompt, does not rhyme.

    Args:
        follows_prompt: the poem begins with the last line of text in the prompt.
    """
    found = lines(completion)
    fresh = set(_own(found, prompt))
    begun = _begun(prompt) if follows_prompt else []
    fresh |= set(begun)
    even = [*begun, *found][1::2]
    if len(even) < 2:
        return 0.0
    last = {line[-1] for line in even if line in fresh}
    groups = Counter(group for character in last for group in rhymes_of(character))
    return max(0, max(groups.values(), default=0) - 1) / (len(even) - 1)


def lines(text: str) -> list[str]:
    """The lines of a poem, in Taiwan's standard characters (爲 → 為), without punctuation."""
    text = scripts.normalise(_QUOTES.sub("", text), "taiwan")
    return [line for line in _ENDS_OF_LINES.split(text) if line]


@cache
def rhymes_of(character: str) -> frozenset[str]:
    """The rhymes of all its readings in Mandarin."""
    import pypinyin

    readings = pypinyin.pinyin(
        character, style=pypinyin.Style.FINALS, heteronym=True, errors="ignore"
    )
    return frozenset(_RHYME_OF[final] for final in (readings or [[]])[0] if final in _RHYME_OF)


def _own(found: list[str], prompt: list[Message]) -> list[str]:
    said = {line for message in prompt for line in lines(message["content"] or "")}
    return [line for line in found if line not in said]


def _begun(prompt: list[Message]) -> list[str]:
    text = (prompt[-1]["content"] or "").strip() if prompt else ""
    return lines(text.rpartition("\n")[2])


def _is_chinese(line: str) -> bool:
    return all(scripts.is_han(character) for character in line)
