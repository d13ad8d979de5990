"""All prepared conversations as tokens, with the facts that prove what is trained."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from siftune import files, parallel, progress, provenance, tokens
from siftune.chat import cutting, masking, tokenise
from siftune.data.faults import Fault, refuse_if_too_many
from siftune.sections import Encode
from siftune.stage import UserError
from siftune.token_facts import BIN, NUM_LISTED, Facts, Row, worst

BATCH = 1000  # conversations


class How(NamedTuple):
    """All that decides the tokens of a conversation."""

    tokenizer: PreTrainedTokenizerBase
    tokenise: tokenise.Tokenise
    settings: Encode
    reasoning_tags: tuple[str, str]

    def encode(self, records: list[Row]) -> list[masking.Encoded | Fault]:
        """The records' tokens and labels."""
        return masking.encode(*self._arguments(records))

    def encode_one(self, record: Row) -> masking.Encoded | Fault:
        """One record's tokens and labels."""
        return self.encode([record])[0]

    def encode_arrays(self, records: list[Row]) -> list[masking.Arrays | Fault]:
        """The same as arrays."""
        return masking.encode_arrays(*self._arguments(records))

    def _arguments(self, records: list[Row]) -> tuple[Any, ...]:
        return self.tokenizer, records, self.settings, self.reasoning_tags, self.tokenise


def how(tokenizer: PreTrainedTokenizerBase, settings: Encode, reasoning_tags: list[str]) -> How:
    """All that decides the tokens; its tokenise function is tried on a prompt of the template."""
    opened, closed = reasoning_tags
    return How(tokenizer, tokenise.fastest(tokenizer), settings, (opened, closed))


def results(facts: dict[str, Facts]) -> dict[str, Any]:
    """What the stage reports, by split."""
    return {split: found.counts() for split, found in facts.items()}


def for_the_page(facts: dict[str, Facts], how: How) -> dict[str, Any]:
    """What the data page and `siftune data show` read."""

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
        "splits": results(facts),
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


def encode_splits(prepared: dict[str, Path], how: How, folder: Path) -> dict[str, Facts]:
    """Write the tokens of each split's records, a file of JSON lines, into `folder`.

    Raises:
        UserError: conversations are too long and `too_long` is `error`; more are faulty than
            `max_faulty` allows; nothing is left.
    """
    facts = {split: Facts() for split in prepared}
    with ExitStack() as stack:
        out = {split: stack.enter_context(tokens.write(split, folder)) for split in prepared}
        encoded = parallel.in_order(partial(_encode_batch, how=how), _batches(prepared))
        for batch, found, split in progress.shown(
            encoded, "conversations encoded", size=lambda one: one[1].num_rows
        ):
            out[split].write_batch(batch)
            facts[split].add(found)
    for split, found in facts.items():
        _refuse(found, split, how.settings)
    return facts


def some(prepared: Path, number: int, how: How) -> Iterator[masking.Encoded]:
    """The first records of a file that can be encoded, up to `number`."""
    records = list(islice(files.read_jsonl(prepared), 2 * number))
    found = [encoded for encoded in how.encode(records) if isinstance(encoded, masking.Encoded)]
    yield from found[:number]


def _batches(prepared: dict[str, Path]) -> Iterator[tuple[str, list[bytes]]]:
    for split, path in prepared.items():
        with path.open("rb") as lines:
            yield from ((split, batch) for batch in iter(lambda: list(islice(lines, BATCH)), []))


def _encode_batch(
    split_lines: tuple[str, list[bytes]], how: How
) -> tuple[pa.RecordBatch, Facts, str]:
    split, lines = split_lines
    records = [files.parse(line) for line in lines]
    facts = Facts(num_rows=len(records))
    kept: list[tokens.Row] = []
    num_characters: list[int] = []
    for record, encoded in zip(records, how.encode_arrays(records), strict=True):
        fitting = _fit(record, encoded, how, facts)
        if fitting is not None:
            kept.append((record["id"], fitting.input_ids, fitting.labels))
            num_characters.append(_num_characters(record))
    batch = tokens.batch(kept)
    facts.keep(batch, num_characters)
    return batch, facts, split


def _fit(
    record: Row, encoded: masking.Either | Fault, how: How, facts: Facts
) -> masking.Either | None:
    """The conversation if it fits, what is left of it after cutting, or None."""
    rule, max_length = how.settings.too_long, how.settings.max_length
    kept: masking.Either | Fault | None = encoded
    if not isinstance(encoded, Fault) and len(encoded.input_ids) > max_length:
        num_tokens = len(encoded.input_ids)
        kept = cutting.cut(record, encoded, rule, max_length, how.encode_one)
        if kept is None:
            facts.num_dropped += 1
            facts.note("dropped", id=record["id"], tokens=num_tokens)
        elif not isinstance(kept, Fault):
            facts.num_cut += 1
            left = len(kept.input_ids)
            facts.note("cut", id=record["id"], tokens=num_tokens, kept_tokens=left, rule=rule)
    if isinstance(kept, Fault):
        facts.faulty[kept.reason] += 1
        facts.note("faulty", id=record["id"], reason=kept.reason, detail=kept.detail)
        return None
    return kept


def _refuse(facts: Facts, split: str, settings: Encode) -> None:
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
            f"conversations are longer than {settings.max_length} tokens; {longest['id']} has "
            f"{longest['tokens']}. Raise it, or say what to do with them: encode.too_long: drop, "
            "cut_first_turns or cut_answer."
        )
    if not facts.num_kept:
        raise UserError(
            f"params.yaml: encode: of {facts.num_rows} {split} conversations none is left "
            f"({facts.num_dropped} are longer than encode.max_length = {settings.max_length})."
        )


def _num_characters(record: Row) -> int:
    if "text" in record:
        return len(record["text"])
    return sum(len(message["content"] or "") for message in record["messages"])
