import re
import sys
from pathlib import Path

import pyarrow
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from siftune import __main__, tokens
from siftune.chat.masking import IGNORED
from siftune.proof import page, terminal, token_text
from siftune.proof.token_text import Piece, Reader
from siftune.stage import UserError

END = "<|im_end|>"


def pieces(tokenizer, text: str) -> list[Piece]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Reader(tokenizer).pieces(ids, ids)


# Tokens


@pytest.mark.parametrize("text", ["龘", "你好,世界", "👨‍👩‍👧 and 🧺", "عاصمة", "a b\n\n\tc", ""])
def test_pieces_are_the_text_and_no_character_is_broken(tokenizer, text: str) -> None:
    found = pieces(tokenizer, f"{text}{END}")
    assert "".join(piece.text for piece in found) == f"{text}{END}"
    assert not any(piece.is_broken for piece in found)
    assert sum(len(piece.ids) for piece in found) == len(tokenizer(f"{text}{END}")["input_ids"])


def test_parts_of_a_character_are_one_piece_with_all_their_ids(tokenizer) -> None:
    (first, end) = pieces(tokenizer, f"龘{END}")
    assert first.text == "龘"
    assert len(first.ids) == 3
    assert first.title.startswith("3 tokens: ")
    assert all(str(number) in first.title for number in first.ids)
    assert end.special
    assert not first.special


def test_a_mask_through_a_character_is_not_hidden(tokenizer) -> None:
    ids = tokenizer("龘")["input_ids"]
    first, *rest = Reader(tokenizer).pieces(ids, [IGNORED, *ids[1:]])
    assert (first.ids, first.trained, first.is_broken) == ((ids[0],), False, True)
    assert all(piece.trained for piece in rest)


def test_a_character_that_was_cut_is_a_broken_piece(tokenizer) -> None:
    ids = tokenizer("ok 龘")["input_ids"]
    assert Reader(tokenizer).pieces(ids[:-1], ids[:-1])[-1].is_broken


def test_a_replacement_character_of_the_text_swallows_nothing(tokenizer) -> None:
    found = pieces(tokenizer, f"�after{END}")
    assert "after" in "".join(piece.text for piece in found)
    assert sum(len(piece.ids) for piece in found) == len(tokenizer(f"�after{END}")["input_ids"])


@pytest.fixture
def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 2's: bytes are tokens of their own, and a text's first blank is stripped."""
    vocabulary = {"<s>": 0, "▁Hi": 1, "▁you": 2, "你": 3, "<0xE9>": 4, "<0xBE>": 5, "<0x98>": 6}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token=None))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def test_blanks_and_bytes_of_a_sentencepiece_tokenizer(llama_like) -> None:
    ids = [0, 1, 2, 3, 4, 5, 6]
    found = Reader(llama_like).pieces(ids, ids)
    assert [piece.text for piece in found] == ["<s>", " Hi", " you", "你", "龘"]
    assert found[-1].ids == (4, 5, 6)


# What is invisible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a‹U+202E›b"),
        ("\x1b[31mred\x00", "‹U+001B›[31mred‹U+0000›"),
        ("one\ntwo\t3", "one⏎\ntwo⇥\t3"),
        ("\ufeff☔️\u200d", "‹U+FEFF›☔‹U+FE0F›‹U+200D›"),
        ("lone \ud800", "lone ‹U+D800›"),
        ("全形　空白 é 龘 👍", "全形　空白 é 龘 👍"),
    ],
)
def test_what_is_invisible_is_named(text: str, shown: str) -> None:
    assert token_text.as_plain(text) == shown
    assert token_text.in_one_line(text) == shown.replace("\n", "").replace("\t", "")
    assert "<b" not in re.sub(r'<b class="(sign|odd)"', "", token_text.as_html(text))
    token_text.as_html(text).encode("utf-8")


def test_html_is_escaped() -> None:
    assert token_text.as_html("<b>\u202e</b>&") == (
        '&lt;b&gt;<b class="odd" title="RIGHT-TO-LEFT OVERRIDE">U+202E</b>&lt;/b&gt;&amp;'
    )


# Rows


def test_rows_are_found_in_both_splits_in_the_order_asked_for(encoded_data: Path) -> None:
    found = terminal.find(["dd55", "no such", "aa11"])
    assert [(row.id, row.split) for row in found] == [("dd55", "validation"), ("aa11", "train")]
    row = found[0]
    trained = slice(row.num_prompt, row.num_prompt + row.num_trained)
    assert row.input_ids[trained] == row.labels[trained]
    assert row.num_trained == 2


def test_the_beginning_of_an_id_names_it(encoded_data: Path) -> None:
    assert terminal.full_id("cc") == "cc44"
    assert terminal.full_id("aa11") == "aa11"


def test_a_row_that_a_weight_repeats_is_one_row(encoded_data: Path) -> None:
    with tokens.write("validation", tokens.folder_of("sft")) as out:
        out.write_batch(tokens.batch([("9988", [2], [2])] * 9))
    assert terminal.full_id("99") == "9988"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("aa", "Several rows have an id that begins with 'aa': aa11, aa22. Give more of it."),
        ("raw.jsonl:3", "raw.jsonl:3 was rejected, it has no tokens: not JSON: ‹U+001B›[2J."),
        ("7e57", "7e57 is in data/prepared/test.jsonl, which stays text"),
        ("ee66", "ee66 was dropped: it has 5,000 tokens."),
        ("ff77", "ff77 could not be encoded: two BOS."),
        ("cc99", "Near it are cc44."),
        ("zz", "No row has an id that begins with 'zz'"),
    ],
)
def test_says_what_became_of_a_row_without_tokens(
    encoded_data: Path, wanted: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        terminal.full_id(wanted)
    assert message in str(caught.value)


def test_without_tokens_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="dvc repro"):
        terminal.full_id("aa")


def test_a_description_without_colours_marks_what_is_trained(encoded_data: Path, tokenizer) -> None:
    (row,) = terminal.find(["aa22"])
    said = "\n".join(terminal.describe(Reader(tokenizer), row, in_colour=False))
    assert "床前明月光‹U+001B›[2J 🙂⏎\n⟦龘⏎\n疑是地上霜<|im_end|>⟧⏎" in said
    assert "\x1b" not in said
    assert f"tokens:  {len(row.labels)}, of them {row.num_trained} trained" in said
    assert f"which begin {row.input_ids[0]}, {row.input_ids[1]}" in said
    assert "id aa22, split train, group group of aa22" in said


def test_colours_end_before_what_is_not_trained(encoded_data: Path, tokenizer) -> None:
    (row,) = terminal.find(["aa22"])
    said = "\n".join(terminal.describe(Reader(tokenizer), row, in_colour=True))
    green = re.findall(re.escape(terminal.GREEN) + "(.*?)" + re.escape(terminal.PLAIN), said, re.S)
    assert green == ["龘⏎\n疑是地上霜<|im_end|>"]
    assert "⟦" not in said


@pytest.mark.parametrize(
    ("is_terminal", "no_colour", "in_colour"),
    [(True, "", True), (True, "1", False), (False, "", False)],
)
def test_colours_are_for_terminals_that_want_them(
    encoded_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_terminal: bool,
    no_colour: str,
    in_colour: bool,
) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    terminal.show(["aa11", "dd"])
    said = capsys.readouterr().out
    assert (terminal.GREEN in said) is in_colour
    assert said.index("id aa11") < said.index("id dd55")


@pytest.mark.parametrize(("named", "code"), [("dd55", 0), ("zz", 78)])
def test_the_command_line_shows_a_row_or_refuses_an_unknown_one(
    encoded_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    named: str,
    code: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["siftune", "data", "show", named])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == code
    said = capsys.readouterr()
    assert ("⟦4<|im_end|>⟧" in said.out) is (code == 0)
    assert ("siftune: No row has an id" in said.err) is (code == 78)


def test_pairs_and_problems_are_shown_with_what_is_trained_of_them(encoded_data, tokenizer, capsys):
    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows = {
        "dpo": [
            {"id": "9a", "prompt_ids": ids("1+1?"), "chosen_ids": ids("two"), "rejected_ids": None},
            {
                "id": "9b",
                "prompt_ids": ids("1+1?"),
                "chosen_ids": ids("2"),
                "rejected_ids": ids("3"),
            },
        ],
        "grpo": [{"id": "9c", "prompt_ids": ids("Solve 4+4."), "record": "{}"}],
    }
    for phase, of_phase in rows.items():
        folder = tokens.folder_of(phase)
        folder.mkdir()
        with tokens.write("train", folder, phase) as out:
            schema = tokens.SCHEMAS[phase]
            out.write_batch(pyarrow.RecordBatch.from_pylist(of_phase, schema=schema))
    assert [row.answer for row in terminal.find(["9b", "9a"])] == ["chosen", "rejected", "chosen"]
    terminal.show(["9b", "9c"])
    printed = capsys.readouterr().out
    assert "1+1?⟦2⟧" in printed
    assert "phase:   dpo (chosen answer)" in printed
    assert "1+1?⟦3⟧" in printed
    assert "phase:   dpo (rejected answer)" in printed
    assert "Solve 4+4.\n" in printed
    assert "0 trained (0.0%)" in printed
    shown = page.render(["9b", "9c"], tokenizer)
    assert "asked for; chosen" in shown
    assert "asked for; rejected" in shown
