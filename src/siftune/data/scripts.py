"""What the text is written in: scripts and variant characters, as facts, normalised if asked."""

from collections import Counter
from functools import cache
from typing import Any, Literal

import numpy as np
import opencc

Region = Literal["taiwan", "hongkong"]
_OPENCC = {"taiwan": "t2tw", "hongkong": "t2hk"}
# The Han characters of Unicode up to the second supplementary plane, and the ideographic zero.
_HAN = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF), (0x3007, 0x3007))


@cache
def _converter(name: str) -> opencc.OpenCC:
    return opencc.OpenCC(name)


def normalise(text: str, region: Region) -> str:
    """Variant characters as they are written there (爲 → 為, 裏 → 裡), by OpenCC's tables."""
    return text if text.isascii() else str(_converter(_OPENCC[region]).convert(text))


def simplified(text: str) -> str:
    """In Simplified characters: to compare texts, whichever way they are written (爲, 為 → 为)."""
    return text if text.isascii() else str(_converter("t2s").convert(text))


def is_han(character: str) -> bool:
    """Whether it is a Chinese character."""
    return any(low <= ord(character) <= high for low, high in _HAN)


@cache
def script_of(character: str) -> str:
    """`traditional` or `simplified` where only one of them writes it so, else its script."""
    if is_han(character):
        # 后, 云 and 乾 are written in both: the old national encodings know what is only in one.
        if _converter("t2s").convert(character) != character:
            return "han" if _encodable(character, "gb2312") else "traditional"
        only_simplified = _converter("s2t").convert(character) != character
        return "simplified" if only_simplified and not _encodable(character, "big5") else "han"
    if not character.isalpha():
        return "other"
    code = ord(character)
    return "latin" if code < 0x250 or 0x1E00 <= code < 0x1F00 else "other"


def _encodable(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def characters(text: str) -> Counter[str]:
    """How often each character occurs."""
    counts = np.bincount(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
    return Counter({chr(code): int(counts[code]) for code in np.flatnonzero(counts).tolist()})


def shares(characters: Counter[str]) -> dict[str, float]:
    """The share of each script among letters; blanks, digits and punctuation are not counted."""
    found = dict.fromkeys(("traditional", "simplified", "han", "latin", "other"), 0)
    for character, number in characters.items():
        if character.isalpha():
            found[script_of(character)] += number
    total = sum(found.values())
    return {script: round(number / total, 4) if total else 0.0 for script, number in found.items()}


def variants(characters: Counter[str], region: Region = "taiwan") -> list[dict[str, Any]]:
    """Characters that the region writes otherwise, most frequent first: found, standard, count."""
    listed = []
    for character, number in characters.most_common():
        if script_of(character) == "traditional" or script_of(character) == "han":
            standard = normalise(character, region)
            if standard != character:
                listed.append({"found": character, "standard": standard, "count": number})
    return listed
