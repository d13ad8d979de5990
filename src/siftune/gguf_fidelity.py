"""Does a GGUF file answer like the model that it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from siftune import merging
from siftune.chat.masking import IGNORED, Encoded
from siftune.gguf_readers import Reader
from siftune.gguf_strings import probe_strings
from siftune.gguf_tokenizer import Header, metadata


@dataclass(frozen=True)
class Reference:
    """The merged model: its tokenizer, the ids that end an answer, and answers by teacher forcing.

    ids: the conversations. rows: of each, which logits predict a token of an answer or its stop
    token. logits: of each, (len(rows), vocabulary), fp32.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_tokens: list[int]
    ids: list[list[int]]
    rows: list[list[int]]
    logits: list[Tensor]


def reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Encoded],
) -> Reference:
    """What the merged model says on encoded conversations."""
    ids = [encoded.input_ids for encoded in conversations]
    rows = [
        [index - 1 for index, label in enumerate(encoded.labels) if label != IGNORED]
        for encoded in conversations
    ]
    logits = [all_of[some] for all_of, some in zip(merging.logits(model, ids), rows, strict=True)]
    stop = model.generation_config.eos_token_id
    return Reference(tokenizer, stop if isinstance(stop, list) else [stop], ids, rows, logits)


def measure(reader: Reader, merged: Reference) -> dict[str, Any]:
    """Compare an opened GGUF file with the merged model.

    Returns:
        `reader`; of the tokenizer `num_strings`, `token_ids_equal`, `first_difference` (or None),
        `chat_template_equal`, `special_tokens_equal`; of the answers `num_positions`,
        `top1_agreement` (share), `mean_kl` (nats a token, KL(merged ‖ file)) and
        `max_logit_difference`.
    """
    tokenizer = merged.tokenizer
    strings = probe_strings(token.content for token in tokenizer.added_tokens_decoder.values())
    wrong = [
        text
        for text in strings
        if reader.tokens(text) != tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    logits = [reader.logits(ids)[rows] for ids, rows in zip(merged.ids, merged.rows, strict=True)]
    return {
        "reader": reader.name,
        "num_strings": len(strings),
        "token_ids_equal": not wrong,
        "first_difference": wrong[0] if wrong else None,
        "chat_template_equal": metadata(reader.header, "tokenizer.chat_template")
        == tokenizer.chat_template,
        "special_tokens_equal": _special_tokens_equal(reader.header, merged),
        **merging.distance(merged.logits, logits),
    }


def _special_tokens_equal(header: Header, merged: Reference) -> bool:
    tokenizer = merged.tokenizer
    ours = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "padding": tokenizer.pad_token_id,
    }
    # A role that the tokenizer leaves open, the file may fill: nothing reads it.
    theirs = {role: metadata(header, f"tokenizer.ggml.{role}_token_id") for role in ours}
    same = all(index is None or theirs[role] == index for role, index in ours.items())
    return same and theirs["eos"] in merged.stop_tokens
