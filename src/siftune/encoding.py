"""All prepared records as tokens, phase by phase, with the facts that prove what is trained."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from siftune import files, parallel, progress, provenance, tokens
from siftune.chat import masking
from siftune.data import kinds
from siftune.data.faults import Fault, refuse_if_too_many
from siftune.encoders import ENCODERS, Encoder, How
from siftune.sections import Encode
from siftune.stage import UserError
from siftune.token_facts import BIN, NUM_LISTED, Facts, Row, worst

BATCH = 1000  # records

Part = tuple[str, str]  # phase, split
Encoded = list[tuple[Part, pa.RecordBatch, Facts]]


def results(facts: dict[Part, Facts]) -> dict[str, Any]:
    """What the stage reports: by split, and of each phase by split where there are several."""
    found: dict[str, Any] = {}
    for split in tokens.SPLITS:
        total = Facts()
        for part, one in facts.items():
            if part[1] == split:
                total.add(one)
        found[split] = total.counts()
    if len({phase for phase, _ in facts}) > 1:
        for (phase, split), one in facts.items():
            found.setdefault(phase, {})[split] = one.counts()
    return found


def for_the_page(found: dict[Part, Facts], how: How) -> dict[str, Any]:
    """What the data page and `siftune data show` read."""
    facts = by_name(found)

    def of_all(kind: str) -> list[Row]:
        return [
            {"split": split, **row} for split, found in facts.items() for row in found.listed[kind]
        ][:NUM_LISTED]

    return {
        "template": {
            "name": how.settings.template or "own",
            "sha256": provenance.digest(how.tokenizer.chat_template),
            "stop_tokens": [how.tokenizer.eos_token],
        },
        "splits": {split: found.counts() for split, found in facts.items()},
        "bin": BIN,
        "histograms": {
            split: {part: dict(sorted(rows.items())) for part, rows in found.lengths.items()}
            for split, found in facts.items()
        },
        **{kind: of_all(kind) for kind in ("cut", "dropped", "faulty")},
        "worst": [
            row
            for _, _, row in worst(
                [
                    (what, badness, {"split": split, **row})
                    for split, found in facts.items()
                    for what, badness, row in found.worst
                ]
            )
        ][:NUM_LISTED],
        "shown": [
            {"id": name, "split": split, "why": "random"}
            for split, found in facts.items()
            for name in found.random
        ],
    }


def by_name(facts: dict[Part, Facts]) -> dict[str, Facts]:
    """By split; where not only sft is trained, by `pretrain train` and the like."""
    alone = {phase for phase, _ in facts} == {"sft"}
    return {split if alone else f"{phase} {split}": one for (phase, split), one in facts.items()}


def count(prepared: dict[str, Path]) -> dict[Part, int]:
    """How many records each phase has in each split; a phase without any is not there."""
    found: Counter[Part] = Counter()
    for split, path in prepared.items():
        found.update((kinds.phase_of(record), split) for record in files.read_jsonl(path))
    there = [phase for phase in ENCODERS if any(phase == one for one, _ in found)]
    return {(phase, split): found[phase, split] for phase in there for split in prepared}


def encode_splits(
    prepared: dict[str, Path], how: How, folders: dict[str, Path]
) -> dict[Part, Facts]:
    """Write the tokens of each split's records, a file of JSON lines, each into its phase's folder.

    Args:
        folders: by phase; the files of a phase without records are empty.

    Raises:
        UserError: rows are too long and `too_long` is `error`; more are faulty than `max_faulty`
            allows; nothing is left.
    """
    facts = {part: Facts() for part in count(prepared)}
    with ExitStack() as stack:
        out = {
            (phase, split): stack.enter_context(tokens.write(split, folder, phase))
            for phase, folder in folders.items()
            for split in prepared
        }
        encoded = parallel.in_order(partial(_encode_batch, how=how), _batches(prepared))
        for parts in progress.shown(
            encoded, "rows encoded", size=lambda parts: sum(one.num_rows for _, _, one in parts)
        ):
            for part, batch, found in parts:
                out[part].write_batch(batch)
                facts[part].add(found)
    for part, found in facts.items():
        _refuse(found, part, how.settings)
    return facts


def some(prepared: Path, number: int, how: How) -> Iterator[masking.Encoded]:
    """The first records of a file that can be encoded as conversations or text, up to `number`."""
    records = list(islice(files.read_jsonl(prepared), 2 * number))
    asked = [kinds.as_conversation(record) or record for record in records]
    found = [encoded for encoded in how.encode(asked) if isinstance(encoded, masking.Encoded)]
    yield from found[:number]


def _batches(prepared: dict[str, Path]) -> Iterator[tuple[str, list[bytes]]]:
    for split, path in prepared.items():
        with path.open("rb") as lines:
            yield from ((split, batch) for batch in iter(lambda: list(islice(lines, BATCH)), []))


def _encode_batch(split_lines: tuple[str, list[bytes]], how: How) -> Encoded:
    split, lines = split_lines
    of_phase: dict[str, list[Row]] = {}
    for line in lines:
        record = files.parse(line)
        of_phase.setdefault(kinds.phase_of(record), []).append(record)
    return [
        ((phase, split), *_encode(records, ENCODERS[phase](how), how.settings))
        for phase, records in of_phase.items()
    ]


def _encode(records: list[Row], encoder: Encoder, settings: Encode) -> tuple[pa.RecordBatch, Facts]:
    facts = Facts(num_rows=len(records))
    kept: list[tuple[Row, Any]] = []
    for record, encoded in zip(records, encoder.encode(records), strict=True):
        fitting = _fit(record, encoded, encoder, settings, facts)
        if fitting is not None:
            kept.append((record, fitting))
    batch = encoder.batch(kept)
    # Each answer with its prompt, as the loss looks at it.
    seen = [(record, *one) for record, encoded in kept for one in encoder.looked_at(encoded)]
    looked_at = tokens.batch([(record["id"], ids, labels) for record, ids, labels in seen])
    facts.keep(looked_at, [_num_characters(record) for record, _, _ in seen], num_rows=len(kept))
    return batch, facts


def _fit(record: Row, encoded: Any, encoder: Encoder, settings: Encode, facts: Facts) -> Any:
    """The record's tokens if they fit, what is left of them after cutting, or None."""
    kept = encoded
    if not isinstance(encoded, Fault) and encoder.is_too_long(encoded):
        num_tokens = _longest(encoder, encoded)
        kept = encoder.cut(record, encoded)
        if kept is None:
            facts.num_dropped += 1
            facts.note("dropped", id=record["id"], tokens=num_tokens)
        elif not isinstance(kept, Fault):
            facts.num_cut += 1
            left, rule = _longest(encoder, kept), settings.too_long
            facts.note("cut", id=record["id"], tokens=num_tokens, kept_tokens=left, rule=rule)
    if isinstance(kept, Fault):
        facts.faulty[kept.reason] += 1
        facts.note("faulty", id=record["id"], reason=kept.reason, detail=kept.detail)
        return None
    return kept


def _longest(encoder: Encoder, encoded: Any) -> int:
    return max(len(ids) for ids, _ in encoder.looked_at(encoded))


def _refuse(facts: Facts, part: Part, settings: Encode) -> None:
    phase, split = part
    refuse_if_too_many(
        facts.faulty,
        {
            row["reason"]: f"{row['id']}: {row['detail']}"
            for row in reversed(facts.listed["faulty"])
        },
        num_rows=facts.num_rows,
        allowed=settings.max_faulty,
        key="encode.max_faulty",
        hint=f"`grep ID data/prepared/{split}.jsonl` shows one of these rows.",
    )
    if facts.num_dropped and settings.too_long == "error":
        longest = max(facts.listed["dropped"], key=lambda row: int(row["tokens"]))
        raise UserError(
            f"params.yaml: encode.max_length: {facts.num_dropped} of {facts.num_rows} {split} "
            f"rows for {phase} are longer than {settings.max_length} tokens; {longest['id']} has "
            f"{longest['tokens']}. Raise it, or say what to do with them: encode.too_long: drop, "
            "cut_first_turns or cut_answer."
        )
    if not facts.num_kept:
        raise UserError(
            f"params.yaml: encode: of {facts.num_rows} {split} rows for {phase} none is left "
            f"({facts.num_dropped} are longer than encode.max_length = {settings.max_length}). A "
            "phase needs rows for training and for validation."
        )


def _num_characters(record: Row) -> int:
    if "text" in record:
        return len(record["text"])
    whole = kinds.as_conversation(record) or record
    return sum(len(message["content"] or "") for message in whole["messages"])
