"""DPO on rows of prompt_ids, chosen_ids and rejected_ids: see turns.py."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import turns
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from siftune import tokens
from siftune.sections import Dpo
from siftune.training import dpo

BETA = 0.1


class Ready(DPOTrainer):
    """TRL's, of rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_args: Any) -> Any:
        return dataset


def trl(rows: list[Any], batch: int) -> DPOTrainer:
    """Padded to the longest row of a batch, which has both answers."""
    return Ready(
        turns.adapted(),
        args=DPOConfig(**turns.options(batch), beta=BETA, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=turns.tokenizer(),
    )


def siftune(rows: list[Any], batch: int, *, micro_batch: int | str) -> Any:
    encoded = [{"id": str(i), **row} for i, row in enumerate(rows)]
    for split, some in {"train": encoded, "validation": encoded[:1]}.items():
        with tokens.write(split, Path(), "dpo") as out:
            out.write_batch(pa.RecordBatch.from_pylist(some, schema=tokens.SCHEMAS["dpo"]))
    section = Dpo(**turns.section(batch, micro_batch), loss="sigmoid", beta=BETA, gamma=None)
    return dpo.make_trainer(turns.base, turns.tokenizer(), dpo=section, **turns.surroundings(batch))


CONTENDERS: dict[str, turns.Make] = {
    "trl padded": trl,
    "siftune rows": lambda rows, batch: siftune(rows, batch, micro_batch=batch),
    "siftune packs": lambda rows, batch: siftune(rows, batch, micro_batch=turns.BUDGET),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
