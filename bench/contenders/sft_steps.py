"""Supervised fine-tuning on rows of input_ids and labels: see turns.py."""

from pathlib import Path
from typing import Any

import turns
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from siftune import tokens
from siftune.sections import Sft
from siftune.training import sft

PADDED = 256  # tokens: every row of the notebook's


def padded(rows: list[Any], batch: int) -> Trainer:
    """As in many notebooks: every row is as long as the longest may be."""
    return Trainer(
        turns.adapted(),
        TrainingArguments(**turns.options(batch)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(
            turns.tokenizer(), padding="max_length", max_length=PADDED
        ),
    )


def trl(rows: list[Any], batch: int, **special: Any) -> SFTTrainer:
    """Padded to the longest row of a batch."""
    special |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    return SFTTrainer(
        turns.adapted(),
        SFTConfig(**turns.options(batch), **special),
        train_dataset=Dataset.from_list(rows),
        processing_class=turns.tokenizer(),
    )


def trl_padding_free(rows: list[Any], batch: int) -> SFTTrainer:
    """All rows of a batch in one; without FlashAttention, that is one mask over all of them."""
    return trl(rows, batch, padding_free=True)


def siftune(rows: list[Any], batch: int, *, micro_batch: int | str) -> Any:
    encoded = [(str(i), row["input_ids"], row["labels"]) for i, row in enumerate(rows)]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path()) as out:
            out.write_batch(tokens.batch(some))
    section = Sft(**turns.section(batch, micro_batch))
    return sft.make_trainer(
        turns.base(), turns.tokenizer(), sft=section, **turns.surroundings(batch)
    )


CONTENDERS: dict[str, turns.Make] = {
    "hf padded to 256": padded,
    "trl padded": trl,
    "trl padding-free": trl_padding_free,
    "siftune rows": lambda rows, batch: siftune(rows, batch, micro_batch=batch),
    "siftune packs": lambda rows, batch: siftune(rows, batch, micro_batch=turns.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
