"""Problems with a true answer: the prompt as tokens, as the model will be asked."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from siftune.chat import masking, tokenise
from siftune.data import kinds
from siftune.data.faults import Fault
from siftune.sections import Encode

Record = dict[str, Any]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    records: list[Record],
    settings: Encode,
    reasoning_tags: tuple[str, str],
    tokenise_with: tokenise.Tokenise | None = None,
) -> list[list[int] | Fault]:
    """Each prompt's token ids, or why it cannot be asked; in order. Arguments as for `masking`.

    It is what stands before the true answer in a conversation that ends with it.
    """
    whole = [kinds.with_answer(record, record["answer"]) for record in records]
    last = replace(settings, train_on="last_answer", train_reasoning=True)
    encoded = masking.encode(tokenizer, whole, last, reasoning_tags, tokenise_with)
    return [one if isinstance(one, Fault) else _prompt(one) for one in encoded]


def _prompt(encoded: masking.Encoded) -> list[int]:
    first = next(i for i, label in enumerate(encoded.labels) if label != masking.IGNORED)
    return encoded.input_ids[:first]
