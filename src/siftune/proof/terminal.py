"""Rows as they are trained, in a terminal: which tokens the loss looks at, and where it is from."""

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute

from siftune import files, tokens, wording
from siftune.chat.masking import IGNORED
from siftune.proof import token_text
from siftune.stage import UserError

PREPARED = Path("data/prepared")
REJECTED = PREPARED / "rejected.jsonl"
NUM_NEAR = 5
NUM_PROMPT_IDS = 12
GREEN, DIM, PLAIN = "\x1b[1;32m", "\x1b[2m", "\x1b[0m"


class Row(NamedTuple):
    """A row of data/tokens, or one of its answers with the prompt; a problem has no answer."""

    id: str
    split: str
    phase: str
    answer: str | None  # chosen or rejected, of a phase that prefers answers
    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained(self) -> int:
        """How many tokens the loss looks at."""
        return len(self.labels) - self.labels.count(IGNORED)

    @property
    def num_prompt(self) -> int:
        """How many tokens come before the first trained one."""
        trained = (i for i, label in enumerate(self.labels) if label != IGNORED)
        return next(trained, len(self.labels))


def show(ids: list[str]) -> None:
    """Print rows, each named by its id or the beginning of it.

    Raises:
        UserError: no such row among the tokens; it says where the row is instead.
    """
    found = find([full_id(one) for one in ids])
    from siftune import models

    reader = token_text.Reader(models.load_tokenizer())
    in_colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print("\n\n".join("\n".join(describe(reader, row, in_colour)) for row in found))


def describe(reader: token_text.Reader, row: Row, in_colour: bool) -> Iterator[str]:
    """A row in lines: its tokens, then the facts about them."""
    pieces = reader.pieces(row.input_ids, row.labels)
    text = []
    for is_trained, run in groupby(pieces, key=lambda piece: piece.trained):
        run_text = "".join(token_text.as_plain(piece.text) for piece in run)
        if in_colour:
            text.append(f"{GREEN if is_trained else DIM}{run_text}{PLAIN}")
        else:
            text.append(f"⟦{run_text}⟧" if is_trained else run_text)
    yield "".join(text).removesuffix("\n")
    yield ""
    yield f"trained: {'green' if in_colour else 'between ⟦ and ⟧'}"
    share = row.num_trained / len(row.labels) if row.labels else 0.0
    yield (
        f"tokens:  {wording.count(len(row.labels))}, of them {wording.count(row.num_trained)} "
        f"trained ({wording.percent(share)})"
    )
    begin = ", ".join(map(str, row.input_ids[: row.num_prompt][:NUM_PROMPT_IDS]))
    yield f"prompt:  {wording.count(row.num_prompt)} tokens{begin and f', which begin {begin}'}"
    group = next((record["group"] for record in _records(row.split, row.id)), "not known")
    answer = f" ({row.answer} answer)" if row.answer else ""
    yield f"phase:   {row.phase}{answer}"
    yield f"row:     id {row.id}, split {row.split}, group {token_text.in_one_line(group)[:200]}"


def find(ids: Iterable[str]) -> list[Row]:
    """The rows of these ids, in their order, of a pair both; an id that has none is left out."""
    ids = list(ids)
    found: dict[str, list[Row]] = {}
    for phase, split, dataset in _datasets():
        column = dataset.data.column("id")
        is_wanted = pyarrow.compute.is_in(column, value_set=pyarrow.array(ids, column.type))
        for index in pyarrow.compute.indices_nonzero(is_wanted).to_pylist():
            values = dataset[index]
            # A row that a source's weight repeats is one row.
            found[values["id"]] = list(_rows(phase, split, values))
    return [row for one in ids for row in found.get(one, [])]


def _rows(phase: str, split: str, values: dict[str, Any]) -> Iterator[Row]:
    if "input_ids" in values:
        yield Row(values["id"], split, phase, None, values["input_ids"], values["labels"])
        return
    prompt = values["prompt_ids"]
    read = [IGNORED] * len(prompt)
    if phase == "grpo":
        yield Row(values["id"], split, phase, None, prompt, read)
    for answer in ("chosen", "rejected"):
        ids = values.get(f"{answer}_ids")
        if ids is not None:
            yield Row(values["id"], split, phase, answer, prompt + ids, read + ids)


def full_id(wanted: str) -> str:
    """The id that `wanted` is, or that alone begins so.

    Raises:
        UserError: no id begins so, or several do.
    """
    if find([wanted]):
        return wanted
    beginning_so = _ids_beginning(wanted)
    if len(beginning_so) == 1:
        return beginning_so[0]
    if beginning_so:
        raise UserError(
            f"Several rows have an id that begins with {wanted!r}: {_listed(beginning_so)}. "
            "Give more of it."
        )
    raise UserError(_elsewhere(wanted) or _nowhere(wanted))


def _datasets() -> Iterator[tuple[str, str, Any]]:
    """Phase, split and rows, of all that have any."""
    if not tokens.FOLDER.exists():
        raise UserError(f"{tokens.FOLDER} is not there; encode writes it. Run `dvc repro encode`.")
    for phase in tokens.SCHEMAS:
        for split in tokens.SPLITS:
            path = tokens.path(split, tokens.folder_of(phase))
            if path.exists() and tokens.are_there(split, path.parent):
                yield phase, split, tokens.read(split, path.parent)


def _ids_beginning(text: str) -> list[str]:
    found: list[str] = []
    for _, _, dataset in _datasets():
        column = dataset.data.column("id")
        begins_so = pyarrow.compute.starts_with(column, pattern=text)
        # A row that a source's weight repeats is one row.
        found += column.filter(begins_so).unique().slice(0, NUM_NEAR + 1).to_pylist()
    return found


def _elsewhere(wanted: str) -> str | None:
    """What became of a row that is not among the tokens."""
    for rejected in _lines(REJECTED, wanted):
        if rejected["place"] == wanted:
            what = _said(rejected)
            return f"{wanted} was rejected, it has no tokens: {what}. {REJECTED} has the row."
    facts = files.read_json(tokens.FACTS) if tokens.FACTS.exists() else {}
    for one in facts.get("dropped", []):
        if one["id"] == wanted:
            return f"{wanted} was dropped: it has {wording.count(one['tokens'])} tokens."
    for one in facts.get("faulty", []):
        if one["id"] == wanted:
            return f"{wanted} could not be encoded: {_said(one)}."
    for split in (*tokens.SPLITS, "test"):
        for record in _records(split, wanted):
            why = "which stays text" if split == "test" else "but `encode` left it out"
            return f"{record['id']} is in {PREPARED / split}.jsonl, {why}: it has no tokens."
    return None


def _said(fault: dict[str, Any]) -> str:
    said = f"{fault['reason']}: {fault['detail']}" if fault["detail"] else fault["reason"]
    return token_text.in_one_line(said)


def _nowhere(wanted: str) -> str:
    message = f"No row has an id that begins with {wanted!r}, and none was rejected at that place."
    for length in range(len(wanted) - 1, 0, -1):
        near = _ids_beginning(wanted[:length])
        if near:
            return f"{message} Near it are {_listed(near)}."
    return f"{message} {PREPARED}/*.jsonl have the ids, {REJECTED} has the places."


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:NUM_NEAR]) + (", …" if len(ids) > NUM_NEAR else "")


def _records(split: str, wanted: str) -> Iterator[dict[str, Any]]:
    for record in _lines(PREPARED / f"{split}.jsonl", wanted):
        if record["id"] == wanted:
            yield record


def _lines(path: Path, wanted: str) -> Iterator[dict[str, Any]]:
    """The lines of a JSON-lines file that hold a text; the others are not parsed."""
    if path.exists():
        import json

        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if wanted in line)
