"""Strings that tokenizers disagree about: scripts, emoji, long runs, special tokens, mixtures."""

import random
from collections.abc import Iterable

# In NFC, like nearly all text: llama.cpp normalises nothing, and would differ from those that do.
PIECES = (
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said we'd, you'll, he's; DON'T SHOUT, it's JOHN'S",
    "naïve café, coöperate, Ångström, Übergröße, façade, œuvre",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Đường phố Hà Nội",
    "Съешь ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "敏捷的棕色狐狸跳过了懒狗。",
    "臺灣的夏天很熱,我們去吃剉冰吧!「真的嗎?」",
    "いろはにほへと チリヌルヲ、東京タワーへ行く。",
    "다람쥐 헌 쳇바퀴에 타고파",
    "ㄅㄆㄇㄈ ㄉㄊㄋㄌ",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ",
    "דג סקרן שט בים מאוכזב",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "🙂🚀🎉",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇹🇼 ❤️‍🔥",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159, 1,000,000.00, -42, 1e-9, 0xDEADBEEF, ½ ² ٣ ๔",
    "12 + 30 = 42; 7 × 8 = 56; x² − y² ≠ ∑∫√∞",
    "#### 42\n#### -1,234.5",
    "$12.50 €9,99 £3 ¥1000 100% 50°C",
    "def f(x):\n\treturn x**2 if x else None  # done\n",
    'for (int i = 0; i < n; ++i) { a[i] += "s\\n"; }',
    '{"key": [1, 2.5, null, true], "clé": "값"}',
    "SELECT * FROM t WHERE a <> 'b' -- c",
    "https://example.org/a/b?c=d&e=%20#f me@example.org",
    "<p class='x'>a &amp; b</p><!-- c -->",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    " leading", "trailing ", "  two  spaces  ", "a  1", "1  a", " 1", "  12  34",
    "a\nb", "a\n\nb", "a\r\nb", "a \n b", "\n \n\t\n", "a\tb\t\tc", "\t 1\n 2",
    "no\u00a0break", "zero\u200bwidth", "thin\u2009space", "\ufeffmark", "soft\u00adhyphen",
    "a\u2028b", "“curly” ‘quotes’ — dash … dots",
    "snake_case CamelCase kebab-case SCREAMING", "?!?!...!!!",
    "Pneumonoultramicroscopicsilicovolcanoconiosis", "xqzjkvwpfbg", "aAaAaA", "ﬁ ﬂ Ⅷ ㎏",
)  # fmt: skip
RUN_CHARACTERS = (" ", "\n", "\t", "a", "0", "7", ".", "-", "=", "'", "é", "好", "臺", "🙂", "ก")
RUN_LENGTHS = (2, 3, 5, 16, 67, 300)
NUM_MIXED = 60


def probe_strings(special_tokens: Iterable[str]) -> list[str]:
    """More than 200 strings, always the same: pieces, runs, every special token, and mixtures."""
    special = list(special_tokens)
    runs = [character * length for character in RUN_CHARACTERS for length in RUN_LENGTHS]
    framed = [text for token in special for text in (token, f"a {token} 1{token}\n{token}é")]
    dice = random.Random(0)
    short = [*PIECES, *(run for run in runs if len(run) <= 5), *special]
    joints = ("", " ", "\n", "  ")
    mixed = [
        dice.choice(joints).join(dice.choices(short, k=dice.randint(2, 6)))
        for _ in range(NUM_MIXED)
    ]
    return [*PIECES, *runs, *framed, *mixed]
