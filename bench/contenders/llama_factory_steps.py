"""LLaMA-Factory's supervised fine-tuning on rows of input_ids and labels: see turns.py.

Its own model, collator and trainer; rows are packed as its processor of data packs them, but those
of each step by themselves, so that a step has the same examples as that of the others.
"""

import importlib.machinery
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import turns

# Imported by LLaMA-Factory for audio alone; the builds in package indexes ask for CUDA.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from datasets import Dataset  # noqa: E402
from llamafactory.data import (  # noqa: E402
    SFTDataCollatorWith4DAttentionMask,
    get_template_and_fix_tokenizer,
)
from llamafactory.data.processor.processor_utils import greedy_knapsack  # noqa: E402
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_model, load_tokenizer  # noqa: E402
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer  # noqa: E402
from transformers import set_seed  # noqa: E402

IGNORED = -100  # the label that no loss looks at

Rows = list[dict[str, Any]]


def trainer(given: turns.Given, *, pack: int | None = None) -> CustomSeq2SeqTrainer:
    """Padded to the longest row; or neatly packed into rows of so many tokens."""
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        turns.options(given.batch) | {
            "model_name_or_path": str(given.base), "stage": "sft", "do_train": True,
            "finetuning_type": "lora", "lora_rank": turns.RANK, "lora_alpha": turns.RANK,
            "lora_target": ",".join(turns.PROJECTIONS), "lora_dropout": 0.0, "dataset": "none",
            "template": "chatml", "cutoff_len": pack or 1024, "neat_packing": pack is not None,
            "disable_gradient_checkpointing": True, "remove_unused_columns": False,
            "per_device_train_batch_size": 1, "flash_attn": "sdpa", "trust_remote_code": False,
        }
    )  # fmt: skip
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    set_seed(turns.SEED)
    model = load_model(module["tokenizer"], model_args, finetuning_args, is_trainable=True)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template,
        model=model,
        pad_to_multiple_of=None if pack else 8,  # it would not fill the positions of a pack up
        label_pad_token_id=IGNORED,
        block_diag_attn=model_args.block_diag_attn,
        neat_packing=data_args.neat_packing,
        attn_implementation=model.config._attn_implementation,
        compute_dtype=model_args.compute_dtype,
        **module,
    )
    steps = [given.rows[i : i + given.batch] for i in range(0, len(given.rows), given.batch)]
    make = partial(packed, length=pack, fill=module["tokenizer"].pad_token_id) if pack else plain
    return CustomSeq2SeqTrainer(
        model=model,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=lambda items: collator(items[0]["rows"]),
        train_dataset=Dataset.from_list([{"rows": make(step)} for step in steps]),
        gen_kwargs={},
        **module,
    )


def plain(rows: Rows) -> Rows:
    return [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]


def packed(rows: Rows, *, length: int, fill: int) -> Rows:
    """As PackedSupervisedDatasetProcessor: each row's number in the mask, filled up to one more."""
    by_length: dict[int, Rows] = {}
    for row in rows:
        by_length.setdefault(len(row["input_ids"]), []).append(row)
    made = []
    for lengths in greedy_knapsack([len(row["input_ids"]) for row in rows], length):
        pack: dict[str, list[int]] = {
            name: [] for name in ("input_ids", "labels", "attention_mask", "position_ids")
        }
        for number, own in enumerate(lengths, 1):
            row = by_length[own].pop()
            pack["input_ids"] += row["input_ids"]
            pack["labels"] += row["labels"]
            pack["attention_mask"] += [number] * own
            pack["position_ids"] += range(own)
        missing = length + 1 - len(pack["input_ids"])
        for name, value in zip(pack, (fill, IGNORED, 0, 0), strict=True):
            pack[name] += [value] * missing
        made.append(pack)
    return made


CONTENDERS: dict[str, Callable[[turns.Given], Any]] = {
    "llama-factory padded": trainer,
    "llama-factory packs of 512": partial(trainer, pack=512),
    "llama-factory packs of 1024": partial(trainer, pack=1024),
}


if __name__ == "__main__":
    turns.run(CONTENDERS)
