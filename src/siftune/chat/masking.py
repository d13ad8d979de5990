"""Which tokens the loss looks at: the answers as the template writes them, to their stop token.

Nothing is searched in the text. The prompt of each answer is rendered and tokenised by itself, as
inference does it; it must be the beginning of the whole, token by token. What follows it, up to and
with the stop token, is the answer.
"""

import re
import struct
from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from siftune.chat import conversation, tokenise
from siftune.data.faults import Fault
from siftune.sections import Encode
from siftune.stage import UserError

IGNORED = -100  # the label that no loss looks at

Record = dict[str, Any]


Ids = NDArray[np.int32]


class Encoded(NamedTuple):
    """Tokens, and for each of them the label: the token itself, or IGNORED."""

    input_ids: list[int]
    labels: list[int]

    def beginning(self, length: int) -> "Encoded":
        """The first tokens."""
        return Encoded(self.input_ids[:length], self.labels[:length])


class Arrays(NamedTuple):
    """The same, to be written into a file: as lists, that would take longer than all else."""

    input_ids: Ids
    labels: Ids

    def beginning(self, length: int) -> "Arrays":
        """The first tokens."""
        return Arrays(self.input_ids[:length], self.labels[:length])


Either = Encoded | Arrays


class Draft(NamedTuple):
    """A conversation as texts: the whole, and what stands before each answer that is trained.

    `unlearned` are beginnings of the whole that end after a reasoning that is not trained.
    """

    text: str
    prompts: list[str]
    unlearned: list[str]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    records: list[Record],
    settings: Encode,
    reasoning_tags: tuple[str, str],
    tokenise_with: tokenise.Tokenise | None = None,
) -> list[Encoded | Fault]:
    """Each record's tokens and labels, or why it cannot be trained; in order.

    Args:
        tokenizer: its end-of-sequence token is the one that ends an answer.
        tokenise_with: texts → token ids without added special tokens; None: the tokenizer.
    """
    found = encode_arrays(tokenizer, records, settings, reasoning_tags, tokenise_with)
    return [
        one if isinstance(one, Fault) else Encoded(one.input_ids.tolist(), one.labels.tolist())
        for one in found
    ]


def encode_arrays(
    tokenizer: PreTrainedTokenizerBase,
    records: list[Record],
    settings: Encode,
    reasoning_tags: tuple[str, str],
    tokenise_with: tokenise.Tokenise | None = None,
) -> list[Arrays | Fault]:
    """The same as arrays."""
    special = _Special(tokenizer, tokenise_with or tokenise.own(tokenizer))
    writer = conversation.Writer(tokenizer)
    drafts: list[Draft | Fault] = []
    for record in records:
        try:
            special.refuse(record)
            drafts.append(_draft(writer, record, settings, reasoning_tags))
        except Fault as fault:
            drafts.append(fault)
    whole = iter(special.tokenise([draft.text for draft in drafts if isinstance(draft, Draft)]))
    encoded: list[Arrays | Fault] = []
    for draft in drafts:
        try:
            if isinstance(draft, Fault):
                raise draft
            ids = _as_array(next(whole))
            labels = _labels(tokenizer, ids, draft, special)
            encoded.append(Arrays(ids, np.asarray(labels)))
        except Fault as fault:
            encoded.append(fault)
    return encoded


class _Special:
    """The tokenizer's special tokens: texts are split at them before anything else is done.

    So the tokens of a beginning of a text are those up to its last special token, which the whole
    has, too, and those of the rest, which is short and nearly always the same.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens_of: tokenise.Tokenise) -> None:
        self.tokenise = tokens_of
        self.stop, self.bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        added = [t for t in tokenizer.added_tokens_decoder.items() if t[1].special]
        # Longest first; of a tokenizer without any, a pattern that matches nothing.
        longest_first = sorted((token.content for _, token in added), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # The last entry is for all tokens behind it: none is special.
        self._is_special = np.zeros(
            max((number for number, _ in added), default=-1) + 2, dtype=bool
        )
        self._is_special[[number for number, _ in added]] = True
        # One that takes the blanks beside it does not split the text where it stands.
        self._split = not any(t.lstrip or t.rstrip or t.single_word for _, t in added)
        self._ends: dict[str, list[int]] = {}

    def refuse(self, record: Record) -> None:
        """Raise a Fault when a text of the record holds a special token."""
        texts = [record["text"]] if "text" in record else [m["content"] for m in record["messages"]]
        for text in texts:
            found = self._pattern.search(text or "")
            if found:
                around = text[max(0, found.start() - 20) : found.end() + 20]
                raise Fault("special token inside the text", f"{found.group()} in {around!r}")

    def lengths(self, text: str, ids: Ids, beginnings: list[str]) -> list[int | None]:
        """How many of the whole's tokens each beginning has; None: it ends within a token."""
        if not beginnings:
            return []
        found = list(self._pattern.finditer(text))
        places = self._is_special.take(ids, mode="clip").nonzero()[0].tolist()
        if not self._split or len(found) != len(places):
            each = self.tokenise(beginnings)
            return [len(own) if ids[: len(own)].tolist() == own else None for own in each]
        ends = [one.end() for one in found]
        lengths: list[int | None] = []
        for beginning in beginnings:
            num_special = bisect_right(ends, len(beginning))
            start = found[num_special - 1].start() if num_special else 0
            place = places[num_special - 1] if num_special else 0
            end = self._tokens_of_end(beginning[start:])
            same = ids[place : place + len(end)].tolist() == end
            lengths.append(place + len(end) if same else None)
        return lengths

    def _tokens_of_end(self, text: str) -> list[int]:
        if text not in self._ends:
            (self._ends[text],) = self.tokenise([text])
        return self._ends[text]


def _draft(
    writer: conversation.Writer, record: Record, settings: Encode, tags: tuple[str, str]
) -> Draft:
    if {"chosen", "completion", "answer"} & record.keys():
        raise UserError(
            "data/prepared holds answers to be preferred, labelled or found, not conversations: "
            "sft trains on conversations or plain text. If the rows are questions with answers, "
            "map them: data.sources.columns: {prompt: …, response: …}."
        )
    if "text" in record:
        return Draft(record["text"] + writer.tokenizer.eos_token, [""], [])
    messages, tools = record["messages"], record.get("tools")
    turns = conversation.with_system(messages, settings.system)
    text = writer.render(turns, answer_next=False, tools=tools)
    for message in turns:
        said = _must_be_written(message, tags)
        if said not in text:
            raise Fault("left out by the chat template", f"{message['role']}: {said[:80]!r}")
    prompts = []
    for index in _trained_turns(turns, settings):
        prompt = writer.render(turns[:index], answer_next=True, tools=tools)
        if not text.startswith(prompt):
            raise Fault(
                "the prompt is not the beginning of the trained text (the template rewrites "
                "earlier turns; encode.train_on: last_answer may help)",
                f"prompt ends {prompt[-60:]!r}",
            )
        prompts.append(prompt)
        # Some templates open the reasoning in the prompt.
        _refuse_rewritten(turns[index]["content"] or "", text[len(prompt) - len(tags[0]) - 2 :])
    if not prompts:
        raise Fault("no answer to train on")
    unlearned = [] if settings.train_reasoning else _reasoning(text, prompts, tags)
    return Draft(text, prompts, unlearned)


def _refuse_rewritten(answer: str, trained: str) -> None:
    """Blanks may be others; some templates leave the reasoning out of all turns but the last."""
    if answer not in trained and "".join(answer.split()) not in "".join(trained.split()):
        raise Fault(
            "an answer is not trained as it is written (the template changes it; "
            "encode.train_on: last_answer may help)",
            f"{answer[:60]!r} became {trained[:60]!r}",
        )


def _must_be_written(message: Record, tags: tuple[str, str]) -> str:
    content = message["content"] or ""
    if message["role"] == "tool":  # some templates write it as JSON, with other quotes
        return max(re.findall(r"[A-Za-z0-9]+", content), key=len, default="")
    # Reasoning may be left out of earlier turns, as some models were trained.
    return str(content.rpartition(tags[1])[2].strip())


def _trained_turns(turns: list[Record], settings: Encode) -> list[int]:
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if settings.train_on == "last_answer":
        answers = answers[-1:]
    return [index for index in answers if turns[index].get("train", True)]


def _reasoning(text: str, prompts: list[str], tags: tuple[str, str]) -> list[str]:
    opened, closed = tags
    ends = []
    for prompt, following in zip(prompts, [*prompts[1:], text], strict=True):
        answer = text[len(prompt) : len(following)]
        # Some templates open the reasoning in the prompt.
        begins = answer.lstrip().startswith(opened) or prompt.rstrip().endswith(opened)
        if begins and closed in answer:
            ends.append(text[: len(prompt) + answer.index(closed) + len(closed)])
    return ends


def _as_array(ids: list[int]) -> Ids:
    # Three times as fast as numpy's own way through a list.
    return np.frombuffer(struct.pack(f"{len(ids)}i", *ids), dtype=np.int32)


def _labels(tokenizer: PreTrainedTokenizerBase, whole: Ids, draft: Draft, special: _Special) -> Ids:
    labels = np.empty_like(whole)
    labels.fill(IGNORED)
    stop, bos = special.stop, special.bos
    if bos is not None and bos != stop and whole[:2].tolist() == [bos, bos]:
        raise Fault("two beginning-of-sequence tokens")
    stops = (whole == stop).nonzero()[0].tolist()
    starts = special.lengths(draft.text, whole, draft.prompts)
    for start, following in zip(starts, [*starts[1:], len(whole)], strict=True):
        if start is None:
            raise Fault("the answer's first characters merge with the prompt's last ones")
        end = next((at + 1 for at in stops if start <= at < (following or len(whole))), None)
        if end is None:
            raise Fault("no stop token after an answer", f"{tokenizer.eos_token} is not written")
        labels[start:end] = whole[start:end]
    for end_of_reasoning in special.lengths(draft.text, whole, draft.unlearned):
        if end_of_reasoning is None:
            raise Fault("the end of the reasoning is no end of a token")
        begin = max(start for start in starts if start is not None and start <= end_of_reasoning)
        labels[begin:end_of_reasoning] = IGNORED
    return labels
