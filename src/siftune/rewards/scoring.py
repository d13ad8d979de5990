"""Rewards as TRL calls them: the completions of a batch → a score each."""

import json
import re
from collections.abc import Callable
from typing import Any

from siftune.rewards.choosing import Chosen

# A template for reasoning may open the section itself, as the last thing of the prompt.
_OPENED = re.compile(r"<[A-Za-z][\w-]*>\s*\Z")
TAIL = 16  # tokens of the prompt in which to look for it


def seen(tokenizer: Any, prompt_ids: list[int], completion: str) -> str:
    """What rewards see: the completion, with the tag before it that the prompt opened for it."""
    opened = _OPENED.search(tokenizer.decode(prompt_ids[-TAIL:]))
    return f"{opened[0]}{completion}" if opened else completion


def for_trl(reward: Chosen, tokenizer: Any) -> Callable[..., list[float]]:
    """The reward as a function of a batch, as `GRPOTrainer` takes it; its name is the curve's."""

    def scores(
        prompts: list[list[int]],  # token ids
        completions: list[str],
        completion_ids: list[list[int]],
        record: list[str],  # JSON
        **_: Any,
    ) -> list[float]:
        rows = zip(prompts, completions, completion_ids, map(json.loads, record), strict=True)
        return [
            reward.score(
                one["messages"], seen(tokenizer, prompt, text), {**one, "num_tokens": len(ids)}
            )
            for prompt, text, ids, one in rows
        ]

    scores.__name__ = reward.name
    return scores
