"""The tokenizer inside a GGUF file, as the one its model was trained with.

transformers 5.17 rebuilds it with another pre-tokenizer (digits are not split off, so "a  1" gets
other tokens), with byte fallback and with a wrong stop token. llama.cpp's converter then takes it
for a sentencepiece tokenizer and writes a GGUF file whose tokens are wrong.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

# By `tokenizer.ggml.pre`; the patterns are those of the models' own tokenizer.json.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "llama-bpe": rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|\p{{N}}|{_REST}",
}


class Header(GGUFReader):
    """A GGUF file as its package reads it, in half the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path)

    @property
    def data(self) -> np.ndarray:
        """The file's bytes."""
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        # Each token is a slice, and a slice of a memmap costs more than what is read.
        self._data = mapped.view(np.ndarray)


def load_gguf_tokenizer(header: Header) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file, with its chat template and its bos, eos, pad and unk tokens.

    Byte-level BPE of a kind we know is built from the file's own vocabulary and merges; all else is
    left to transformers, and only the special tokens are set right.
    """
    tokens = header.fields["tokenizer.ggml.tokens"]
    special = {
        f"{role}_token": tokens.contents(index)
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if (index := metadata(header, f"tokenizer.ggml.{key}_token_id")) is not None
    }
    pre_tokenizer = _pre_tokenizer(metadata(header, "tokenizer.ggml.pre"))
    if metadata(header, "tokenizer.ggml.model") != "gpt2" or pre_tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(header.path.parent, gguf_file=header.path.name)
        for role, token in special.items():
            setattr(tokenizer, role, token)
        return tokenizer
    backend = _byte_level_bpe(header)
    backend.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata(header, "tokenizer.chat_template"),
        model_max_length=metadata(
            header, f"{metadata(header, 'general.architecture')}.context_length"
        ),
        clean_up_tokenization_spaces=False,
        **special,
    )


def metadata(header: Header, key: str) -> Any:
    """One value of a GGUF file's header, or None when it is not there."""
    field = header.get_field(key)
    return None if field is None else field.contents()


def _byte_level_bpe(header: Header) -> Tokenizer:
    tokens = metadata(header, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in metadata(header, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.decoder = decoders.ByteLevel()
    # In order of their ids: a token that is in the vocabulary keeps its id.
    for token, kind in zip(tokens, metadata(header, "tokenizer.ggml.token_type"), strict=True):
        if kind == TokenType.CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            backend.add_tokens([AddedToken(token, special=False, normalized=False)])
    return backend


def _pre_tokenizer(kind: str | None) -> Any:
    if kind == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if kind in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[kind]), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    return None
