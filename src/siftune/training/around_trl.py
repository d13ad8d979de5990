"""What TRL's trainers leave to be done, whatever the method."""

from typing import Any

from transformers import PreTrainedModel, PrinterCallback

from siftune.sections import Lora
from siftune.training import adapters


def settle(trainer: Any, model: PreTrainedModel, lora: Lora | None) -> None:
    """Make a new trainer ready for its first step.

    Args:
        model: as the trainer was given it, with the adapter.
    """
    for weight in model.parameters():
        if weight.requires_grad:  # TRL makes bf16 of an adapter on a quantised base, on V100, too
            weight.data = weight.data.float()
    if lora:
        trainer.first_factors = adapters.first_factors(model, lora)
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None  # TRL asks for it, and PEFT's wrapper of a head with new rows has none
    trainer.remove_callback(PrinterCallback)
