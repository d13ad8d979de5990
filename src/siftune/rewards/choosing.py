"""From the rewards that params.yaml names to functions, tried before anything is loaded."""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, get_type_hints

from pydantic import TypeAdapter, ValidationError

from siftune.data.faults import Fault
from siftune.data.formats import Record
from siftune.data.turns import Message
from siftune.rewards import answers, lengths, own, poems, tags
from siftune.sections import Reward
from siftune.stage import UserError

REWARDS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        answers.correct_answer,
        answers.integer_answer,
        tags.strict_format,
        tags.soft_format,
        tags.tag_count,
        answers.numeric_answer,
        answers.exact_answer,
        lengths.length,
        poems.poem_form,
        poems.rhyme,
    )
}


class Chosen(NamedTuple):
    """A reward of params.yaml; its name is that of its curve."""

    name: str
    weight: float
    function: Callable[..., float]
    params: dict[str, Any]

    def score(self, prompt: list[Message], completion: str, record: Record) -> float:
        """The reward, before its weight.

        Raises:
            Fault: the record lacks what this reward needs.
            UserError: the user's own function fails.
        """
        return self.function(prompt, completion, record, **self.params)


def choose(rewards: list[Reward], key: str) -> list[Chosen]:
    """The functions of these rewards.

    Args:
        key: where they stand in params.yaml, such as `grpo.rewards`.

    Raises:
        UserError: a reward is unknown or there twice, its file has an error, its params do not fit,
            or none has a weight.
    """
    if not any(reward.weight for reward in rewards):
        raise UserError(
            f"params.yaml: {key}: all weights are 0: nothing would be trained. A weight of 0 only "
            "draws a curve; give one of them another."
        )
    chosen = []
    for place, reward in enumerate(rewards):
        try:
            if reward.name in [one.name for one in rewards[:place]]:
                raise UserError(f"{reward.name} is there twice: their curves would have one name.")
            function = REWARDS.get(reward.name) or _own(reward.name)
            _check_params(function, reward)
        except UserError as error:
            raise UserError(f"params.yaml: {key}[{place}]: {error}") from None
        chosen.append(Chosen(reward.name, reward.weight, function, reward.params))
    return chosen


def refuse_unfit(chosen: list[Chosen], records: Iterable[Record], key: str) -> None:
    """Try every reward on every record, with an empty completion and with the true answer.

    Raises:
        UserError: a record lacks what a reward needs, or the user's own function fails.
    """
    faults: Counter[str] = Counter()
    first: dict[str, str] = {}
    num_records = 0
    for record in records:
        num_records += 1
        for place, reward in enumerate(chosen):
            try:
                for completion in ("", str(record.get("answer", ""))):
                    reward.score(record["messages"], completion, {"num_tokens": 0, **record})
            except Fault as fault:
                reason = f"{reward.name}: {fault.reason}"
                faults[reason] += 1
                first.setdefault(reason, f"{record['id']} {fault.detail}".strip())
            except UserError as error:
                raise UserError(f"params.yaml: {key}[{place}]: {error}") from None
    if faults:
        told = [
            f"{number} of {num_records} records: {reason}. The first: {first[reason]}"
            for reason, number in faults.most_common()
        ]
        raise UserError(
            "\n  ".join([f"params.yaml: {key}: these rewards do not fit the data.", *told])
        )


def _own(name: str) -> Callable[..., float]:
    if ":" not in name:
        raise UserError(
            f"there is no reward {name!r}. Valid: {', '.join(REWARDS)}, or file.py:function of "
            f"{own.OWN}."
        )
    return own.load(name)


def _check_params(function: Callable[..., float], reward: Reward) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(None, None, None, **reward.params)
    except TypeError as error:
        valid = ", ".join(list(signature.parameters)[3:]) or "none"
        raise UserError(f"{reward.name}: {error}. Its params: {valid}.") from None
    if reward.name not in REWARDS:
        return  # what its author wrote as types is no promise
    types = get_type_hints(function, include_extras=True)
    for param, value in reward.params.items():
        try:
            TypeAdapter(types[param]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(f"{reward.name}: params.{param}: {problem}, not {value!r}.") from None
