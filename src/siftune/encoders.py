"""How the rows of each phase become tokens: a class for each kind, all with the same methods."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from siftune import tokens
from siftune.chat import cutting, masking, preference, problems, tokenise
from siftune.data.faults import Fault
from siftune.sections import Encode

Record = dict[str, Any]


class How(NamedTuple):
    """All that decides the tokens of a record."""

    tokenizer: PreTrainedTokenizerBase
    tokenise: tokenise.Tokenise
    settings: Encode
    reasoning_tags: tuple[str, str]

    def encode(self, records: list[Record]) -> list[masking.Encoded | Fault]:
        """The tokens and labels of conversations and texts."""
        return masking.encode(*self.arguments(records))

    def encode_one(self, record: Record) -> masking.Encoded | Fault:
        """One record's tokens and labels."""
        return self.encode([record])[0]

    def encode_arrays(self, records: list[Record]) -> list[masking.Arrays | Fault]:
        """The same as arrays."""
        return masking.encode_arrays(*self.arguments(records))

    def arguments(self, records: list[Record]) -> tuple[Any, ...]:
        """As the functions `encode` of chat take them."""
        return self.tokenizer, records, self.settings, self.reasoning_tags, self.tokenise


def how(tokenizer: PreTrainedTokenizerBase, settings: Encode, reasoning_tags: list[str]) -> How:
    """All that decides the tokens; its tokenise function is tried on a prompt of the template."""
    opened, closed = reasoning_tags
    return How(tokenizer, tokenise.fastest(tokenizer), settings, (opened, closed))


class Encoder(Protocol):
    """What `encoding` asks of a kind; what `encode` returns is given back to the others."""

    def __init__(self, how: How) -> None: ...

    def encode(self, records: list[Record]) -> Sequence[Any]:
        """The tokens of each record, or a Fault; in order."""

    def is_too_long(self, encoded: Any) -> bool:
        """Whether it must be cut or dropped."""

    def cut(self, record: Record, encoded: Any) -> Any:
        """What `encode.too_long` leaves of it; None: nothing, it is dropped."""

    def batch(self, kept: list[tuple[Record, Any]]) -> pa.RecordBatch:
        """As `tokens.write` takes it."""

    def looked_at(self, encoded: Any) -> Iterator[tuple[tokens.Ids, tokens.Ids]]:
        """Tokens and labels, of each answer with its prompt."""


class Conversations:
    """Conversations that end with an answer."""

    def __init__(self, how: How) -> None:
        self._how = how

    def encode(self, records: list[Record]) -> Sequence[masking.Arrays | Fault]:
        return self._how.encode_arrays(records)

    def is_too_long(self, encoded: masking.Either) -> bool:
        return len(encoded.input_ids) > self._how.settings.max_length

    def cut(self, record: Record, encoded: masking.Either) -> masking.Either | Fault | None:
        rule, length = self._how.settings.too_long, self._how.settings.max_length
        return cutting.cut(record, encoded, rule, length, self._how.encode_one)

    def batch(self, kept: list[tuple[Record, masking.Either]]) -> pa.RecordBatch:
        return tokens.batch([(record["id"], one.input_ids, one.labels) for record, one in kept])

    def looked_at(self, encoded: masking.Either) -> Iterator[tuple[tokens.Ids, tokens.Ids]]:
        yield encoded.input_ids, encoded.labels


class Texts(Conversations):
    """Plain text, of any length: it is trained in blocks."""

    def is_too_long(self, encoded: masking.Either) -> bool:
        return False


class Answers:
    """Two answers to a prompt, or one that is good or bad."""

    def __init__(self, how: How) -> None:
        self._how = how

    def encode(self, records: list[Record]) -> Sequence[preference.Answered | Fault]:
        return preference.encode(*self._how.arguments(records))

    def is_too_long(self, encoded: preference.Answered) -> bool:
        return len(encoded) > self._how.settings.max_length

    def cut(self, record: Record, encoded: preference.Answered) -> Any:
        rule, length = self._how.settings.too_long, self._how.settings.max_length
        return preference.cut(record, encoded, rule, length, lambda one: self.encode([one])[0])

    def batch(self, kept: list[tuple[Record, preference.Answered]]) -> pa.RecordBatch:
        rows = []
        for record, answered in kept:
            answers = answered.answers
            if "completion" in answers:
                answers = {"chosen" if record["label"] else "rejected": answers["completion"]}
            named = {f"{name}_ids": answers.get(name) for name in ("chosen", "rejected")}
            rows.append({"id": record["id"], "prompt_ids": answered.prompt, **named})
        return pa.RecordBatch.from_pylist(rows, schema=tokens.SCHEMAS["dpo"])

    def looked_at(self, encoded: preference.Answered) -> Iterator[tuple[tokens.Ids, tokens.Ids]]:
        for answer in encoded.answers.values():
            yield encoded.prompt + answer, [masking.IGNORED] * len(encoded.prompt) + answer


class Problems:
    """Prompts whose answers the model makes itself."""

    def __init__(self, how: How) -> None:
        self._how = how

    def encode(self, records: list[Record]) -> Sequence[list[int] | Fault]:
        return problems.encode(*self._how.arguments(records))

    def is_too_long(self, encoded: list[int]) -> bool:
        return len(encoded) > self._how.settings.max_length

    def cut(self, record: Record, encoded: list[int]) -> list[int] | Fault | None:
        if self._how.settings.too_long == "cut_first_turns":
            for shorter in cutting.without_first_turns(record):
                found = self.encode([shorter])[0]
                if isinstance(found, Fault) or not self.is_too_long(found):
                    return found
        return None

    def batch(self, kept: list[tuple[Record, list[int]]]) -> pa.RecordBatch:
        rows = [
            {
                "id": record["id"],
                "prompt_ids": prompt,
                "record": json.dumps(record, ensure_ascii=False),
            }
            for record, prompt in kept
        ]
        return pa.RecordBatch.from_pylist(rows, schema=tokens.SCHEMAS["grpo"])

    def looked_at(self, encoded: list[int]) -> Iterator[tuple[tokens.Ids, tokens.Ids]]:
        yield encoded, [masking.IGNORED] * len(encoded)


ENCODERS: dict[str, type[Encoder]] = {
    "pretrain": Texts,
    "sft": Conversations,
    "dpo": Answers,
    "grpo": Problems,
}
