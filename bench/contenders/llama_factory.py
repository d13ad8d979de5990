"""LLaMA-Factory: its get_dataset for supervised fine-tuning on OpenAI's form, template chatml."""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import task

# Imported by LLaMA-Factory for audio alone; the builds in package indexes ask for CUDA.
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer  # noqa: E402
from llamafactory.hparams import DataArguments, ModelArguments  # noqa: E402
from transformers import AutoTokenizer, Seq2SeqTrainingArguments  # noqa: E402

# OpenAI's form, as data/README.md of LLaMA-Factory describes it.
DESCRIPTION = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    },
}


def main() -> None:
    job = task.read()
    folder = Path(job.folder)
    described = {"rows": DESCRIPTION | {"file_name": job.rows}}
    (folder / "dataset_info.json").write_text(json.dumps(described))
    data = DataArguments(
        template="chatml", dataset="rows", dataset_dir=job.folder, cutoff_len=job.max_length,
        preprocessing_num_workers=job.num_processes,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    model = ModelArguments(model_name_or_path=job.tokenizer)
    training = Seq2SeqTrainingArguments(output_dir=job.folder, use_cpu=True, report_to="none")
    began = task.now()
    made = get_dataset(template, model, data, training, stage="sft", tokenizer=tokenizer)
    task.answer(job, began, made["train_dataset"])


if __name__ == "__main__":
    main()
