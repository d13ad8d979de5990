"""Sections for trainings of seconds."""

from siftune.sections import Dpo, Load, Lora, Sft

LOAD = Load(engine="hf", dtype="auto", attention="auto", quantise=None, double_quantise=False)


def lora(**changed) -> Lora:
    values = {
        "rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear",
        "rslora": False, "dora": False, "init": "default", "modules_to_save": [],
    }  # fmt: skip
    return Lora(**values | changed)


def sft(**changed) -> Sft:
    values = {
        "seed": 1, "learning_rate": 1e-2, "num_epochs": 1.0, "global_batch": 4, "micro_batch": 4,
        "eval_every": 2, "save_every": "100 steps", "keep": "last", "patience": None,
        "lora": lora(), "load": LOAD, "trainer": {"gradient_checkpointing": False},
    }  # fmt: skip
    return Sft(**values | changed)


def dpo(**changed) -> Dpo:
    values = {"loss": "sigmoid", "beta": 0.5, "gamma": None}
    return Dpo(**vars(sft()) | values | changed)
