"""DPO on rows of prompt_ids, chosen_ids and rejected_ids: see turns.py."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ours
import pyarrow as pa
import turns
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from siftune import output_head, tokens
from siftune.sections import Dpo
from siftune.training import dpo

BETA = 0.1


class Ready(DPOTrainer):
    """TRL's, of rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_args: Any) -> Any:
        return dataset


def trl(given: turns.Given) -> DPOTrainer:
    """Padded to the longest row of a batch, which has both answers."""
    output_head.install_on_cpu()
    return Ready(
        turns.adapted(given),
        args=DPOConfig(**turns.options(given.batch), beta=BETA, max_length=None),
        train_dataset=Dataset.from_list(given.rows),
        processing_class=turns.tokenizer(given),
    )


def siftune(given: turns.Given, *, micro_batch: int | str) -> Any:
    encoded = [{"id": str(i), **row} for i, row in enumerate(given.rows)]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path(), "dpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(some, schema=tokens.SCHEMAS["dpo"]))
    section = Dpo(**ours.section(given.batch, micro_batch), loss="sigmoid", beta=BETA, gamma=None)
    return dpo.make_trainer(
        partial(turns.base, given), turns.tokenizer(given), dpo=section,
        **ours.surroundings(given.batch),
    )  # fmt: skip


CONTENDERS: dict[str, Callable[[turns.Given], Any]] = {
    "trl padded": trl,
    "siftune rows": lambda given: siftune(given, micro_batch=given.batch),
    "siftune packs": lambda given: siftune(given, micro_batch=ours.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
