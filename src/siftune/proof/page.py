"""The proof: one self-contained page that shows what of the data is trained, and what is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from transformers import PreTrainedTokenizerBase

from siftune import charts, files, rendering, tokens
from siftune.proof import terminal, token_text, verdicts
from siftune.proof.token_text import Piece

ON_DEMAND = Path("work/data.html")
LENGTHS = ("prompt", "answer", "total")
MAX_TOKENS = 800  # of a row on the page; a terminal shows all
MAX_TEXT = 600  # characters of a text that only explains
NOTHING_FOUND: dict[str, Any] = {
    "rejected": {},
    "warnings": {},
    "examples": {},
    "phrases": [],
    "variants": [],
    "near_duplicates": [],
    "leaks": [],
}
SCRIPTS = {
    "traditional": "Han, Traditional only",
    "simplified": "Han, Simplified only",
    "han": "Han, the same in both",
    "latin": "Latin",
    "other": "other scripts",
}


def write(ids: list[str]) -> None:
    """Write the page with these rows first, and print where it is."""
    page = render(ids)
    with files.published_file(ON_DEMAND) as aside:
        aside.write_text(page, encoding="utf-8")
    print(ON_DEMAND)


def render(extra_ids: Sequence[str] = (), tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """The page as HTML; what the stages did not leave is left out.

    Args:
        extra_ids: rows to show first, each by its id or the beginning of it.
        tokenizer: the one of models/tokenizer, where it is in memory.

    Raises:
        UserError: no such row among the tokens.
    """
    found = NOTHING_FOUND | _read(terminal.PREPARED / "facts.json")
    encoded = _read(tokens.FACTS)
    rows = read_rows(encoded, extra_ids, tokenizer)
    stopped = {row.id: row.stops for row in (*rows.shown, *rows.worst)}
    judged = verdicts.verdicts(found, encoded, list(stopped.values()))
    return rendering.render(
        "data.html.j2",
        found=found,
        encoded=encoded,
        rows=rows,
        verdicts=judged,
        headline=verdicts.headline(judged),
        lengths=read_lengths(encoded),
        scripts=read_scripts(found),
        text=readable,
        plain=token_text.in_one_line,
        runs=runs,
    )


def readable(value: object, max_characters: int = MAX_TEXT) -> Markup:
    """Text of a row as HTML, cut where it is only an example."""
    text = str(value)
    if len(text) > max_characters:
        text = f"{text[:max_characters]} … ({len(text) - max_characters:,} more characters)"
    return token_text.as_html(text)


@dataclass(frozen=True)
class ShownRow:
    """A row with why it is shown, its tokens, and whether its answers end as they should."""

    id: str
    split: str
    why: str
    num_tokens: int
    num_trained: int
    stops: bool | None  # None: no stop token is known
    beginning: list[Piece]
    left_out: list[Piece]  # of a long row, between beginning and end
    end: list[Piece]

    @property
    def share(self) -> float:
        """Of its tokens, those that the loss looks at."""
        return self.num_trained / self.num_tokens if self.num_tokens else 0.0

    @property
    def num_left_out(self) -> int:
        """Tokens of a long row that are not on the page."""
        return sum(len(piece.ids) for piece in self.left_out)


class Rows(NamedTuple):
    """The rows of the page, and the text that all rows of the training split begin with."""

    shown: list[ShownRow]
    worst: list[ShownRow]
    shared_prefix: str


def read_rows(
    encoded: dict[str, Any], extra_ids: Sequence[str], tokenizer: PreTrainedTokenizerBase | None
) -> Rows:
    """The rows asked for, the chosen and random ones, and the worst ones."""
    from siftune import models

    if not encoded or not models.TOKENIZER.exists():
        return Rows([], [], "")
    tokenizer = tokenizer or models.load_tokenizer()
    reader = token_text.Reader(tokenizer)
    stops = set(tokenizer.convert_tokens_to_ids(encoded["template"]["stop_tokens"]))
    extra = [{"id": terminal.full_id(one), "why": "asked for"} for one in extra_ids]
    wanted = [*extra, *encoded["shown"], *encoded["worst"]]
    found = terminal.find(dict.fromkeys(one["id"] for one in wanted))
    by_id = {one: list(rows) for one, rows in groupby(found, key=lambda row: row.id)}

    def read(named: list[dict[str, Any]]) -> list[ShownRow]:
        why: dict[str, list[str]] = {}
        for one in named:
            why.setdefault(one["id"], []).append(one["why"])
        return [
            _shown(row, "; ".join(why[one]), reader, stops)
            for one in why
            for row in by_id.get(one, [])
        ]

    num_shared = encoded["splits"].get("train", {}).get("shared_prefix", 0)
    first = next((row for row in found if row.split == "train"), None)
    shared = reader.text(first.input_ids[:num_shared]) if first and num_shared else ""
    return Rows(read([*extra, *encoded["shown"]]), read(encoded["worst"]), shared)


def _shown(row: terminal.Row, why: str, reader: token_text.Reader, stops: set[int]) -> ShownRow:
    pieces = reader.pieces(row.input_ids, row.labels)
    is_long = len(pieces) > MAX_TOKENS
    half = MAX_TOKENS // 2
    return ShownRow(
        id=row.id,
        split=row.split,
        why=f"{why}; {row.answer}" if row.answer else why,
        num_tokens=len(row.input_ids),
        num_trained=row.num_trained,
        stops=verdicts.stops(row.input_ids, row.labels, stops),
        beginning=pieces[:half] if is_long else pieces,
        left_out=pieces[half:-half] if is_long else [],
        end=pieces[-half:] if is_long else [],
    )


def runs(pieces: list[Piece]) -> list[tuple[bool, list[Piece]]]:
    """Neighbours that are all trained, or all not."""
    return [(trained, list(run)) for trained, run in groupby(pieces, key=lambda one: one.trained)]


def read_lengths(encoded: dict[str, Any]) -> dict[str, dict[str, charts.Histogram]]:
    """Histograms of rows by tokens, split by split: by phase, of prompts, answers and both."""
    drawn: dict[str, dict[str, charts.Histogram]] = {}
    for kind in LENGTHS if encoded else ():
        counts = {
            split: {int(edge): number for edge, number in kinds.get(kind, {}).items()}
            for split, kinds in encoded["histograms"].items()
        }
        for phase, chart in charts.histograms(counts, bin_width=encoded["bin"]).items():
            drawn.setdefault(phase, {})[kind] = chart
    return drawn


def read_scripts(found: dict[str, Any]) -> dict[str, float]:
    """The share of each script that occurs, by its name in words."""
    shares = found.get("scripts", {})
    return {name: shares[key] for key, name in SCRIPTS.items() if shares.get(key)}


def _read(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = files.read_json(path) if path.exists() else {}
    return facts
