"""Rewards for a form that tags give: <reasoning>…</reasoning><answer>…</answer>.

After the GRPO notebook of Unsloth (2025). There the strict and the soft pattern see no section of
several lines, the soft one does not look at what follows, and the count of tags goes far below 0.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from siftune.data.formats import Record
from siftune.data.turns import Message

Tag = Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
Tags = Annotated[Sequence[Tag], Field(min_length=1)]

TAGS = ("reasoning", "answer")
A_CHARACTER_BEHIND = 0.002


def strict_format(
    prompt: list[Message], completion: str, record: Record, *, tags: Tags = TAGS
) -> float:
    """1 where the completion is the sections in order, each tag on a line of its own."""
    parts = pieces(completion, tags)
    if parts is None:
        return 0.0
    between = ["", *["\n"] * (len(tags) - 1), ""]
    has_lines = all(part[:1] == part[-1:] == "\n" and part.strip() for part in parts[1::2])
    return float(has_lines and [*parts[:-1:2], parts[-1].removesuffix("\n")] == between)


def soft_format(
    prompt: list[Message], completion: str, record: Record, *, tags: Tags = TAGS
) -> float:
    """1 where the completion is the sections in order, none of them empty, with any blanks."""
    parts = pieces(completion, tags)
    if parts is None:
        return 0.0
    return float(all(map(str.strip, parts[1::2])) and not any(map(str.strip, parts[::2])))


def tag_count(
    prompt: list[Message], completion: str, record: Record, *, tags: Tags = TAGS
) -> float:
    """The share of tags that are there once, in order and not around nothing; never below 0.

    Each character behind the last tag takes 0.002 away.
    """
    wanted = _written(tags)
    num_right = end = 0
    for tag in wanted:
        place = completion.find(tag, end)
        is_around_nothing = tag.startswith("</") and not completion[end:place].strip()
        if place >= 0 and completion.count(tag) == 1 and not is_around_nothing:
            num_right += 1
            end = place + len(tag)
    before, _, behind = completion.rpartition(wanted[-1])
    num_behind = len(behind.strip()) if before else 0
    return max(0.0, num_right / len(wanted) - A_CHARACTER_BEHIND * num_behind)


def pieces(text: str, tags: Sequence[str]) -> list[str] | None:
    """The text between the tags: before the first section, in it, behind it, in the second…

    None unless each opening and closing tag is there once, and in order.
    """
    wanted = _written(tags)
    pattern = re.compile("|".join(map(re.escape, wanted)))
    return pattern.split(text) if pattern.findall(text) == wanted else None


def _written(tags: Sequence[str]) -> list[str]:
    return [written for tag in tags for written in (f"<{tag}>", f"</{tag}>")]
