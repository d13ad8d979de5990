"""Supervised fine-tuning on rows of input_ids and labels: see turns.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ours
import turns
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from siftune import output_head, tokens
from siftune.sections import Sft
from siftune.training import sft


def padded(given: turns.Given) -> Trainer:
    """As in many notebooks: every row is as long as the longest may be."""
    cut_off = 256 * -(-max(len(row["input_ids"]) for row in given.rows) // 256)
    return Trainer(
        turns.adapted(given),
        TrainingArguments(**turns.options(given.batch)),
        train_dataset=Dataset.from_list(given.rows),
        data_collator=DataCollatorForSeq2Seq(
            turns.tokenizer(given), padding="max_length", max_length=cut_off
        ),
    )


def trl(given: turns.Given, **special: Any) -> SFTTrainer:
    """Padded to the longest row of a batch."""
    output_head.install_on_cpu()  # without it, TRL 1.15 trains nothing on a CPU
    special |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    return SFTTrainer(
        turns.adapted(given),
        SFTConfig(**turns.options(given.batch), **special),
        train_dataset=Dataset.from_list(given.rows),
        processing_class=turns.tokenizer(given),
    )


def trl_padding_free(given: turns.Given) -> SFTTrainer:
    """All rows of a batch in one; without FlashAttention, that is one mask over all of them."""
    return trl(given, padding_free=True)


def siftune(given: turns.Given, *, micro_batch: int | str) -> Any:
    encoded = [(str(i), row["input_ids"], row["labels"]) for i, row in enumerate(given.rows)]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path()) as out:
            out.write_batch(tokens.batch(some))
    section = Sft(**ours.section(given.batch, micro_batch))
    return sft.make_trainer(
        turns.base(given), turns.tokenizer(given), sft=section, **ours.surroundings(given.batch)
    )


CONTENDERS: dict[str, Callable[[turns.Given], Any]] = {
    "hf padded to the cut-off": padded,
    "trl padded": trl,
    "trl padding-free": trl_padding_free,
    "siftune rows": lambda given: siftune(given, micro_batch=given.batch),
    "siftune packs": lambda given: siftune(given, micro_batch=ours.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
