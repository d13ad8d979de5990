"""Conversations as the chat template writes them."""

from collections.abc import Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from siftune.data.faults import Fault

Messages = list[dict[str, Any]]


def with_system(messages: Messages, system: str | None) -> Messages:
    """`messages` behind a system message, unless there is one or `system` is None."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    system: str | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> str:
    """The text before the last assistant turn, ready for the model to answer."""
    turns = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return render(tokenizer, with_system(turns, system), answer_next=True, tools=tools)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    answer_next: bool,
    tools: Sequence[Any] | None = None,
) -> str:
    """The text of a conversation, as the tokenizer's own `apply_chat_template` writes it.

    Raises:
        Fault: the template refuses it.
    """
    try:
        # What apply_chat_template calls, without what it does once for each of 50,000 rows.
        texts, _ = render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=tokenizer.chat_template,
            add_generation_prompt=answer_next,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        raise Fault("refused by the chat template", str(error)) from None
    text: str = texts[0]
    return text
