import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from siftune import __main__, tokens
from siftune.chat.masking import IGNORED
from siftune.proof import page as proof_page
from siftune.proof import terminal, verdicts
from siftune.stage import UserError


def rewrite(path: str, **changes: object) -> None:
    facts = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**facts, **changes}))


def section(page: str, name: str) -> str:
    """The text of one section, without its tags."""
    return re.sub(
        r"<[^>]*>", "", page.partition(f'<section id="{name}">')[2].split("</section>")[0]
    )


# The page


def test_says_in_words_what_was_done(encoded_data: Path) -> None:
    page = proof_page.render()
    for fact in (
        "4 things are worth a look before this is queued.",
        "20 rows in = 14 kept + 6 rejected: not JSON (4), unknown role (2).",
        "16 rows to encode: 12 kept, 2 of them cut, 2 dropped as too long, 2 refused as faulty.",
        "25.0% of 12,800 tokens are trained",
        "The stop token of each answer, &lt;|im_end|&gt;, is trained; seen again in all 5 rows",
        "The chat template is the model&#39;s own, sha256 c0ffee1d1d1d…",
        "All rows begin with the same 3 tokens.",
        "Warnings: mojibake (3).",
        "25.0% of the answers hold “參考答案”",
    ):
        assert fact in page, fact


def test_each_verdict_leads_to_a_part_of_the_page(encoded_data: Path) -> None:
    page = proof_page.render()
    places = re.findall(r'href="#([^"]*)"', page)
    assert len(places) == 8
    assert all(f'id="{place}"' in page for place in places)


def test_what_is_trained_is_marked_and_nothing_else(encoded_data: Path) -> None:
    page = proof_page.render()
    row = page.partition("<code>aa22</code>")[2].partition("</article>")[0]
    (marked,) = re.findall("<mark[^>]*>(.*?)</mark>", row, re.S)
    text = re.sub("<sup>.*?</sup>|<[^>]*>", "", marked)
    assert text == "龘⏎\n疑是地上霜&lt;|im_end|&gt;"
    assert 'class="special">&lt;|im_end|&gt;</i>' in marked
    assert 'class="parts">龘<sup>3</sup></i>' in marked
    assert "床" in row.partition("<mark")[0]


def test_each_token_has_its_id(encoded_data: Path) -> None:
    page = proof_page.render()
    (row,) = terminal.find(["aa11"])
    tokens = page.partition("<code>aa11</code>")[2].partition("</article>")[0]
    titles = re.findall('<i title="([0-9]+) “', tokens)
    assert [int(title) for title in titles] == row.input_ids


def test_a_long_row_says_what_it_leaves_out(encoded_data: Path) -> None:
    page = proof_page.render()
    (row,) = terminal.find(["cc44"])
    shown = page.partition('<details class="row">')[2].partition("</details>")[0]
    num_left_out = len(row.labels) - proof_page.MAX_TOKENS
    assert f"… {num_left_out:,} tokens of {len(row.labels):,} left out here" in shown
    assert shown.count("<i title") == proof_page.MAX_TOKENS
    assert "<mark" in shown.partition("left out here")[2]


def test_rows_asked_for_come_first(encoded_data: Path) -> None:
    ids = re.findall("<h3><code>(.*?)</code>", proof_page.render(["dd", "aa22"]))
    assert ids == ["dd55", "aa22", "aa11", "bb33"]
    with pytest.raises(UserError, match="No row has an id"):
        proof_page.render(["nowhere"])


def test_tables_hold_places_and_reasons(encoded_data: Path) -> None:
    page = proof_page.render()
    for name, facts in {
        "encoded": ("cc44", "9,000", "cut_answer", "ee66", "5,000", "ff77", "two BOS"),
        "rejected": ("not JSON", "raw.jsonl:3", "lone U+D800", "More examples", "raw.jsonl:13"),
        "warnings": ("mojibake", "raw.jsonl:7", "As it is", "cafÃ©", "Repaired", "café"),
        "phrases": ("參考答案", "! suspicious", "25.0%", "700 more characters"),
        "scripts": ("Traditional only", "20.0%", "爲", "為", "31"),
        "near-duplicates": ("raw.jsonl:1", "95.3%"),
        "leaks": ("raw.jsonl:9", "thirteen thirteen"),
        "template": ("c0ffee", "&lt;|im_end|&gt;"),
    }.items():
        text = section(page, name)
        for fact in facts:
            assert fact in text, (name, fact)
    assert "Simplified" not in section(page, "scripts")


def test_text_of_rows_stays_text(encoded_data: Path) -> None:
    page = proof_page.render()
    assert "<script" not in page
    assert "<img" not in page
    assert not {"\u202e", "\x00", "\x1b"} & set(page)
    assert page.count("console.error(&#39;") > 9
    page.encode("utf-8")


@pytest.mark.parametrize(
    ("left_out", "name"),
    [
        ("data/prepared/facts.json", "phrases"),
        ("data/tokens/facts.json", "encoded"),
        ("models/tokenizer", "tokens"),
    ],
)
def test_what_is_not_there_is_left_out(encoded_data: Path, left_out: str, name: str) -> None:
    assert section(proof_page.render(), name)
    Path(left_out).rename("aside")
    page = proof_page.render()
    assert not section(page, name)
    assert Outline(page).problems == []


def test_without_anything_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "There is nothing to show yet" in proof_page.render()


class Outline(HTMLParser):
    """Tags that are not closed, charts without words, headers without scope, ids given twice."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.problems: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        is_outer_svg = tag == "svg" and "svg" not in self.open
        if is_outer_svg and not {"aria-label", "aria-hidden"} & set(found):
            self.problems.append(f"chart without words: {found}")
        if tag == "th" and "scope" not in found:
            self.problems.append(f"header without scope: {found}")
        if (name := found.get("id")) is not None:
            self.problems += [f"id {name} twice"] if name in self.ids else []
            self.ids.add(name)
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.problems.append(f"</{tag}> at line {self.getpos()[0]}")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass


def test_is_well_formed_and_accessible(encoded_data: Path) -> None:
    assert Outline(proof_page.render()).problems == []


def test_the_command_line_writes_the_page(
    encoded_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["siftune", "data", "page", "dd"])
    with pytest.raises(SystemExit) as left:
        __main__.main()
    assert left.value.code == 0
    assert capsys.readouterr().out == "work/data.html\n"
    page = Path("work/data.html").read_text(encoding="utf-8")
    assert page.index("asked for") < page.index("random")


# Verdicts


def levels() -> dict[str, str]:
    """The place of each verdict → its level."""
    facts = [
        json.loads(Path(path).read_text())
        for path in ("data/prepared/facts.json", "data/tokens/facts.json")
    ]
    found, encoded = facts
    return {one.place: one.level for one in verdicts.verdicts(found, encoded, [])}


def test_counts_that_do_not_add_up_are_wrong(encoded_data: Path) -> None:
    rewrite("data/prepared/facts.json", rows={"in": 20, "kept": 14, "rejected": 5})
    assert levels()["rejected"] == "wrong"
    assert "Do not queue this: one thing is wrong." in proof_page.render()


def test_tokens_that_do_not_add_up_are_wrong(encoded_data: Path) -> None:
    splits = json.loads(Path("data/tokens/facts.json").read_text())["splits"]
    splits["train"]["faulty"] = 0
    rewrite("data/tokens/facts.json", splits=splits)
    assert levels()["encoded"] == "wrong"


def test_sound_data_needs_no_second_look(encoded_data: Path) -> None:
    splits = json.loads(Path("data/tokens/facts.json").read_text())["splits"]
    for split in splits.values():
        split |= {"kept": split["rows"], "cut": 0, "dropped": 0, "faulty": 0}
    rewrite("data/tokens/facts.json", splits=splits, cut=[], dropped=[], faulty=[])
    rows = {"in": 14, "kept": 14, "rejected": 0}
    rewrite("data/prepared/facts.json", rows=rows, rejected={}, warnings={})
    rewrite("data/prepared/facts.json", phrases=[], examples={})
    assert set(levels().values()) <= {"fine", "fact"}
    assert "Nothing here needs a second look." in proof_page.render()


def test_no_trained_token_is_wrong(encoded_data: Path) -> None:
    splits = json.loads(Path("data/tokens/facts.json").read_text())["splits"]
    for split in splits.values():
        split["trained_tokens"] = 0
    rewrite("data/tokens/facts.json", splits=splits)
    assert "None of 12,800 tokens is trained." in proof_page.render()


def test_a_stop_token_that_is_not_trained_is_seen(encoded_data: Path) -> None:
    (row,) = terminal.find(["dd55"])
    stop = row.num_prompt + row.num_trained - 1
    labels = [IGNORED if i == stop else label for i, label in enumerate(row.labels)]
    with tokens.write("validation", tokens.folder_of("sft")) as out:
        out.write_batch(tokens.batch([(row.id, row.input_ids, labels)]))
    page = proof_page.render()
    assert "In 1 of 5 rows on this page an answer does not end with a trained stop token" in page
    assert page.count("! stop token not trained") == 1


@pytest.mark.parametrize(
    ("labels", "stops"),
    [
        ("..AE", True),
        ("..Ae", False),
        ("..AE..AE.", True),
        ("..Ae..AE.", False),  # the first answer's is not trained
        ("..e.AE", True),  # a user's turn ends with it, too
        ("..A", False),  # cut
        ("..A.AE", True),  # reasoning that is only read
        ("..e.", None),
    ],
)
def test_each_answer_ends_with_a_trained_stop_token(labels: str, stops: bool | None) -> None:
    ids = [7 if one in "eE" else 1 for one in labels]
    wanted = [IGNORED if one in ".e" else id_ for one, id_ in zip(labels, ids, strict=True)]
    assert verdicts.stops(ids, wanted, {7}) is stops
    assert verdicts.stops(ids, wanted, set()) is None
