"""GRPO on rows of a prompt and its completions, which are given and not made: see turns.py."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import turns
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from siftune import tokens
from siftune.rewards.choosing import Chosen
from siftune.sections import Grpo, Reward
from siftune.training import grpo

GROUP = 8  # completions of a prompt


def length(completions: list[str], **_: Any) -> list[float]:
    """Something that differs within a group, and costs nothing."""
    return [float(len(text) % 7) for text in completions]


def given(trainer: Any, rows: list[Any]) -> Any:
    """The same trainer, whose completions to a prompt are those of its row."""
    known = {tuple(row["prompt_ids"]): row["completions"] for row in rows}

    def found(prompts: list[Any], *_: Any) -> tuple[list[Any], None]:
        return [known[tuple(ids)][i % GROUP] for i, ids in enumerate(prompts)], None

    trainer._generate_single_turn = found
    trainer._tokenize_prompts = lambda prompts: (prompts, None, {})
    return trainer


def trl(rows: list[Any], batch: int) -> Any:
    """Padded to the longest prompt and the longest completion."""
    longest = max(len(ids) for row in rows for ids in row["completions"])
    config = GRPOConfig(
        **turns.options(batch), num_generations=GROUP, max_completion_length=longest,
        shuffle_dataset=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        turns.adapted(),
        reward_funcs=length,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [row["prompt_ids"] for row in rows]}),
        processing_class=turns.tokenizer(),
    )
    return given(trainer, rows)


def siftune(rows: list[Any], batch: int, *, micro_batch: int | str) -> Any:
    record = {"messages": [{"role": "user", "content": ""}], "answer": "", "fields": {}}
    encoded = [
        {"id": str(i), "prompt_ids": row["prompt_ids"], "record": json.dumps(record)}
        for i, row in enumerate(rows)
    ]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path(), "grpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(some, schema=tokens.SCHEMAS["grpo"]))
    values = turns.section(batch, micro_batch)
    values["trainer"] |= {"shuffle_dataset": False}
    section = Grpo(
        **values,
        num_generations=GROUP,
        max_new_tokens=max(len(ids) for row in rows for ids in row["completions"]),
        rewards=[Reward("length", 1.0)],
        generate="transformers",
    )
    trainer = grpo.make_trainer(
        turns.base(),
        turns.tokenizer(),
        grpo=section,
        chosen=[Chosen("length", 1.0, lambda _, text, __: length([text])[0], {})],
        **turns.surroundings(batch),
    )
    trainer.evaluates_first = False
    return given(trainer, rows)


CONTENDERS: dict[str, turns.Make] = {
    "trl padded": trl,
    "siftune rows": lambda rows, batch: siftune(rows, batch, micro_batch=batch),
    "siftune packs": lambda rows, batch: siftune(rows, batch, micro_batch=turns.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
