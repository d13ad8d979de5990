"""Mojibake is found as ftfy finds it, though only around its own characters is looked."""

import random

import pytest
from ftfy.badness import is_bad

from siftune.data import checks

TEXTS = (
    "schön für dich, “quoted” — 臺灣的夏天",
    "naïve café — l’été à 5 €",
    "Привет, мир — «да»",
    "日本語テキスト",
    "Ελληνικά – “ναι”",
)
CODES = ("cp1252", "cp1251", "latin-1", "mac-roman", "cp1253", "cp1257", "cp437", "iso8859-2")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_decoded_wrongly(text: str, code: str):
    wrong = text.encode().decode(code, "replace")
    for at in range(len(wrong) + 1):
        for part in (wrong[at:], wrong[:at], "plain text " + wrong[at : at + 9] + " and more text"):
            assert checks._is_bad(part) == is_bad(part)


def test_made_texts():
    dice = random.Random(1)
    known = [c for c in map(chr, range(1, 0x10000)) if checks._COULD_BE_MOJIBAKE.match(c)]
    others = [*"ГўВЂВ ÂÃÎÐØÙ×²³à√≈‚вβā€œŒ°aZ.,?!\n\t為好", "вЂ", "β€™", "Ã ", " Â "]
    found = set()
    for _ in range(20_000):
        length = dice.randrange(1, 14)
        text = "".join(dice.choice(dice.choice((known, others, "ab c"))) for _ in range(length))
        text = "x" * dice.choice((0, 3, 30)) + text + "y" * dice.choice((0, 2, 20))
        assert checks._is_bad(text) == is_bad(text)
        found.add(is_bad(text))
    assert found == {True, False}
