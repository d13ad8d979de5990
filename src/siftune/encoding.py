"""All prepared conversations as tokens, with the facts that prove what is trained."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from heapq import nlargest
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from siftune import files, parallel, progress, provenance, tokens
from siftune.chat import cutting, masking, tokenise
from siftune.config import Encode
from siftune.data.faults import Fault, refuse_if_too_many
from siftune.stage import UserError

BATCH = 500  # conversations
BIN = 8  # tokens
NUM_LISTED = 20  # of each kind of row that is shown
NUM_WORST = 7  # of each kind of bad row
NUM_SHOWN = 6  # rows of each split, shown token by token

Row = dict[str, Any]


class How(NamedTuple):
    """All that decides the tokens of a conversation."""

    tokenizer: PreTrainedTokenizerBase
    tokenise: tokenise.Tokenise
    settings: Encode
    reasoning_tags: tuple[str, str]

    def encode(self, records: list[Row]) -> list[masking.Encoded | Fault]:
        """The records' tokens and labels."""
        return masking.encode(
            self.tokenizer, records, self.settings, self.reasoning_tags, self.tokenise
        )

    def encode_one(self, record: Row) -> masking.Encoded | Fault:
        """One record's tokens and labels."""
        return self.encode([record])[0]


@dataclass
class Facts:
    """Counts and examples of one split, or of a batch of it."""

    num_rows: int = 0
    num_kept: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_tokens: int = 0
    num_trained: int = 0
    longest: int = 0
    faulty: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {part: Counter() for part in ("prompt", "answer", "total")}
    )
    shared_prefix: list[int] | None = None  # tokens
    listed: dict[str, list[Row]] = field(
        default_factory=lambda: {kind: [] for kind in ("cut", "dropped", "faulty")}
    )
    worst: list[tuple[str, float, Row]] = field(default_factory=list)  # by what, how bad
    random: list[str] = field(default_factory=list)  # the lowest ids: they are hashes

    def keep(self, name: str, encoded: masking.Encoded, num_characters: int) -> None:
        """Count a conversation that will be trained on."""
        total = len(encoded.input_ids)
        trained = total - encoded.labels.count(masking.IGNORED)
        prompt = next(i for i, label in enumerate(encoded.labels) if label != masking.IGNORED)
        self.num_kept += 1
        self.num_tokens += total
        self.num_trained += trained
        self.longest = max(self.longest, total)
        for part, length in (("prompt", prompt), ("answer", trained), ("total", total)):
            self.lengths[part][length // BIN * BIN] += 1
        self.shared_prefix = _common(self.shared_prefix, encoded.input_ids[:prompt])
        shares = f"trains {trained} of {total} tokens"
        strange = f"{total / max(num_characters, 1):.2f} tokens a character"
        for what, badness, why in (
            ("least trained", -trained, shares),
            ("longest", total, f"{total} tokens"),
            ("strange text", total / max(num_characters, 1), strange),
        ):
            self.worst.append((what, badness, {"id": name, "why": why}))
        self.random.append(name)

    def note(self, kind: str, **shown: Any) -> None:
        """Keep the first rows that were cut, dropped or refused."""
        if len(self.listed[kind]) < NUM_LISTED:
            self.listed[kind].append(shown)

    def counts(self) -> dict[str, Any]:
        """The numbers without the examples."""
        return {
            "rows": self.num_rows,
            "kept": self.num_kept,
            "cut": self.num_cut,
            "dropped": self.num_dropped,
            "faulty": self.faulty.total(),
            "tokens": self.num_tokens,
            "trained_tokens": self.num_trained,
            "trained_share": round(self.num_trained / max(self.num_tokens, 1), 4),
            "longest": self.longest,
            "shared_prefix": len(self.shared_prefix or []),
        }

    def add(self, other: "Facts") -> None:
        """Take in a batch."""
        for name in ("num_rows", "num_kept", "num_cut", "num_dropped", "num_tokens", "num_trained"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        self.faulty.update(other.faulty)
        for part, lengths in other.lengths.items():
            self.lengths[part].update(lengths)
        if other.shared_prefix is not None:
            self.shared_prefix = _common(self.shared_prefix, other.shared_prefix)
        for kind, shown in other.listed.items():
            self.listed[kind] = (self.listed[kind] + shown)[:NUM_LISTED]
        self.worst = _worst(self.worst + other.worst)
        self.random = sorted({*self.random, *other.random})[:NUM_SHOWN]


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
            for _, _, row in _worst(
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


def encode_split(split: str, prepared: Path, how: How, folder: Path) -> Facts:
    """Write the tokens of a split's records into `folder`.

    Raises:
        UserError: conversations are too long and `too_long` is `error`; more are faulty than
            `max_faulty` allows; nothing is left.
    """
    facts = Facts()
    with prepared.open("rb") as lines, tokens.write(split, folder) as out:
        batches = iter(lambda: list(islice(lines, BATCH)), [])
        encoded = parallel.in_order(partial(_encode_batch, how=how), batches)
        what = f"{split} conversations encoded"
        for batch, found in progress.shown(encoded, what, size=lambda one: one[1].num_rows):
            out.write_batch(batch)
            facts.add(found)
    _refuse(facts, split, how.settings)
    return facts


def some(prepared: Path, number: int, how: How) -> Iterator[masking.Encoded]:
    """The first records of a file that can be encoded, up to `number`."""
    records = list(islice(files.read_jsonl(prepared), 2 * number))
    found = [encoded for encoded in how.encode(records) if isinstance(encoded, masking.Encoded)]
    yield from found[:number]


def _encode_batch(lines: list[bytes], how: How) -> tuple[pa.RecordBatch, Facts]:
    records = [files.parse(line) for line in lines]
    facts = Facts(num_rows=len(records))
    kept: list[tokens.Row] = []
    for record, encoded in zip(records, how.encode(records), strict=True):
        fitting = _fit(record, encoded, how, facts)
        if fitting is not None:
            kept.append((record["id"], fitting.input_ids, fitting.labels))
            facts.keep(record["id"], fitting, _num_characters(record))
    facts.worst, facts.random = _worst(facts.worst), sorted(set(facts.random))[:NUM_SHOWN]
    return tokens.batch(kept), facts


def _fit(
    record: Row, encoded: masking.Encoded | Fault, how: How, facts: Facts
) -> masking.Encoded | None:
    """The conversation if it fits, what is left of it after cutting, or None."""
    rule, max_length = how.settings.too_long, how.settings.max_length
    kept: masking.Encoded | Fault | None = encoded
    if isinstance(encoded, masking.Encoded) and len(encoded.input_ids) > max_length:
        num_tokens = len(encoded.input_ids)
        kept = cutting.cut(record, encoded, rule, max_length, how.encode_one)
        if kept is None:
            facts.num_dropped += 1
            facts.note("dropped", id=record["id"], tokens=num_tokens)
        elif isinstance(kept, masking.Encoded):
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


def _worst(found: list[tuple[str, float, Row]]) -> list[tuple[str, float, Row]]:
    """The worst of each kind."""
    kinds = dict.fromkeys(what for what, _, _ in found)
    return [
        row
        for kind in kinds
        for row in nlargest(NUM_WORST, (r for r in found if r[0] == kind), key=lambda r: r[1])
    ]


def _common(one: list[int] | None, other: list[int]) -> list[int]:
    """The beginning that two lists share; the other list where there is no first."""
    if one is None:
        return other
    pairs: Iterator[tuple[int, int]] = zip(one, other, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return one[:length]


def _num_characters(record: Row) -> int:
    if "text" in record:
        return len(record["text"])
    return sum(len(message["content"] or "") for message in record["messages"])
