"""What `lora` and `load` of a section need: of each other, and of the machine that trains."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from siftune import batches
from siftune.sections import Dpo, Grpo, Load, Lora, Training
from siftune.stage import UserError

if TYPE_CHECKING:
    import torch

# Options of TRL and transformers that look at padded rows, or draw for a batch what is a row's.
OF_ROWS = (
    "packing", "eval_packing", "padding_free", "loss_type", "label_smoothing_factor",
    "neftune_noise_alpha", "include_num_input_tokens_seen", "torch_compile", "fsdp", "deepspeed",
)  # fmt: skip
# Of GRPO, what looks at the completions of a micro batch together.
OF_COMPLETIONS = ("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy")
# First weights of an adapter that change nothing: the others take something from the base.
STAYS = ("default", "gaussian", "orthogonal")
# Optimisers whose state has the shape of the weights, and so is spread like them.
IN_SHARDS = ("adamw_torch", "adamw_torch_fused")
FOUR_BIT = ("nf4", "fp4")
# FlashAttention-2 has kernels from Ampere on.
FLASH_FROM = (8, 0)


def require_consistent(section: Training) -> None:
    """Refuse what cannot go together on any machine; no library of models is imported.

    Raises:
        UserError: with the key, and what is valid.
    """
    found = [*_contradictions(section.lora, section.load), *_against_packs(section)]
    found += _against_shards(section)
    if isinstance(section, Dpo):
        found += _of_preferences(section)
    if isinstance(section, Grpo):
        found += _of_rewards(section)
    for key, problem in found:
        raise UserError(f"params.yaml: {section.phase}.{key}: {problem}")


def require_machine(load: Load) -> None:
    """Refuse what this machine cannot do.

    Raises:
        UserError: with the key, and what would do here.
    """
    import torch

    from siftune import models

    has_gpu = torch.cuda.is_available()
    if load.dtype == "fp16":
        _require_gpu(
            has_gpu, "load.dtype: fp16", "auto, fp32 or bf16 (on most CPUs slower than fp32)"
        )
    if load.dtype == "bf16" and models.device_dtype() == torch.float16:
        raise UserError(
            "params.yaml: load.dtype: bf16: this GPU has none (it came with Ampere). Write auto "
            "(which is fp16 here), fp16 or fp32."
        )
    if load.engine == "unsloth":
        _require_gpu(has_gpu, "load.engine: unsloth", "hf")
        _require_package("unsloth", "load.engine: unsloth", "hf")
    if load.quantise:
        _require_gpu(has_gpu, f"load.quantise: {load.quantise}", "null")
        _require_package("bitsandbytes", f"load.quantise: {load.quantise}", "null")
    _require_attention(load, dtype_of(load), has_gpu=has_gpu)


def require_generation(grpo: Grpo) -> None:
    """Refuse a way to generate completions that this machine does not have.

    Raises:
        UserError: with the key, and what would do here.
    """
    import torch

    if grpo.generate == "vllm":
        _require_gpu(torch.cuda.is_available(), "grpo.generate: vllm", "transformers")
        _require_package("vllm", "grpo.generate: vllm", "transformers")


def dtype_of(load: Load) -> "torch.dtype":
    """What is computed in: as params say, or by the device (`models.device_dtype`)."""
    import torch

    from siftune import models

    if load.dtype == "auto":
        return models.device_dtype()
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[load.dtype]


def _contradictions(lora: Lora | None, load: Load) -> list[tuple[str, str]]:
    found = []
    if load.double_quantise and load.quantise not in FOUR_BIT:
        found.append(("load.double_quantise", "needs load.quantise: nf4 or fp4; else write false."))
    if lora is None:
        if load.quantise:
            found.append(
                ("load.quantise", "quantised weights cannot be trained themselves. Set a lora.")
            )
        if load.engine == "unsloth":
            found.append(("load.engine", "unsloth is for lora here; without one, write hf."))
        return found
    moves = lora.init.startswith("pissa") or lora.init in ("olora", "loftq")
    if lora.dora and moves:
        found.append(
            ("lora.dora", f"has no exact adapter on the base with init {lora.init}: use default.")
        )
    if lora.init == "loftq" and load.quantise not in FOUR_BIT:
        found.append(
            ("lora.init", "loftq makes up for what 4 bits lose: it needs load.quantise nf4 or fp4.")
        )
    if lora.init.startswith("pissa") and load.quantise:
        found.append(
            ("lora.init", "pissa splits weights that are not quantised: use loftq or default.")
        )
    if load.engine == "unsloth" and (lora.dora or lora.init != "default"):
        found.append(("load.engine", "unsloth takes no dora and only init default here: write hf."))
    return found


def _against_packs(section: Training) -> list[tuple[str, str]]:
    """What is of padded rows, where a token budget asks for packs."""
    if batches.budget(section.micro_batch) is None:
        return []
    trainer, load = section.trainer, section.load
    options: tuple[str, ...] = OF_ROWS
    if isinstance(section, Grpo):  # its losses are none of padded rows
        options = (*(set(OF_ROWS) - {"loss_type"}), *OF_COMPLETIONS)
    found = [(f"trainer.{key}", trainer[key]) for key in options if trainer.get(key)]
    found += [("load.engine", "unsloth")] if load.engine == "unsloth" else []
    found += [("load.attention", load.attention)] if load.attention != "auto" else []
    return [
        (key, f"{value} does not go with packs ({section.micro_batch}, in micro_batch): leave it "
        "out, or write a number of rows there.")
        for key, value in found
    ]  # fmt: skip


def _against_shards(section: Training) -> list[tuple[str, str]]:
    """What needs whole weights, where each process is to hold a part of them."""
    if not section.trainer.get("fsdp"):
        return []
    optimiser = section.trainer.get("optim", IN_SHARDS[0])
    found: list[tuple[str, object]] = []
    found += [("trainer.optim", optimiser)] if optimiser not in IN_SHARDS else []
    found += [("keep", section.keep)] if section.keep == "best" else []
    found += [("load.quantise", section.load.quantise)] if section.load.quantise else []
    found += [("load.engine", "unsloth")] if section.load.engine == "unsloth" else []
    if section.lora and section.lora.init not in STAYS:
        found.append(("lora.init", section.lora.init))
    told = [
        (key, f"{value} needs whole weights, and trainer.fsdp spreads them over the processes. "
         f"Valid with it: keep last, quantise null, engine hf, init default, optim "
         f"{' or '.join(IN_SHARDS)}; or leave fsdp out.")
        for key, value in found
    ]  # fmt: skip
    if isinstance(section, Dpo | Grpo):
        told.append(("trainer.fsdp", "is for pretrain and sft: leave it out here."))
    return told


def _of_preferences(dpo: Dpo) -> list[tuple[str, str]]:
    found = []
    if (dpo.gamma is None) == (dpo.loss == "simpo"):
        found.append(
            ("gamma", "simpo needs one: 0.3 to 0.5 times beta, its paper says.")
            if dpo.gamma is None
            else ("gamma", f"is of simpo only; with {dpo.loss}, write null.")
        )
    if dpo.loss == "kto" and dpo.micro_batch == 1:
        found.append(
            ("micro_batch", "kto compares each answer with others of its micro batch: at least 2.")
        )
    if dpo.loss in ("exo_pair", "robust") and not dpo.trainer.get("label_smoothing"):
        found.append(
            ("trainer", f"{dpo.loss} needs label_smoothing, the share of pairs that are the wrong "
             "way round: say 1.0e-3.")
        )  # fmt: skip
    if dpo.lora and dpo.lora.dropout and dpo.trainer.get("disable_dropout", True):
        found.append(
            ("lora.dropout", "TRL trains preferences without dropout, since it would be noise in "
             "what is compared. Write 0.0, or dpo.trainer.disable_dropout: false.")
        )  # fmt: skip
    return found


def _of_rewards(grpo: Grpo) -> list[tuple[str, str]]:
    found = []
    if grpo.load.engine == "unsloth":
        found.append(
            ("load.engine", "unsloth has a GRPO of its own, which does not go on where it was "
             "stopped. Write hf; grpo.generate: vllm is what makes it fast.")
        )  # fmt: skip
    if grpo.trainer.get("beta") and grpo.lora is None:
        found.append(
            ("trainer.beta", "compares with the weights before, of which there is no copy where "
             "all of them are trained. Set a lora, or beta: 0.")
        )  # fmt: skip
    return found


def _require_gpu(has_gpu: bool, what: str, instead: str) -> None:
    if not has_gpu:
        raise UserError(
            f"params.yaml: {what} needs an NVIDIA GPU, and there is none here. Train on a "
            f"machine with one, or write {instead}."
        )


def _require_package(package: str, what: str, instead: str) -> None:
    if find_spec(package) is None:
        raise UserError(
            f"params.yaml: {what} needs the package {package}, which is not installed here. "
            f"Use the image that has it (docs/images.md), install it, or write {instead}."
        )


def _require_attention(load: Load, dtype: "torch.dtype", *, has_gpu: bool) -> None:
    import torch

    key = f"load.attention: {load.attention}"
    if load.attention == "flex_attention":
        _require_gpu(has_gpu, key, "auto")
    if load.attention == "flash_attention_2":
        _require_gpu(has_gpu, key, "auto")
        _require_package("flash_attn", key, "auto")
        if dtype == torch.float32 or torch.cuda.get_device_capability() < FLASH_FROM:
            raise UserError(
                f"params.yaml: {key} needs bf16 or fp16, and a GPU from Ampere (A100) on. "
                "Write auto."
            )
