"""The one number that a short text says, exactly: in digits, as a fraction, or in Chinese."""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200  # characters; an answer is no essay


class Quantity(NamedTuple):
    """A number, and whether a percent sign follows it."""

    value: Fraction
    is_percent: bool

    def equals(self, other: "Quantity", tolerance: float) -> bool:
        """Whether both say the same: 50 % is 50 as well as 0.5, unless both are percentages.

        Args:
            tolerance: the largest difference, as a share of `other`.
        """
        values = {self.value}
        others = {other.value}
        if self.is_percent and not other.is_percent:
            values.add(self.value / 100)
        if other.is_percent and not self.is_percent:
            others.add(other.value / 100)
        # Compared as fractions: in floating point, 0.1 + 0.2 is not 0.3.
        allowed = Fraction(tolerance)
        return any(abs(one - two) <= allowed * abs(two) for one in values for two in others)


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,30})(?:\.\d{1,30})?|\.\d{1,30}"
# A minus stands before a number, not between two words or numbers.
_ARABIC = re.compile(
    r"(?P<sign>(?<![\w.)])[-+])?(?:[$€£¥] ?)?(?:(?P<whole>\d{1,30}) (?=\d{1,30} ?/ ?\d))?"
    rf"(?P<over>{_DIGITS})(?: ?/ ?(?P<under>{_DIGITS}))?"
    r"(?P<unit>[十拾百佰千仟萬万億亿])?(?P<percent> ?%)?"
)
_CHINESE = re.compile(
    r"(?P<percent>百分之)?(?P<sign>負|负)?"
    r"(?P<number>[〇零一二三四五六七八九十百千萬万億亿兩廿卅"
    r"壹貳贰參叁肆伍陸陆柒捌玖拾佰仟點]+(?:分之[〇零一二三四五六七八九十百千]+)?)"
)
_HALVES = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")  # 1½
_SAME = str.maketrans({"\u2212": "-", "\u2044": "/", "两": "兩", "点": "點"})
_LATEX = (
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,;:! ]"), ""),
    (re.compile(r"\\(?=[$%])"), ""),
)


def read(text: str, *, alone: bool = False) -> Quantity | None:
    """The number in a short text, around which units may stand; None: none, or several.

    Full-width digits, thousands separators, fractions (3/4, \\frac{3}{4}), a minus, percent signs,
    and Chinese numerals (三萬五千, 壹佰, 四分之三, 百分之五) are read. Where there are digits,
    Chinese numerals are words: 一共72個 says 72.

    Args:
        alone: no unit or other word may stand beside it. 三心二意 and Apollo 11 are no numbers.
    """
    if len(text) > LONGEST:
        return None
    # Full-width digits and signs as plain ones; the minus of typography is no hyphen.
    text = unicodedata.normalize("NFKC", _HALVES.sub(" ", text)).translate(_SAME)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    pattern, value_of = _CHINESE, _chinese
    if any(character.isdigit() for character in text):
        pattern, value_of = _ARABIC, _arabic
    found = list(pattern.finditer(text))
    if len(found) != 1 or (alone and any(map(str.isalnum, pattern.sub("", text)))):
        return None
    return value_of(found[0])


def _arabic(found: re.Match[str]) -> Quantity | None:
    over, under = (Fraction((found[name] or "1").replace(",", "")) for name in ("over", "under"))
    if not under:
        return None
    value = (int(found["whole"] or 0) + over / under) * _whole(_values(found["unit"] or "一"))
    return Quantity(-value if found["sign"] == "-" else value, bool(found["percent"]))


def _chinese(found: re.Match[str]) -> Quantity | None:
    under, parted, over = found["number"].partition("分之")
    values = [_decimal(over), _decimal(under)] if parted else [_decimal(under), Fraction(1)]
    if values[0] is None or not values[1]:
        return None
    value = values[0] / values[1]
    return Quantity(-value if found["sign"] else value, bool(found["percent"]))


def _decimal(numerals: str) -> Fraction | None:
    whole, point, rest = numerals.partition("點")
    values, parts = _values(whole), _values(rest.replace("點", "十"))
    if not whole or bool(point) != bool(rest) or any(value > 9 for value in parts):
        return None
    return _whole(values) + Fraction(int("0" + "".join(map(str, parts))), 10 ** len(parts))


def _values(numerals: str) -> list[int]:
    """As in Unicode's database of Han characters, which has the formal ones (壹貳參), too."""
    return [int(unicodedata.numeric(numeral)) for numeral in numerals]


def _whole(values: list[int]) -> int:
    """Of 三萬五千 35000; of digits alone, as in 二〇二六, the number they spell."""
    unit = max(values, default=0)
    if unit < 10:
        return int("0" + "".join(map(str, values)))
    place = values.index(unit)
    before, after = _whole(values[:place]), values[place + 1 :]
    # 兩千五 is 2500.
    rest = after[0] * unit // 10 if len(after) == 1 and unit >= 100 else _whole(after)
    return (before or 1) * unit + rest
