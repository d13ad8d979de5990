"""What a researcher wants to know about the data before a run waits in a queue, in sentences."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

from siftune import wording
from siftune.chat.masking import IGNORED

SIGNS = {"fine": "✓", "fact": "·", "look": "!", "wrong": "✗"}
NUM_NAMED = 3
NUM_DIGITS = 12  # of a sha256, enough to tell two apart


@dataclass(frozen=True)
class Verdict:
    """One sentence, how bad it is, and the part of the page that shows more."""

    level: Literal["fine", "fact", "look", "wrong"]
    words: str
    place: str

    @property
    def sign(self) -> str:
        """The level without a colour."""
        return SIGNS[self.level]


def headline(verdicts: Sequence[Verdict]) -> str:
    """All verdicts in one sentence."""
    wrong = sum(one.level == "wrong" for one in verdicts)
    look = sum(one.level == "look" for one in verdicts)
    if wrong:
        return f"Do not queue this: {_things(wrong)} wrong."
    if look:
        return f"{_things(look)} worth a look before this is queued.".capitalize()
    return "Nothing here needs a second look."


def verdicts(
    found: dict[str, Any],
    encoded: dict[str, Any],
    stopped: Sequence[bool | None],
) -> list[Verdict]:
    """Of what prepare counted and found, and of what encode left.

    Args:
        stopped: what `stops` says of each row on the page.
    """
    judged = []
    if "rows" in found:
        judged.append(_rows(found))
    if encoded:
        judged += [_left_out(encoded), _trained(encoded)]
        if encoded["template"]["stop_tokens"]:
            judged.append(_stop_tokens(encoded, stopped))
        judged += [_template(encoded), *_prefixes(encoded)]
    if found["warnings"]:
        judged.append(Verdict("look", f"Warnings: {_named(found['warnings'])}.", "warnings"))
    return [*judged, *_phrases(found["phrases"])]


def stops(
    input_ids: Sequence[int], labels: Sequence[int], stop_ids: AbstractSet[int]
) -> bool | None:
    """Whether the row's last trained token, and each stop token behind an answer, is trained.

    None where no stop token is known, or nothing is trained.
    """
    trained = [index for index, label in enumerate(labels) if label != IGNORED]
    if not stop_ids or not trained:
        return None
    behind = [i + 1 for i in trained if i + 1 < len(labels) and labels[i + 1] == IGNORED]
    missed = any(input_ids[i] in stop_ids for i in behind if input_ids[i - 1] not in stop_ids)
    return input_ids[trained[-1]] in stop_ids and not missed


def _rows(found: dict[str, Any]) -> Verdict:
    rows = found["rows"]
    counted = f"{wording.count(rows['in'])} rows in = {wording.count(rows['kept'])} kept"
    counted = f"{counted} + {wording.count(rows['rejected'])} rejected"
    if rows["in"] != rows["kept"] + rows["rejected"]:
        return Verdict("wrong", f"{counted} does not add up.", "rejected")
    if rows["rejected"]:
        return Verdict("look", f"{counted}: {_named(found['rejected'])}.", "rejected")
    return Verdict("fine", f"{counted}.", "rejected")


def _left_out(encoded: dict[str, Any]) -> Verdict:
    total = {
        what: sum(split[what] for split in encoded["splits"].values())
        for what in ("rows", "kept", "cut", "dropped", "faulty")
    }
    words = {
        "kept": f"{wording.count(total['kept'])} kept",
        "cut": f"{wording.count(total['cut'])} of them cut",
        "dropped": f"{wording.count(total['dropped'])} dropped as too long",
        "faulty": f"{wording.count(total['faulty'])} refused as faulty",
    }
    said = ", ".join(said for what, said in words.items() if total[what])
    rows = wording.count(total["rows"])
    if total["rows"] != total["kept"] + total["dropped"] + total["faulty"]:
        return Verdict("wrong", f"{rows} rows to encode: {said} does not add up.", "encoded")
    if total["rows"] == total["kept"] and not total["cut"]:
        return Verdict("fine", f"All {rows} rows to encode were kept whole.", "encoded")
    return Verdict("look", f"{rows} rows to encode: {said}.", "encoded")


def _trained(encoded: dict[str, Any]) -> Verdict:
    tokens = sum(split["tokens"] for split in encoded["splits"].values())
    trained = sum(split["trained_tokens"] for split in encoded["splits"].values())
    if not trained and all("grpo" in name for name in encoded["splits"]):
        words = f"{wording.count(tokens)} tokens of prompts; the model answers itself."
        return Verdict("fine", words, "tokens")
    if not trained:
        return Verdict("wrong", f"None of {wording.count(tokens)} tokens is trained.", "tokens")
    share = wording.percent(trained / tokens)
    words = f"{share} of {wording.count(tokens)} tokens are trained; the rest is only read."
    return Verdict("fine", words if trained < tokens else "All tokens are trained.", "tokens")


def _stop_tokens(encoded: dict[str, Any], stopped: Sequence[bool | None]) -> Verdict:
    stop = " or ".join(encoded["template"]["stop_tokens"])
    checked = [one for one in stopped if one is not None]
    missing = checked.count(False)
    if missing:
        words = (
            f"In {missing} of {len(checked)} rows on this page an answer does not end with a "
            f"trained stop token ({stop}): from them the model does not learn to stop."
        )
        return Verdict("look" if missing < len(checked) else "wrong", words, "tokens")
    words = f"The stop token of each answer, {stop}, is trained"
    seen = f"; seen again in all {len(checked)} rows on this page" if checked else ""
    return Verdict("fine", f"{words}{seen}.", "tokens")


def _template(encoded: dict[str, Any]) -> Verdict:
    template = encoded["template"]
    own = "the model's own" if template["name"] == "own" else template["name"]
    digest = template["sha256"][:NUM_DIGITS]
    return Verdict("fact", f"The chat template is {own}, sha256 {digest}….", "template")


def _prefixes(encoded: dict[str, Any]) -> list[Verdict]:
    shared = {f"all {name} rows": one["shared_prefix"] for name, one in encoded["splits"].items()}
    if len(set(shared.values())) == 1:
        shared = {"all rows": max(shared.values())}
    said = [
        f"{who} begin with the same {wording.count(number)} tokens"
        for who, number in shared.items()
        if number
    ]
    words = "; ".join(said) or "the rows share no beginning"
    return [Verdict("fact", f"{words[:1].upper()}{words[1:]}.", "tokens")] if shared else []


def _phrases(phrases: Sequence[dict[str, Any]]) -> list[Verdict]:
    suspicious = [one for one in phrases if one["suspicious"]]
    if not suspicious:
        return []
    worst = max(suspicious, key=lambda one: one["share"])
    words = (
        f"{wording.percent(worst['share'])} of the answers hold “{worst['phrase']}”, which no "
        "prompt asks for: the prompt of the model that wrote them may have leaked."
    )
    return [Verdict("look", words, "phrases")]


def _named(counts: dict[str, int]) -> str:
    largest = sorted(counts.items(), key=lambda one: -one[1])
    said = [f"{what} ({wording.count(number)})" for what, number in largest[:NUM_NAMED]]
    rest = sum(number for _, number in largest[NUM_NAMED:])
    return ", ".join(said) + (f", other reasons ({wording.count(rest)})" if rest else "")


def _things(number: int) -> str:
    return "one thing is" if number == 1 else f"{number} things are"
