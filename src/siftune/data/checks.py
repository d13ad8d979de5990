"""What is suspicious in a record's texts, what is fatal, and what is repaired if asked."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ftfy
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

from siftune.data import scripts
from siftune.data.faults import Fault
from siftune.sections import Prepare

# Tokens that some model family treats as its own; encode refuses those of the model at hand.
_SPECIAL = re.compile(
    r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
# ftfy's own characters: all that it finds is made of one of them and a few neighbours.
_COULD_BE_MOJIBAKE = re.compile(f"[{''.join(MOJIBAKE_CATEGORIES.values())}]")
_REACH = 8  # characters; the longest that it looks for has 7
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


TEXTS = ("text", "chosen", "rejected", "completion", "answer")


class Warned(NamedTuple):
    """Something to look at in a row that is used all the same."""

    what: str
    text: str
    repaired: str = ""


def examine(
    record: dict[str, Any], prepare: Prepare, tags: tuple[str, str]
) -> tuple[dict[str, Any], str, list[Warned]]:
    """The record, repaired and normalised as `prepare` asks, its text, and what to look at in it.

    Raises:
        Fault: a text cannot be trained on.
    """
    warned: list[Warned] = []

    def examined(text: str) -> str:
        return text if sound(text) else _examine_text(text, prepare, tags, warned)

    sound = partial(_is_sound, prepare=prepare, tags=tags)
    whole = text_of(record)
    if sound(whole):  # of all texts together, as it is for most rows
        return record, whole, warned
    record = _with_texts(record, examined)
    return record, text_of(record), warned


def texts(record: dict[str, Any]) -> list[str]:
    """All that a record says, in order."""
    said = [m["content"] for m in record.get("messages", ()) if m["content"]]
    return said + [record[key] for key in TEXTS if key in record]


def text_of(record: dict[str, Any]) -> str:
    """All that a record says, as one text."""
    return "\n".join(texts(record))


def _is_sound(text: str, prepare: Prepare, tags: tuple[str, str]) -> bool:
    """Whether no part of a text has anything to find."""
    return (
        tags[0] not in text
        and tags[1] not in text
        and text.replace("\n", " ").isprintable()
        and not _special(text)
        and (text.isascii() or not (prepare.variants or _COULD_BE_MOJIBAKE.search(text)))
    )


def _special(text: str) -> re.Match[str] | None:
    return _SPECIAL.search(text) if "<" in text or "[" in text else None


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
    special = _special(text)
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
    if _is_bad(text):
        text = _mojibake(text, prepare, warned)
    if prepare.variants is None:
        return text
    normalised = scripts.normalise(text, prepare.variants)
    if normalised != text:
        warned.append(Warned("variant characters, normalised", text[:200], normalised[:200]))
    return normalised


def _is_bad(text: str) -> bool:
    """As ftfy's `is_bad`, which looks everywhere, though of its characters there are few."""
    return any(
        BADNESS_RE.search(text, max(0, found.start() - _REACH), found.end() + _REACH)
        for found in _COULD_BE_MOJIBAKE.finditer(text)
    )


def _mojibake(text: str, prepare: Prepare, warned: list[Warned]) -> str:
    repaired = ftfy.fix_encoding(text)
    if repaired == text:
        return text
    what = "mojibake, repaired" if prepare.repair_mojibake else "mojibake"
    warned.append(Warned(what, text[:200], repaired[:200]))
    return repaired if prepare.repair_mojibake else text


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 40) : found.end() + 40]
