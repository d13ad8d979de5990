"""A workspace with a tiny model, encoded once; each trial gets a cheap copy of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
NUM_STEPS, SAVE_EVERY = 40, 5
# What a stage writes below these is its own; the rest of a copy is linked, never written in place.
PRIVATE = ("work", "metrics", "plots", "report", "params.yaml", "dvc.lock", ".dvc", ".git")
OVERRIDES = (
    "model=tiny", "data.num_examples=100", "prepare.validation=0.06", "prepare.test=0.16",
    "sft.num_epochs=2.0", "sft.global_batch=4", "sft.micro_batch=2", "sft.eval_every=10",
    "sft.learning_rate=1e-2", "to_gguf.types=[f16]", "sft.save_every='5 steps'",
    "sft.lora.rank=4", "sft.lora.dropout=0.1",
    "merge.num_prompts=4", "benchmark.limit=4", "benchmark.batch_size=2",
    "benchmark.max_new_tokens=4", "merge.max_kl=0.1", "merge.min_top1_agreement=0.5",
)  # fmt: skip
# No store that answers: refused at once, before mlflow is imported.
NO_STORE = "postgresql://127.0.0.1:9/none"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def environment(folder: Path) -> dict[str, str]:
    """Of every process of a trial."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "TMPDIR": str(folder.with_name(folder.name + ".tmp")),
        "MLFLOW_TRACKING_URI": NO_STORE,
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "SIFTUNE_PROCESSES": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


def make(folder: Path, overrides: tuple[str, ...] = OVERRIDES) -> None:
    """A clone of this checkout with the model `tiny` beside it; params.yaml is composed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "bench/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    model = {"name": "tiny", "source": str(_tiny_model(folder)), "revision": None, "license": "mit"}
    model |= {"gated": False, "stop_tokens": []}
    preset = yaml.safe_dump({"model": model, "encode": {"template": None}})
    (folder / "conf/model/tiny.yaml").write_text(f"# @package _global_\n{preset}")
    subprocess.run(
        [sys.executable, "-P", "-m", "siftune.presets", *overrides],
        cwd=folder, env=environment(folder), check=True, capture_output=True,
    )  # fmt: skip


def _tiny_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _small_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    made = folder.with_name(folder.name + ".model")
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def _small_tokenizer():
    """As Llama 2's, which llama.cpp's converter knows, with few merges: logits stay small."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator((ROOT / "README.md").read_text().splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>",
        pad_token="</s>", chat_template=CHATML, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def copy(source: Path, target: Path) -> Path:
    """The same workspace again: what nobody writes in place is linked."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        how = shutil.copy2 if entry.name in PRIVATE else _link
        if entry.is_dir():
            shutil.copytree(entry, target / entry.name, copy_function=how, symlinks=True)
        else:
            how(entry, target / entry.name)
    target.with_name(target.name + ".tmp").mkdir(exist_ok=True)
    return target
