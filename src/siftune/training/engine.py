"""Unsloth: faster kernels for LoRA on a GPU. Importing it patches transformers, TRL and PEFT."""

from typing import Any

from siftune.sections import Load
from siftune.training import requirements


def start(load: Load) -> Any:
    """Unsloth's loader where `load.engine` asks for it, else None.

    A training calls it before anything imports transformers, and no other process ever does: what
    evaluates and merges is the stock model.

    Raises:
        UserError: there is no GPU, or it is not installed.
    """
    if load.engine != "unsloth":
        return None
    requirements.require_machine(load)
    import unsloth

    return unsloth.FastLanguageModel
