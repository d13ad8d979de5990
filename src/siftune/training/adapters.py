"""LoRA by PEFT: the section → an adapter on a base, and the adapter → files."""

from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from siftune import files
from siftune.sections import Lora


def config(lora: Lora, new_rows: dict[str, list[int]] | None = None) -> LoraConfig:
    """The section as PEFT takes it; new rows of the embedding and the head are trained whole."""
    return LoraConfig(
        trainable_token_indices=new_rows,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )


def new_rows(
    model: PreTrainedModel, num_tokens: int, num_new_tokens: int
) -> dict[str, list[int]] | None:
    """Rows of tokens that the base has not seen, by the layer's name: `{"embed_tokens": [7, 8]}`.

    The layers are the embedding and, where it has weights of its own, the output head.
    """
    if num_new_tokens == 0:
        return None
    layers = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    rows = list(range(num_tokens - num_new_tokens, num_tokens))
    return {
        name.rpartition(".")[2]: rows
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
    }


def save(model: PeftModel, folder: Path, *, base: str) -> None:
    """Write the adapter as safetensors; it names its base by source, not by this machine's path."""
    # Rows of new tokens are in the adapter; the base's own are not copied into it.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    path = folder / "adapter_config.json"
    settings = files.read_json(path) | {"base_model_name_or_path": base}
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()  # PEFT's set has another order in every process
    files.write_json(path, settings)
    (folder / "README.md").unlink()  # PEFT's empty model card; ours says what was measured
