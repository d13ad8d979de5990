"""Phrases that many answers share though no prompt asks for them: a teacher model's own prompt.

Models tuned on such answers repeat it (參考答案已提供, "as the reference answer says").
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from siftune.data.words import words

_RUN = 4  # words, or Chinese characters, that make a phrase
_LONGEST = 24
_MIN_ROWS = 5
_MIN_SHARE = 0.02
_SHOWN = 20
# What only the maker of the data has seen.
SUSPICIOUS = re.compile(
    r"[參参]考(答案|解答|資料|资料)|標準答案|标准答案|根據(提供|題目給)|根据(提供|题目给)|"
    r"提供的(答案|解答)|作為(一個)?(ai|人工智)|作为(一个)?(ai|人工智)|"
    r"reference (answer|solution)|(provided|given|correct) (answer|solution) is|"
    r"as an ai|language model|the user (wants|asks|is asking)|according to the instructions?",
    re.IGNORECASE,
)


def shared(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """Phrases of at least 2 % of the answers, most frequent first, suspicious ones before others.

    Args:
        pairs: prompt and answer of each conversation looked at.

    Returns:
        `phrase`, `answers` (how many have it), `share` of them, `example`, `suspicious`.
    """
    runs = [(_runs(answer), set(_runs(prompt))) for prompt, answer in pairs]
    frequency = Counter(run for said, asked in runs for run in set(said) - asked)
    enough = max(_MIN_ROWS, _MIN_SHARE * len(pairs))
    frequent = {run for run, number in frequency.items() if number >= enough}
    found: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for (said, asked), (_, answer) in zip(runs, pairs, strict=True):
        for phrase in dict.fromkeys(_phrases(said, frequent - asked)):
            found[phrase] += 1
            examples.setdefault(phrase, answer)
    listed: list[dict[str, Any]] = [
        {
            "phrase": phrase,
            "answers": number,
            "share": round(number / len(pairs), 4),
            "example": examples[phrase][:200],
            "suspicious": bool(SUSPICIOUS.search(phrase)),
        }
        for phrase, number in found.most_common()
        if number >= enough
    ]
    return sorted(listed, key=lambda row: (not row["suspicious"], -row["answers"]))[:_SHOWN]


def _runs(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return list(zip(*(found[place:] for place in range(_RUN)), strict=False))


def _phrases(said: list[tuple[str, ...]], frequent: set[tuple[str, ...]]) -> Iterator[str]:
    """The longest stretches of an answer whose every run is frequent."""
    stretch: list[str] = []
    for run in said:
        if run in frequent and len(stretch) < _LONGEST:
            stretch = [*stretch, run[-1]] if stretch else list(run)
        elif stretch:
            yield _joined(stretch)
            stretch = []
    if stretch:
        yield _joined(stretch)


def _joined(found: list[str]) -> str:
    text = found[0]
    for before, after in pairwise(found):
        text += f" {after}" if before.isascii() or after.isascii() else after
    return text
