"""Does this image work? Its `%test`: `python image_test.py` inside it, with or without a GPU."""

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VARIANT = os.environ["SIFTUNE_IMAGE_VARIANT"]
STACK = ("accelerate", "datasets", "dvc.repo", "gguf", "lm_eval", "mlflow", "peft", "trl")
ON_GPUS = {"cuda": ("bitsandbytes", "vllm"), "volta": ("bitsandbytes",), "cpu": ()}
# It asks for a GPU when it is imported.
WITH_GPU = {"cuda": ("unsloth",), "volta": (), "cpu": ()}
# What each prints tells whether it runs; quantize ends with 1 after its usage.
TOOLS = (
    ("llama-quantize", "--help", "usage"),
    ("llama-perplexity", "--version", "version"),
    ("llama-server", "--version", "version"),
)
LLAMA_CPP = Path(sys.prefix, "share/llama.cpp/convert_hf_to_gguf.py")


def main() -> None:
    require(sys.version_info[:2] == (3, 11), f"Python is {sys.version}, the locks are for 3.11")
    require(sys.flags.no_user_site, "packages of a user's home are not kept out")
    require(sys.flags.safe_path, "modules of the current folder are not kept out")
    run("git", "--version")
    if VARIANT != "cpu":
        compiles_for_triton()
    if VARIANT == "base":
        return
    imports()
    llama_cpp()
    with tempfile.TemporaryDirectory() as folder:
        trains_one_step(folder)
    print(f"siftune-{VARIANT}: works")


def require(holds: object, what: str) -> None:
    if not holds:
        sys.exit(f"siftune-{VARIANT}: {what}")


def run(*command: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    require(done.returncode == 0, f"{' '.join(command)} fails:\n{done.stdout}")


def compiles_for_triton() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "launcher.c")
        source.write_text("#include <Python.h>\nint main(void) { return Py_IsInitialized(); }\n")
        headers = subprocess.run(
            [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        run("gcc", f"-I{headers}", "-fPIC", "-shared", str(source), "-o", f"{folder}/launcher.so")


def imports() -> None:
    import torch

    for name in (*STACK, *ON_GPUS[VARIANT]):
        importlib.import_module(name)
    for name in WITH_GPU[VARIANT]:
        if torch.cuda.is_available():
            importlib.import_module(name)
        else:
            require(importlib.metadata.version(name), f"{name} is not installed")
    kinds = torch._C._cuda_getArchFlags() or "" if torch.version.cuda else ""
    if VARIANT == "volta":
        require("sm_70" in kinds.split(), f"torch has code for {kinds}, not for sm_70 (V100)")
    print(f"torch {torch.__version__}, built for: {kinds or 'the CPU'}")


def llama_cpp() -> None:
    # Its modules lie beside it, which a safe path keeps from it.
    beside = {**os.environ, "PYTHONPATH": str(LLAMA_CPP.parent)}
    run(sys.executable, str(LLAMA_CPP), "--help", environment=beside)
    if importlib.util.find_spec("llama_cpp"):
        importlib.import_module("llama_cpp")
        for tool, option, says in TOOLS:
            require(shutil.which(tool), f"{tool} is not there")
            done = subprocess.run([tool, option], capture_output=True, text=True)
            require(says in done.stdout + done.stderr, f"{tool} fails:\n{done.stderr}")


def trains_one_step(folder: str) -> None:
    """LoRA on a random Llama of two layers."""
    import peft
    import torch
    import transformers

    torch.manual_seed(1)
    shape = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = transformers.Trainer(
        peft.get_peft_model(transformers.LlamaForCausalLM(shape), lora),
        args=transformers.TrainingArguments(
            folder, max_steps=1, report_to="none", save_strategy="no", disable_tqdm=True
        ),
        train_dataset=[{"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]}] * 8,
    )
    loss = trainer.train().training_loss
    require(3 < loss < 6, f"the loss of a random model is {loss}, not about ln 64 = 4.2")


if __name__ == "__main__":
    # Nothing that a library leaves in a home may end in the image.
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(HOME=home, XDG_CACHE_HOME=home, HF_HOME=home, HF_HUB_OFFLINE="1")
        os.environ.update(DVC_NO_ANALYTICS="1", MLFLOW_DISABLE_TELEMETRY="true")
        main()
