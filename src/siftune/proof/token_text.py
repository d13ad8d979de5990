"""Tokens as a person reads them: parts of one character joined, and nothing invisible."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape
from transformers import PreTrainedTokenizerBase

from siftune.chat.masking import IGNORED

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are not a whole character
MAX_PARTS = 8  # tokens that two characters of four bytes each may share

# What has a glyph of its own in most fonts, yet shows nothing; the rest `isprintable` knows.
SEEN = {"\n": "⏎", "\t": "⇥"}
SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
IDEOGRAPHIC_SPACE = "\u3000"
MAYBE_INVISIBLE = re.compile(f"[{SELECTORS}]")


class Piece(NamedTuple):
    """One token, or the tokens that are one character together."""

    text: str
    ids: tuple[int, ...]
    trained: bool
    special: bool
    title: str  # the id and what the token says, or the ids and what the vocabulary calls them

    @property
    def is_broken(self) -> bool:
        """Its bytes are part of a character whose rest is missing, or lies beyond the mask."""
        return BROKEN in self.text


class Reader:
    """Reads token ids as text, with one tokenizer; a token is decoded once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # Added tokens of blanks (Phi, Gemma) are text; the others are marks of the template.
        self._special = {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip()
        }
        # Some decoders strip the blank at the beginning of a text: each token is read behind one.
        self._before = list(tokenizer.all_special_ids[:1])
        self._prefix = self._decode(self._before)
        self._texts: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """What the tokens say, special ones included."""
        return self._decode([*self._before, *ids]).removeprefix(self._prefix)

    def pieces(self, ids: Sequence[int], labels: Sequence[int]) -> list[Piece]:
        """All tokens in order; a piece is trained whole or not at all."""
        found = []
        start = 0
        while start < len(ids):
            end = self._end(ids, labels, start)
            group = tuple(ids[start:end])
            text = self._token(group[0]) if len(group) == 1 else self.text(group)
            found.append(
                Piece(
                    text=text,
                    ids=group,
                    trained=labels[start] != IGNORED,
                    special=group[0] in self._special,
                    title=self._title(group, text),
                )
            )
            start = end
        return found

    def _end(self, ids: Sequence[int], labels: Sequence[int], start: int) -> int:
        if BROKEN not in self._token(ids[start]):
            return start + 1
        for end in range(start + 2, min(start + MAX_PARTS, len(ids)) + 1):
            # A mask that goes through a character is seen, not hidden in a group.
            if (labels[end - 1] == IGNORED) != (labels[start] == IGNORED):
                break
            if BROKEN not in self.text(ids[start:end]):
                return end
        return start + 1

    def _token(self, number: int) -> str:
        if number not in self._texts:
            self._texts[number] = self.text([number])
        return self._texts[number]

    def _title(self, ids: tuple[int, ...], text: str) -> str:
        if BROKEN not in text and len(ids) == 1:
            return f"{ids[0]} “{in_one_line(text)}”"
        names = self._tokenizer.convert_ids_to_tokens(list(ids))
        named = ", ".join(f"{number} {name}" for number, name in zip(ids, names, strict=True))
        return in_one_line(f"{len(ids)} tokens: {named}" if len(ids) > 1 else named)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )


def as_html(text: str) -> Markup:
    """Escaped; what is invisible or turns the direction of reading is a small box."""
    parts = []
    for sign, chunk in _signs(text):
        if not sign:
            parts.append(escape(chunk))
        elif chunk in SEEN:
            parts.append(Markup('<b class="sign">{}</b>{}').format(sign, chunk))
        else:
            name = unicodedata.name(chunk, "no character")
            parts.append(Markup('<b class="odd" title="{}">{}</b>').format(name, sign))
    return Markup("").join(parts)


def as_plain(text: str) -> str:
    """The same for a terminal, which obeys no control character of a row then."""
    return "".join(
        chunk if not sign else sign + chunk if chunk in SEEN else f"‹{sign}›"
        for sign, chunk in _signs(text)
    )


def in_one_line(text: str) -> str:
    """The same without line breaks."""
    return "".join(
        chunk if not sign else sign if chunk in SEEN else f"‹{sign}›"
        for sign, chunk in _signs(text)
    )


def _signs(text: str) -> Iterator[tuple[str, str]]:
    """Stretches of plain text behind "", and each other character behind its sign."""
    if text.isprintable() and not MAYBE_INVISIBLE.search(text):
        yield "", text
        return
    odd = [index for index, character in enumerate(text) if _is_odd(character)]
    for before, index in pairwise([-1, *odd, len(text)]):
        if before >= 0:
            yield SEEN.get(text[before], f"U+{ord(text[before]):04X}"), text[before]
        if index > before + 1:
            yield "", text[before + 1 : index]


def _is_odd(character: str) -> bool:
    if character.isprintable():
        return MAYBE_INVISIBLE.match(character) is not None
    return character != IDEOGRAPHIC_SPACE
