"""Conversations as text and tokens: what the model reads, and which tokens it is trained on."""

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from siftune.stage import UserError

IGNORED = -100  # the label that no loss looks at

Messages = list[dict[str, str]]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, system: str | None = None
) -> str:
    """The text before the last assistant turn, ready for the model to answer."""
    turns = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return _render(tokenizer, with_system(turns, system), answer_next=True)


def with_system(messages: Messages, system: str | None) -> Messages:
    """`messages` behind a system message, unless there is one or `system` is None."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, system: str | None = None
) -> dict[str, list[int]]:
    """Token ids and labels of a conversation: every assistant turn and its stop token is trained.

    A turn is cut out by rendering the conversation up to it with the prompt for an answer, and up
    to its end. So the prompt that inference sends is the beginning of what is trained.

    Raises:
        UserError: the template is not additive, or writes no stop token after an answer.
    """
    ids: list[int] = []
    labels: list[int] = []
    for text, trained in _pieces(tokenizer, with_system(messages, system)):
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        num_trained = _through_stop_token(piece, tokenizer) if trained else 0
        labels += piece[:num_trained] + [IGNORED] * (len(piece) - num_trained)
    return {"input_ids": ids, "labels": labels}


def _pieces(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Iterator[tuple[str, bool]]:
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:index], answer_next=True)
        turn = _render(tokenizer, messages[: index + 1], answer_next=False)
        if not prompt.startswith(done) or not turn.startswith(prompt):
            raise UserError(
                "The chat template rewrites earlier turns: the prompt of an answer is not the "
                "beginning of the text that is trained.\n"
                f"  prompt: {prompt[-200:]!r}\n  text:   {turn[-200:]!r}"
            )
        yield prompt[len(done) :], False
        yield turn[len(prompt) :], True
        done = turn


def _through_stop_token(piece: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id not in piece:
        raise UserError(
            f"The chat template writes no stop token ({tokenizer.eos_token!r}) after an answer: "
            f"a model trained so would never stop.\n  answer: {tokenizer.decode(piece)[-200:]!r}"
        )
    # What the template writes after it (a line break, say) is never generated, so never trained.
    return len(piece) - piece[::-1].index(tokenizer.eos_token_id)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, answer_next: bool) -> str:
    text: Any = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=answer_next
    )
    return text
