"""A folder as trainings leave it: base, tokenizer, checkpoints, adapter, merged model, test."""

import json
import shutil
from pathlib import Path

import yaml

CHECKPOINTS = Path("work/0123456789abcdef/checkpoints")
TEST = [("How much is 2 + 2?", "#### 4"), ("小林有幾枚硬幣?", "#### 63"), ("And 3 + 4?", "#### 7")]
SAMPLES = {
    "num_prompts": 3,
    "max_new_tokens": 6,
    "seed": 1,
    "decodings": {"greedy": {}, "warm": {"temperature": 0.9, "top_k": 50}},
}


def make(tiny_model: Path, default_params: Path) -> None:
    """Fill the current folder, of sft alone; weights are random, the checkpoints 4 and 8 differ."""
    from siftune import files, models
    from siftune.sections import Model

    base = _base(tiny_model)
    params = yaml.safe_load(default_params.read_text())
    params["samples"] = SAMPLES
    Path("params.yaml").write_text(yaml.safe_dump(params))
    source = {"name": "tiny", "source": str(base), "revision": None, "license": "mit"}
    section = Model(**source, gated=False, stop_tokens=[])
    files.write_json(Path("models/base.json"), models.fetch_base(section))
    models.read_tokenizer(base).save_pretrained("models/tokenizer")
    for step in (4, 8):
        checkpoint(_adapter(base, seed=step), step)
    shutil.copytree(_adapter(base, seed=8), "models/sft")
    Path("models/pretrain").mkdir()
    _merged(base)
    Path("data/prepared").mkdir(parents=True)
    files.write_jsonl(Path("data/prepared/test.jsonl"), [_record(*pair) for pair in TEST])


def checkpoint(weights: Path, step: int) -> Path:
    """Publish the weights in a folder, with a state beside them that only a training reads."""
    from siftune import files
    from siftune.resume.checkpoints import Store

    tokenizer = Path("models/tokenizer")
    inputs = {
        "models/base.json": files.sha256(Path("models/base.json")),
        **{str(path): files.sha256(path) for path in tokenizer.iterdir()},
    }
    store = Store(CHECKPOINTS, {"inputs": inputs, "params": {"sft": {}}})
    aside = store.aside(step)
    shutil.copytree(weights, aside, dirs_exist_ok=True)
    (aside / "optimizer.pt").write_bytes(b"no pickle at all")
    return store.publish(aside, step, {"max_steps": 12})


def _record(question: str, answer: str) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": question, "group": question, "messages": turns}


def _base(tiny_model: Path) -> Path:
    """The tiny model with a head of its own: with the tied one it repeats the last token."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path("base").absolute()
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    return folder


def _adapter(base: Path, seed: int) -> Path:
    """A LoRA adapter that changes the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    folder = Path(f"adapter-{seed}")
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def _merged(base: Path) -> None:
    from siftune import models
    from siftune.training import phases

    tokenizer = models.read_tokenizer(base)
    model = phases.merged(base, [Path("models/sft")], num_tokens=len(tokenizer))
    model.save_pretrained("models/merged")
    tokenizer.save_pretrained("models/merged")
