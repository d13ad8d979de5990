"""The strings that tokenizers are compared on."""

import unicodedata

from siftune.gguf_strings import probe_strings


def test_there_are_200_without_a_special_token_and_always_the_same():
    strings = probe_strings([])
    assert len(strings) >= 200
    assert len(set(strings)) >= 195
    assert strings == probe_strings([])


def test_every_special_token_stands_alone_and_in_text():
    special = [f"<|{index}|>" for index in range(30)]
    strings = probe_strings(special)
    for token in special:
        assert token in strings
        assert any(token in text and text != token for text in strings)


def test_scripts_emoji_and_long_runs_are_there():
    strings = probe_strings([])
    for wanted in ("臺", "東", "헌", "เ", "د", "👍🏽"):
        assert any(wanted in text for text in strings)
    assert {" " * 300, "a" * 300, "🙂" * 300} <= set(strings)
    assert all(unicodedata.is_normalized("NFC", text) for text in strings)
