"""Which tokens the loss looks at: the answers as the template writes them, to their stop token.

Nothing is searched in the text. The prompt of each answer is rendered and tokenised by itself, as
inference does it; it must be the beginning of the whole, token by token. What follows it, up to and
with the stop token, is the answer.
"""

import re
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from siftune.chat import conversation, tokenise
from siftune.config import Encode
from siftune.data.faults import Fault
from siftune.stage import UserError

IGNORED = -100  # the label that no loss looks at

Record = dict[str, Any]


class Encoded(NamedTuple):
    """Tokens, and for each of them the label: the token itself, or IGNORED."""

    input_ids: list[int]
    labels: list[int]


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
    tokens_of = tokenise_with or tokenise.own(tokenizer)
    special = _special_tokens(tokenizer)
    drafts: list[Draft | Fault] = []
    for record in records:
        try:
            _refuse_special_tokens(special, record)
            drafts.append(_draft(tokenizer, record, settings, reasoning_tags))
        except Fault as fault:
            drafts.append(fault)
    texts = [text for draft in drafts if isinstance(draft, Draft) for text in _texts(draft)]
    tokens = iter(tokens_of(texts))
    encoded: list[Encoded | Fault] = []
    for draft in drafts:
        if isinstance(draft, Fault):
            encoded.append(draft)
            continue
        whole, *beginnings = [next(tokens) for _ in _texts(draft)]
        split = len(draft.prompts)
        try:
            labels = _labels(tokenizer, whole, beginnings[:split], beginnings[split:])
            encoded.append(Encoded(whole, labels))
        except Fault as fault:
            encoded.append(fault)
    return encoded


def _texts(draft: Draft) -> list[str]:
    return [draft.text, *draft.prompts, *draft.unlearned]


def _draft(
    tokenizer: PreTrainedTokenizerBase, record: Record, settings: Encode, tags: tuple[str, str]
) -> Draft:
    if "chosen" in record or "answer" in record:
        raise UserError(
            "data/prepared holds preference pairs or problems with an answer, not conversations: "
            "sft trains on conversations or plain text. If the rows are questions with answers, "
            "map them: data.sources.columns: {prompt: …, response: …}."
        )
    if "text" in record:
        return Draft(record["text"] + tokenizer.eos_token, [""], [])
    messages, tools = record["messages"], record.get("tools")
    turns = conversation.with_system(messages, settings.system)
    text = conversation.render(tokenizer, turns, answer_next=False, tools=tools)
    for message in turns:
        said = _must_be_written(message, tags)
        if said not in text:
            raise Fault("left out by the chat template", f"{message['role']}: {said[:80]!r}")
    prompts = []
    for index in _trained_turns(turns, settings):
        prompt = conversation.render(tokenizer, turns[:index], answer_next=True, tools=tools)
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
    if "".join(answer.split()) not in "".join(trained.split()):
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


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # Of a tokenizer without any, a pattern that matches nothing.
    return re.compile("|".join(map(re.escape, sorted(added, key=len, reverse=True))) or "(?!)")


def _refuse_special_tokens(special: re.Pattern[str], record: Record) -> None:
    texts = [record["text"]] if "text" in record else [m["content"] for m in record["messages"]]
    for text in texts:
        found = special.search(text or "")
        if found:
            around = text[max(0, found.start() - 20) : found.end() + 20]
            raise Fault("special token inside the text", f"{found.group()} in {around!r}")


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


def _labels(
    tokenizer: PreTrainedTokenizerBase,
    whole: list[int],
    prompts: list[list[int]],
    unlearned: list[list[int]],
) -> list[int]:
    labels = [IGNORED] * len(whole)
    stop, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    if bos is not None and bos != stop and whole[:2] == [bos, bos]:
        raise Fault("two beginning-of-sequence tokens")
    for prompt, following in zip(prompts, [*prompts[1:], whole], strict=True):
        start = len(prompt)
        if whole[:start] != prompt:
            raise Fault(
                "the answer's first characters merge with the prompt's last ones",
                repr(tokenizer.decode(whole[max(0, start - 4) : start + 4])),
            )
        try:
            end = whole.index(stop, start, len(following)) + 1
        except ValueError:
            raise Fault(
                "no stop token after an answer", f"{tokenizer.eos_token} is not written"
            ) from None
        labels[start:end] = whole[start:end]
    for beginning in unlearned:
        end = len(beginning)
        if whole[:end] != beginning:
            raise Fault("the end of the reasoning is no end of a token")
        start = max(len(prompt) for prompt in prompts if len(prompt) <= end)
        labels[start:end] = [IGNORED] * (end - start)
    return labels
