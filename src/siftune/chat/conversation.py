"""Conversations as the chat template writes them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

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
        text: str = _compiled(tokenizer.chat_template).render(
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=answer_next,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        raise Fault("refused by the chat template", str(error)) from None
    return text


@cache
def _compiled(template: str) -> jinja2.Template:
    """The template in transformers' own sandbox."""
    compiled: jinja2.Template = _compile_jinja_template(template)
    # jinja2 copies these for every text, of a ChainMap slowly: that was a third of the time.
    compiled.globals = dict(compiled.globals)
    return compiled
