"""GRPO on rows of a prompt and its completions, which are given and not made: see turns.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ours
import pyarrow as pa
import turns
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from siftune import output_head, tokens
from siftune.rewards.choosing import Chosen
from siftune.sections import Grpo, Reward
from siftune.training import grpo

GROUP = 8  # completions of a prompt


def length(completions: list[str], **_: Any) -> list[float]:
    """Something that differs within a group, and costs nothing."""
    return [float(len(text) % 7) for text in completions]


def not_generating(trainer: Any, given: turns.Given) -> Any:
    """The same trainer, whose completions to a prompt are those of its row."""
    known = {tuple(row["prompt_ids"]): row["completions"] for row in given.rows}

    def found(prompts: list[Any], *_: Any) -> tuple[list[Any], None]:
        return [known[tuple(ids)][i % GROUP] for i, ids in enumerate(prompts)], None

    trainer._generate_single_turn = found
    trainer._tokenize_prompts = lambda prompts: (prompts, None, {})
    return trainer


def trl(given: turns.Given) -> Any:
    """Padded to the longest prompt and the longest completion."""
    output_head.install_on_cpu()
    longest = max(len(ids) for row in given.rows for ids in row["completions"])
    config = GRPOConfig(
        **turns.options(given.batch), num_generations=GROUP, max_completion_length=longest,
        shuffle_dataset=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        turns.adapted(given),
        reward_funcs=length,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [row["prompt_ids"] for row in given.rows]}),
        processing_class=turns.tokenizer(given),
    )
    return not_generating(trainer, given)


def siftune(given: turns.Given, *, micro_batch: int | str) -> Any:
    record = {"messages": [{"role": "user", "content": ""}], "answer": "", "fields": {}}
    encoded = [
        {"id": str(i), "prompt_ids": row["prompt_ids"], "record": json.dumps(record)}
        for i, row in enumerate(given.rows)
    ]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path(), "grpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(some, schema=tokens.SCHEMAS["grpo"]))
    values = ours.section(given.batch, micro_batch)
    values["trainer"] |= {"shuffle_dataset": False}
    section = Grpo(
        **values,
        num_generations=GROUP,
        max_new_tokens=max(len(ids) for row in given.rows for ids in row["completions"]),
        rewards=[Reward("length", 1.0)],
        generate="transformers",
    )
    trainer = grpo.make_trainer(
        turns.base(given),
        turns.tokenizer(given),
        grpo=section,
        chosen=[Chosen("length", 1.0, lambda _, text, __: length([text])[0], {})],
        **ours.surroundings(given.batch),
    )
    trainer.evaluates_first = False
    return not_generating(trainer, given)


CONTENDERS: dict[str, Callable[[turns.Given], Any]] = {
    "trl padded": trl,
    "siftune rows": lambda given: siftune(given, micro_batch=given.batch),
    "siftune packs": lambda given: siftune(given, micro_batch=ours.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
