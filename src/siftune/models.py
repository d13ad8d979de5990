"""Models and tokenizers in Hugging Face layout: where the base is, and how all are loaded."""

import functools
import shutil
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from siftune import files, gguf_tokenizer, provenance, sources
from siftune.sections import Model
from siftune.stage import UserError

MANIFEST = Path("models/base.json")
# The tokenizer with the one chat template, as encode wrote it for all that comes after.
TOKENIZER = Path("models/tokenizer")
# GGUF sources in Hugging Face layout: made again when they are gone.
CONVERTED = Path("work/models")


def fetch_base(model: Model) -> dict[str, Any]:
    """Bring `model.source` to this disk and describe it.

    Returns:
        The manifest: name, source, revision, license, stop_tokens, files (size in bytes and sha256
        of each), their common sha256, and the sha256 of the chat template.
    """
    path = sources.model_files(model.source, model.revision)
    if path.suffix == ".gguf":  # converted by the code of today, not by that of an earlier fetch
        shutil.rmtree(_converted_folder(path), ignore_errors=True)
    folder = folder_of(model.source, model.revision)
    described = files.describe_folder(folder)
    if not any(name.endswith(".safetensors") for name in described):
        raise UserError(
            f"params.yaml: model.source: {model.source} has no .safetensors file. Pickled weights "
            "run code when they are loaded: convert them, or choose a revision with safetensors."
        )
    template = read_tokenizer(folder).chat_template
    return {
        "name": model.name,
        "source": model.source,
        "revision": model.revision,
        "license": model.license,
        "stop_tokens": model.stop_tokens,
        "files": described,
        "sha256": provenance.digest(described),
        "chat_template_sha256": provenance.digest(template) if template else None,
    }


def folder_of(source: str, revision: str | None, *, offline: bool = False) -> Path:
    """As `sources.model_files`, a GGUF file as the folder that it was turned into."""
    path = sources.model_files(source, revision, offline=offline)
    return _converted(path) if path.suffix == ".gguf" else path


def base_folder() -> Path:
    """The base model's folder on this machine, as models/base.json describes it.

    Raises:
        UserError: it is not on this disk, or not the one that was fetched.
    """
    manifest = files.read_json(MANIFEST)
    folder = folder_of(manifest["source"], manifest["revision"], offline=True)
    for name, file in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            raise UserError(
                f"{path} is not the file that {MANIFEST} describes. Run `dvc repro --force fetch`."
            )
    return folder


def load_model(
    folder: Path, *, num_tokens: int = 0, dtype: torch.dtype | str | None = None, **how: Any
) -> PreTrainedModel:
    """The model in this device's dtype, for evaluation; safetensors only, no code of the folder.

    Args:
        num_tokens: of the tokenizer; a model with fewer gets rows for the new ones.
        how: more for from_pretrained of transformers; a device_map says where the model is.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or device_dtype(), use_safetensors=True, trust_remote_code=False, **how
    )
    make_room(model, num_tokens)
    return (model if "device_map" in how else model.to(device())).eval()


def make_room(model: PreTrainedModel, num_tokens: int) -> None:
    """New tokens begin as the mean of all others, in every stage alike, without a dice."""
    old = model.get_input_embeddings().num_embeddings
    if num_tokens <= old:
        return
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
        for weight in layer.parameters():
            weight.data = with_room(weight.data[:old], num_tokens)


def with_room(weight: Tensor, num_rows: int) -> Tensor:
    """[rows, …] → [num_rows, …]: the new rows are the mean of all others."""
    mean = weight.float().mean(dim=0).to(weight.dtype)
    return torch.cat([weight, mean.expand(num_rows - len(weight), *mean.shape)])


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with or without a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    # It would be saved with them, and offline nodes would write another file.
    for how_it_was_loaded in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(how_it_was_loaded, None)
    return tokenizer


def load_tokenizer(folder: Path = TOKENIZER) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder that a stage has written.

    Raises:
        UserError: its chat template is not the one that encode wrote the training text with.
    """
    tokenizer = read_tokenizer(folder)
    if folder != TOKENIZER and TOKENIZER.exists():
        trained = read_tokenizer(TOKENIZER)
        if tokenizer.chat_template != trained.chat_template:
            raise UserError(
                f"The chat template in {folder} (sha256 "
                f"{provenance.digest(tokenizer.chat_template)[:12]}) is not the one that the model "
                f"was trained with ({TOKENIZER}, {provenance.digest(trained.chat_template)[:12]}): "
                "it would be asked in another form than it learned. Run `dvc repro` to make "
                f"{folder} anew."
            )
    return tokenizer


def stop_token_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens at which the model in a folder stops, by its tokenizer and its own settings."""
    stops = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").exists():
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
        stops |= set(configured if isinstance(configured, list) else [configured])
    return stops - {None}


def all_stop_ids(
    base: Path, own: PreTrainedTokenizerBase, chosen: PreTrainedTokenizerBase
) -> set[int]:
    """Where the base stops by itself, and at the tokens that params.yaml names besides.

    Args:
        own: the base's tokenizer. chosen: that with the chat template, which may have more tokens.

    Raises:
        UserError: a name is no token of `chosen`.
    """
    stops = stop_token_ids(base, own)
    for name in files.read_json(MANIFEST)["stop_tokens"]:
        found = chosen(name, add_special_tokens=False)["input_ids"]
        if chosen.convert_ids_to_tokens(found) != [name]:
            raise UserError(
                f"params.yaml: model.stop_tokens: {name!r} is no token of this tokenizer, which "
                f"reads {chosen.convert_ids_to_tokens(found)}. Its special tokens are "
                f"{', '.join(chosen.all_special_tokens)}."
            )
        stops |= set(found)
    return stops


def write_stops(stops: set[int], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Say beside the tokenizer where an answer ends, as `stop_token_ids` reads it."""
    ids = sorted(stops | {tokenizer.eos_token_id})
    files.write_json(folder / "generation_config.json", {"eos_token_id": ids})


def stop_as_encoded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Let generation end where encode found that an answer ends: base and tuned model alike.

    Args:
        folder: of the tokenizer.
    """
    first = tokenizer.eos_token_id
    others = sorted(stop_token_ids(folder, tokenizer) - {first})
    model.generation_config.eos_token_id = [first, *others]


def load_gguf(header: gguf_tokenizer.Header, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a GGUF file, its weights as transformers dequantises them."""
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    # transformers parses the file three times, each time for seconds, since a vocabulary is long;
    # and it makes the same table of names for each module of the model.
    gguf.GGUFReader = lambda _path: header
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        return AutoModelForCausalLM.from_pretrained(
            header.path.parent, gguf_file=header.path.name, dtype=dtype
        )
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = own


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_dtype() -> torch.dtype:
    """bf16 on GPUs that have it, fp16 on older ones (V100), fp32 on the CPU, where bf16 is slow."""
    if not torch.cuda.is_available():
        return torch.float32
    return (
        torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    )


def _converted_folder(path: Path) -> Path:
    return CONVERTED / f"{path.stem}-{files.sha256(path)[:12]}"


def _converted(path: Path) -> Path:
    folder = _converted_folder(path)
    if not folder.exists():
        with files.published_folder(folder) as aside:
            _convert_gguf(path, aside)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as bf16 safetensors, with its tokenizer."""
    header = gguf_tokenizer.Header(path)
    tokenizer = gguf_tokenizer.load_gguf_tokenizer(header)
    model = load_gguf(header, torch.bfloat16)
    # The weights are plain numbers now; what says otherwise makes save_pretrained refuse.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
