"""What is suspicious in a record's texts, what is fatal, and what is repaired if asked."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ftfy
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad

from siftune.config import Prepare
from siftune.data import scripts
from siftune.data.faults import Fault

# Tokens that some model family treats as its own; encode refuses those of the model at hand.
_SPECIAL = re.compile(
    r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
# ftfy's own characters: none of them, and there is nothing for it to find, ten times as fast.
_COULD_BE_MOJIBAKE = re.compile(f"[{''.join(MOJIBAKE_CATEGORIES.values())}]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


TEXTS = ("text", "chosen", "rejected", "answer")


class Warned(NamedTuple):
    """Something to look at in a row that is used all the same."""

    what: str
    text: str
    repaired: str = ""


def examine(
    record: dict[str, Any], prepare: Prepare, tags: tuple[str, str]
) -> tuple[dict[str, Any], list[Warned]]:
    """The record, repaired and normalised as `prepare` asks, and what to look at in it.

    Raises:
        Fault: a text cannot be trained on.
    """
    warned: list[Warned] = []

    def examined(text: str) -> str:
        return _examine_text(text, prepare, tags, warned)

    return _with_texts(record, examined), warned


def texts(record: dict[str, Any]) -> list[str]:
    """All that a record says, in order."""
    said = [m["content"] for m in record.get("messages", []) if m["content"]]
    return said + [record[key] for key in TEXTS if key in record]


def _with_texts(record: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed = dict(record)
    if "messages" in record:
        changed["messages"] = [
            {**message, "content": change(message["content"])} if message["content"] else message
            for message in record["messages"]
        ]
    for key in TEXTS:
        if key in record:
            changed[key] = change(record[key])
    return changed


def _examine_text(text: str, prepare: Prepare, tags: tuple[str, str], warned: list[Warned]) -> str:
    opened, closed = tags
    if text.count(opened) != text.count(closed):
        raise Fault("unclosed reasoning tag", f"{opened} … without {closed}: {text[-80:]!r}")
    # To look for one character first is many times as fast, and nearly all texts are sound.
    control = None if text.replace("\n", " ").isprintable() else _CONTROL.search(text)
    if control:
        raise Fault("control character", repr(text[max(0, control.start() - 20) :][:60]))
    special = _SPECIAL.search(text) if "<" in text or "[" in text else None
    if special:
        warned.append(Warned("special token of some model inside the text", _around(text, special)))
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Fault("lone surrogate", repr(text[max(0, error.start - 20) :][:60])) from None
    if "\ufffd" in text:
        warned.append(Warned("replacement character �, lost in an earlier decoding", text[:200]))
    if _COULD_BE_MOJIBAKE.search(text) and is_bad(text):
        text = _mojibake(text, prepare, warned)
    if prepare.variants is None:
        return text
    normalised = scripts.normalise(text, prepare.variants)
    if normalised != text:
        warned.append(Warned("variant characters, normalised", text[:200], normalised[:200]))
    return normalised


def _mojibake(text: str, prepare: Prepare, warned: list[Warned]) -> str:
    repaired = ftfy.fix_encoding(text)
    if repaired == text:
        return text
    what = "mojibake, repaired" if prepare.repair_mojibake else "mojibake"
    warned.append(Warned(what, text[:200], repaired[:200]))
    return repaired if prepare.repair_mojibake else text


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 40) : found.end() + 40]
