"""Answers to be preferred, or labelled good or bad, as tokens: from their prompt to the stop token.

A pair is two conversations that differ in the last answer, and each is encoded as `masking` does it
for sft. So the tokens are those that a model answers with, and the prompt is not trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from siftune.chat import cutting, masking, tokenise
from siftune.data import kinds
from siftune.data.faults import Fault
from siftune.sections import Encode
from siftune.stage import UserError

Record = dict[str, Any]

KINDS = (("chosen", "rejected"), ("completion",))


class Answered(NamedTuple):
    """A prompt's token ids, and those of its answers by name: chosen and rejected, or completion.

    All of an answer's tokens are trained; what the template writes after its stop token is not
    among them.
    """

    prompt: list[int]
    answers: dict[str, list[int]]

    def __len__(self) -> int:
        """Tokens of the prompt with its longest answer."""
        return len(self.prompt) + max(map(len, self.answers.values()))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    records: list[Record],
    settings: Encode,
    reasoning_tags: tuple[str, str],
    tokenise_with: tokenise.Tokenise | None = None,
) -> list[Answered | Fault]:
    """Each record's tokens, or why it cannot be trained; in order. Arguments as for `masking`.

    `train_on` says nothing here: what is compared is the last answer.

    Raises:
        UserError: the records are of another kind, or the reasoning is not to be trained.
    """
    if not settings.train_reasoning:
        raise UserError(
            "params.yaml: encode.train_reasoning: false is for sft. Answers are preferred whole: "
            "what of them is not trained would have to be the same in both."
        )
    names = [_names(record) for record in records]
    whole = [
        kinds.with_answer(record, record[name])
        for record, those in zip(records, names, strict=True)
        for name in those
    ]
    last = replace(settings, train_on="last_answer")
    encoded = iter(masking.encode(tokenizer, whole, last, reasoning_tags, tokenise_with))
    return [_joined(those, encoded) for those in names]


def cut(
    record: Record,
    answered: Answered,
    rule: str,
    max_length: int,
    encode: Callable[[Record], Answered | Fault],
) -> Answered | Fault | None:
    """What is left of a record that is too long; None: nothing, it is dropped.

    The rules are those of `cutting.cut`; the same turns are left out before both answers.

    Raises nothing; a Fault says that nothing is left to train on.
    """
    if rule == "cut_answer":
        return _beginning(answered, max_length)
    if rule == "cut_first_turns":
        for shorter in cutting.without_first_turns(record):
            found = encode(shorter)
            if isinstance(found, Fault) or len(found) <= max_length:
                return found
    return None


def _names(record: Record) -> tuple[str, ...]:
    for names in KINDS:
        if names[0] in record:
            return names
    raise UserError(
        "data/prepared holds no answers to be preferred: each row needs a chosen and a rejected "
        "one, or one with a label. data.sources.columns maps columns of other names."
    )


def _joined(names: tuple[str, ...], encoded: Iterator[masking.Encoded | Fault]) -> Answered | Fault:
    whole = {name: next(encoded) for name in names}
    prompts, answers = [], {}
    for name, one in whole.items():
        if isinstance(one, Fault):
            return Fault(one.reason, f"{name}: {one.detail}")
        trained = [place for place, label in enumerate(one.labels) if label != masking.IGNORED]
        prompts.append(one.input_ids[: trained[0]])
        answers[name] = one.input_ids[trained[0] : trained[-1] + 1]
    if prompts[0] != prompts[-1]:
        return Fault("the template writes the prompt by its answer")
    return _distinct(Answered(prompts[0], answers))


def _beginning(answered: Answered, length: int) -> Answered | Fault:
    left = length - len(answered.prompt)
    if left <= 0:
        return Fault("no trained token after cutting", f"of {len(answered)}")
    answers = {name: ids[:left] for name, ids in answered.answers.items()}
    return _distinct(Answered(answered.prompt, answers))


def _distinct(answered: Answered) -> Answered | Fault:
    first, *others = answered.answers.values()
    if first in others:
        return Fault("chosen and rejected are the same tokens", f"{len(first)} of them")
    return answered
