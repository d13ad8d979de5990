"""What trainers that are timed in turns have in common: the model, the options, the protocol.

Each runs in a process of its own, does one optimiser step for each line on its standard input, and
tells its cost as a line of JSON. Nothing of siftune here: LLaMA-Factory has an environment of its
own.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEED, RANK, LEARNING_RATE = 1, 16, 2e-4


class Given(NamedTuple):
    """To every contender."""

    rows: list[Any]
    batch: int  # examples a step
    base: Path  # a folder with the model and its tokenizer


class OneAtATime(TrainerCallback):
    """Waits for its turn before each step."""

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        sys.stdin.readline()
        self._began = time.monotonic(), time.process_time()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        ended = time.monotonic(), time.process_time()
        self._cost = [end - start for start, end in zip(self._began, ended, strict=True)]

    def on_log(self, *_args: Any, logs: dict[str, float], **_kwargs: Any) -> None:
        if "loss" in logs:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            told = dict(zip(("seconds", "cpu"), self._cost, strict=True))
            print(json.dumps({**told, "loss": logs["loss"], "peak_mb": peak}), flush=True)


def run(contenders: dict[str, Callable[[Given], Any]]) -> None:
    """One of them, by the command line: name, JSON file of rows, base, examples a step, threads."""
    name, file, base, *numbers = sys.argv[1:]
    batch, threads = map(int, numbers)
    torch.set_num_threads(threads)
    rows = json.loads(Path(file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = contenders[name](Given(rows, batch, Path(base)))
        trainer.add_callback(OneAtATime())
        trainer.train()


def tokenizer(given: Given) -> Any:
    return AutoTokenizer.from_pretrained(given.base)


def base(given: Given) -> Any:
    return AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)


def adapted(given: Given) -> Any:
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = base(given)
    torch.manual_seed(SEED)  # as ours
    return get_peft_model(model, config)


def options(batch: int) -> dict[str, Any]:
    """Of a trainer of Hugging Face or TRL."""
    return {
        "output_dir": ".", "per_device_train_batch_size": batch, "num_train_epochs": 1.0,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "seed": SEED,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
