"""Conversations as the chat template writes them."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from siftune.chat import scaffolds
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
    return Writer(tokenizer).render(messages, answer_next=answer_next, tools=tools)


class Writer:
    """Renders many conversations as `render` does, with a tokenizer that does not change.

    Where the template only copies their texts, it is asked once for conversations of the same
    roles, and the texts are put in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._template, self._only_copies = _compiled(tokenizer.chat_template)
        self._tokens = tokenizer.special_tokens_map
        self._scaffolds: dict[tuple[str | bool, ...], tuple[list[str], list[int]]] = {}

    def render(
        self, messages: Messages, *, answer_next: bool, tools: Sequence[Any] | None = None
    ) -> str:
        """The text of a conversation; errors as for `render`."""
        if tools or not self._only_copies or any(map(_is_more_than_text, messages)):
            return self._rendered(messages, answer_next, tools)
        key = (answer_next, *[message["role"] for message in messages])
        if key not in self._scaffolds:
            marked = [
                {"role": message["role"], "content": scaffolds.mark(index)}
                for index, message in enumerate(messages)
            ]
            self._scaffolds[key] = scaffolds.split(self._rendered(marked, answer_next, None))
        parts, order = self._scaffolds[key]
        parts[1::2] = [messages[index]["content"] for index in order]
        return "".join(parts)

    def _rendered(self, messages: Messages, answer_next: bool, tools: Sequence[Any] | None) -> str:
        try:
            text: str = self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=answer_next,
                **self._tokens,
            )
        except jinja2.TemplateError as error:
            raise Fault("refused by the chat template", str(error)) from None
        return text


def _is_more_than_text(message: dict[str, Any]) -> bool:
    return len(message) != 2 or not isinstance(message.get("content"), str)


@cache
def _compiled(template: str) -> tuple[jinja2.Template, bool]:
    """The template in transformers' own sandbox, and whether it only copies texts."""
    compiled: jinja2.Template = _compile_jinja_template(template)
    # jinja2 copies these for every text, of a ChainMap slowly: that was a third of the time.
    compiled.globals = dict(compiled.globals)
    tree = compiled.environment.parse(template)
    return compiled, scaffolds.only_copies_texts(tree)
