"""All rows once through the checks, then the decisions that take the whole, then the splits.

Rows in = kept + rejected.
"""

import json
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from siftune import files, parallel, progress
from siftune.data import checks, phrases, refusals, rows, scripts
from siftune.data.candidates import Candidates
from siftune.data.faults import refuse_if_too_many
from siftune.sections import Data, Prepare
from siftune.stage import UserError

WORK = Path("work")
NUM_ANSWERS = 1000  # whose phrases are looked at
_STEPS = 1 << 20  # a fraction of a weight, as steps of a row's hash


@dataclass
class Prepared:
    """The counts for the metrics, and the examples for the page."""

    num_kept: int = 0
    num_groups: int = 0
    num_not_drawn: int = 0  # of the kept rows, left aside by num_examples
    num_copies: int = 0  # more of training rows, by a source's weight
    rejected: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    splits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(rows.SPLITS, 0))
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    characters: Counter[str] = field(default_factory=Counter)

    def show(self, what: str, examples: list[dict[str, str]]) -> None:
        """Keep the first examples of a reason or a warning."""
        known = self.examples.setdefault(what, [])
        known.extend(examples[: rows.NUM_EXAMPLES - len(known)])


def prepare(data: Data, settings: Prepare, folder: Path) -> Prepared:
    """Write train, validation, test and rejected rows, and facts.json, into an empty folder.

    Raises:
        UserError: the files cannot be read, more rows are faulty than `max_faulty` allows, or a
            split is empty.
    """
    prepared = Prepared()
    found = rows.find(data)
    examine = partial(rows.examine, data=data, prepare=_remaining_shares(found, settings))
    WORK.mkdir(exist_ok=True)
    with ExitStack() as stack:
        rejected = stack.enter_context((folder / "rejected.jsonl").open("wb"))
        waiting = stack.enter_context(tempfile.TemporaryFile(dir=WORK))
        candidates = Candidates(waiting)
        batches = parallel.in_order(examine, rows.batches(found))
        for examined in progress.shown(batches, "rows checked", size=len):
            candidates.add(examined)
            _note(examined, rejected, prepared)
        _refuse_faulty(len(candidates), settings, prepared, rejected)
        whole = refusals.find(candidates, settings)
        drawn = _drawn(candidates, whole.refused, data)
        _write(candidates, _copies(candidates, drawn, data), folder, prepared)
        _write_refused(candidates, whole.refused, rejected, prepared)
        prepared.num_kept = len(candidates) - len(whole.refused)
        prepared.num_not_drawn = prepared.num_kept - int(drawn.sum())
        prepared.num_groups = len(np.unique(candidates.groups[drawn]))
        answers = phrases.shared(_some_answers(candidates, drawn))
    _refuse_empty(prepared, settings)
    facts = {
        **results(prepared),
        "examples": prepared.examples,
        "phrases": answers,
        "variants": scripts.variants(prepared.characters),
        "near_duplicates": whole.near_duplicates,
        "leaks": whole.leaks,
    }
    files.write_json(folder / "facts.json", facts)
    return prepared


def results(prepared: Prepared) -> dict[str, Any]:
    """What the stage reports."""
    num_rejected = prepared.rejected.total()
    return {
        "rows": {
            "in": prepared.num_kept + num_rejected,
            "kept": prepared.num_kept,
            "rejected": num_rejected,
            "not_drawn": prepared.num_not_drawn,
            "copies": prepared.num_copies,
        },
        "rejected": dict(prepared.rejected.most_common()),
        "warnings": dict(prepared.warnings.most_common()),
        "splits": prepared.splits,
        "num_groups": prepared.num_groups,
        "scripts": scripts.shares(prepared.characters),
    }


def _remaining_shares(found: list[rows.File], settings: Prepare) -> Prepare:
    """A split that has files of its own takes no rows from the others."""
    given = {file.split for file in found}
    return replace(
        settings,
        validation=0.0 if "validation" in given else settings.validation,
        test=0.0 if "test" in given else settings.test,
    )


def _note(examined: rows.Examined, rejected: BinaryIO, prepared: Prepared) -> None:
    prepared.warnings.update(examined.warnings)
    prepared.characters.update(examined.characters)
    for what, examples in examined.examples.items():
        prepared.show(what, examples)
    for row in examined.rejected:
        _reject(row, rejected, prepared)


def _reject(row: rows.Rejected, rejected: BinaryIO, prepared: Prepared) -> None:
    prepared.rejected[row.reason] += 1
    prepared.show(row.reason, [{"place": row.place, "detail": row.detail}])
    line = json.dumps(row._asdict(), ensure_ascii=False) + "\n"
    rejected.write(line.encode("utf-8", "backslashreplace"))


def _refuse_faulty(
    num_sound: int, settings: Prepare, prepared: Prepared, rejected: BinaryIO
) -> None:
    num_faulty = prepared.rejected.total()
    num_rows = num_sound + num_faulty
    if num_rows == 0:
        raise UserError("params.yaml: data.path: these files hold no row.")
    rejected.flush()
    kept = WORK / "rejected.jsonl"
    shutil.copyfile(rejected.name, kept)
    firsts = {reason: rows[0] for reason, rows in prepared.examples.items()}
    refuse_if_too_many(
        prepared.rejected,
        {reason: f"{row['place']} {row.get('detail', '')}" for reason, row in firsts.items()},
        num_rows=num_rows,
        allowed=settings.max_faulty,
        key="prepare.max_faulty",
        hint=f"All of them are in {kept}, each with its reason.",
    )


def _drawn(candidates: Candidates, refused: refusals.Refused, data: Data) -> NDArray[np.bool_]:
    """Which rows are used: of each source its num_examples, then of all, those of lowest hash."""
    drawn = np.ones(len(candidates), dtype=bool)
    drawn[list(refused)] = False
    lot = candidates.ids * np.uint64(2 * data.seed + 1) + np.uint64(data.seed)
    lot = (lot ^ (lot >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    sources = candidates.sources
    for number, source in enumerate(data.sources):
        _keep_lowest(drawn, lot, sources == number, source.num_examples)
    _keep_lowest(drawn, lot, np.ones(len(candidates), dtype=bool), data.num_examples)
    return drawn


def _keep_lowest(
    drawn: NDArray[np.bool_], lot: NDArray[np.uint64], among: NDArray[np.bool_], number: int | None
) -> None:
    rows_left = np.flatnonzero(drawn & among)
    if number is not None and len(rows_left) > number:
        order = np.argsort(lot[rows_left], kind="stable")
        drawn[rows_left[order[number:]]] = False


def _copies(candidates: Candidates, drawn: NDArray[np.bool_], data: Data) -> NDArray[np.int64]:
    """How often each row is written: training rows by their source's weight, others once."""
    weights = np.array([source.weight for source in data.sources])[candidates.sources]
    weights[candidates.splits != rows.SPLITS.index("train")] = 1.0
    fraction = (candidates.ids % np.uint64(_STEPS)).astype(float) / _STEPS
    return np.where(drawn, np.floor(weights) + (fraction < weights % 1.0), 0).astype(np.int64)


def _write(
    candidates: Candidates, copies: NDArray[np.int64], folder: Path, prepared: Prepared
) -> None:
    with ExitStack() as stack:
        written = [
            stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in rows.SPLITS
        ]
        each = zip(candidates.lines(), candidates.splits.tolist(), copies.tolist(), strict=True)
        for line, split, number in each:
            written[split].write(line * number)
    for split, name in enumerate(rows.SPLITS):
        prepared.splits[name] = int(copies[candidates.splits == split].sum())
    prepared.num_copies = int(np.maximum(copies - 1, 0).sum())


def _write_refused(
    candidates: Candidates, refused: refusals.Refused, rejected: BinaryIO, prepared: Prepared
) -> None:
    for row, (reason, detail) in sorted(refused.items()):
        place, record = candidates.row(row)
        _reject(rows.Rejected(place, reason, detail, record), rejected, prepared)


def _refuse_empty(prepared: Prepared, settings: Prepare) -> None:
    empty = [name for name, number in prepared.splits.items() if not number]
    if settings.test == 0.0 and "test" in empty:
        empty.remove("test")
    if empty:
        reasons = [f"{number} x {reason}" for reason, number in prepared.rejected.most_common()]
        raise UserError(
            f"params.yaml: prepare: no row falls into {', '.join(empty)}: {prepared.num_kept} rows "
            f"were kept, {prepared.rejected.total()} rejected ({'; '.join(reasons) or 'none'}). "
            "Take more rows, or other shares in prepare.validation and prepare.test."
        )


def _some_answers(candidates: Candidates, drawn: NDArray[np.bool_]) -> list[tuple[str, str]]:
    """Prompt and answer of conversations, evenly spread."""
    used = np.flatnonzero(drawn)
    step = max(1, len(used) // NUM_ANSWERS)
    pairs = []
    for row in used[::step].tolist():
        record: dict[str, Any] = candidates.row(row)[1]
        said = [m for m in record.get("messages", []) if m["role"] == "assistant"]
        if said:
            answer = said[-1]["content"] or ""
            prompts = [text for text in checks.texts(record) if text != answer]
            pairs.append(("\n".join(prompts), answer))
    return pairs
