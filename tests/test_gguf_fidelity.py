"""A GGUF file answers like its model, and each way in which it can differ is seen."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from siftune import files, llama_cpp
from siftune.gguf_limits import complaints
from siftune.sections import GgufLimit

ROOT = Path(__file__).parent.parent
LIMIT = GgufLimit(max_kl=1e-3, min_top1_agreement=0.95)
MESSAGES = [
    [
        {"role": "user", "content": f"What is {number} + 1?"},
        {"role": "assistant", "content": f"{number} + 1 = {number + 1}\n#### {number + 1}"},
    ]
    for number in range(8)
]
READERS = [
    pytest.param(
        "llama.cpp",
        marks=pytest.mark.skipif(
            not llama_cpp.has_library(), reason="llama.cpp's library is not built: make llama"
        ),
    ),
    "transformers",
]


@pytest.fixture(scope="module")
def merged_folder(tiny_model, tokenizer, tmp_path_factory) -> Path:
    """The tiny model with larger weights: a random one says the same whatever its layers do."""
    from siftune import models

    model = models.load_model(tiny_model)
    model.model.norm.weight.data.mul_(10)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(50)
    folder = tmp_path_factory.mktemp("merged")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def f16(merged_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    llama_cpp.write(merged_folder, folder, name="tiny", types=["f16"])
    return folder / "tiny-f16.gguf"


@pytest.fixture(scope="module")
def merged(merged_folder, encode_settings):
    from siftune import gguf_fidelity, models
    from siftune.chat import masking

    tokenizer = models.read_tokenizer(merged_folder)
    records = [{"messages": messages} for messages in MESSAGES]
    conversations = masking.encode(tokenizer, records, encode_settings, ("<think>", "</think>"))
    return gguf_fidelity.reference(models.load_model(merged_folder), tokenizer, conversations)


@pytest.fixture(params=READERS)
def measure(request, merged, monkeypatch):
    from siftune import gguf_fidelity, gguf_readers

    if request.param == "transformers":
        monkeypatch.setattr(llama_cpp, "has_library", lambda: False)

    def measured(path: Path) -> dict:
        with gguf_readers.open_gguf(path, context=max(map(len, merged.ids))) as reader:
            assert reader.name == request.param
            return gguf_fidelity.measure(reader, merged)

    return measured


def swap_tokens(path: Path) -> None:
    """Give two words each other's token id."""
    fox, dog = (struct.pack("<Q", len(word)) + word for word in ("Ġfox".encode(), "Ġdog".encode()))
    content = path.read_bytes()
    assert content.count(fox) == content.count(dog) == 1
    swapped = content.replace(fox, b"<here>").replace(dog, fox).replace(b"<here>", dog)
    path.write_bytes(swapped)


def change_template(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b"You are a helpful") == 1
    path.write_bytes(content.replace(b"You are a helpful", b"You are a hopeful"))


def change_stop_token(path: Path) -> None:
    from gguf import GGUFReader

    GGUFReader(path, "r+").fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = 0


def spoil_weights(path: Path) -> None:
    from gguf import GGUFReader

    tensors = {tensor.name: tensor for tensor in GGUFReader(path, "r+").tensors}
    tensors["blk.1.ffn_down.weight"].data[:] *= -1


def test_the_file_as_written_answers_like_the_model(measure, f16):
    measured = measure(f16)
    assert complaints("f16", measured, LIMIT) == []
    assert measured["num_strings"] >= 200
    assert measured["num_positions"] > 8 * 10


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (swap_tokens, ["other token ids, first at 'The quick brown fox"]),
        (change_template, ["chat template"]),
        (change_stop_token, ["bos, eos or pad"]),
        (spoil_weights, ["mean KL", "top-1 agreement"]),
    ],
)
def test_one_fault_is_seen_as_that_fault(measure, f16, tmp_path, spoil, said):
    path = tmp_path / f16.name
    shutil.copyfile(f16, path)
    spoil(path)
    found = complaints("f16", measure(path), LIMIT)
    assert len(found) == len(said)
    assert all(words in complaint for words, complaint in zip(said, found, strict=True))


def test_only_tokens_of_answers_are_compared(merged):
    ids, rows = merged.ids[3], merged.rows[3]
    text = merged.tokenizer.decode([ids[row + 1] for row in rows])
    assert text == "3 + 1 = 4\n#### 4<|im_end|>"
    assert merged.logits[3].shape == (len(rows), len(merged.tokenizer))


@pytest.fixture
def workspace(tmp_path, merged_folder, f16) -> Path:
    """A repository's root after to_gguf."""
    (tmp_path / "models" / "gguf").mkdir(parents=True)
    shutil.copytree(merged_folder, tmp_path / "models" / "merged")
    shutil.copyfile(f16, tmp_path / "models" / "gguf" / f16.name)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    files.write_jsonl(
        tmp_path / "data" / "prepared" / "test.jsonl",
        [{"id": str(index), "messages": messages} for index, messages in enumerate(MESSAGES)],
    )
    return tmp_path


def run(script: str, workspace: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-P", str(ROOT / script)],
        cwd=workspace, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_the_check_passes_and_reports_by_type(workspace):
    done = run("eval/gguf_check.py", workspace)
    assert done.returncode == 0, done.stderr
    metrics = files.read_json(workspace / "metrics" / "gguf_check.json")
    assert set(metrics) == {"f16", "cost"}
    assert metrics["f16"]["token_ids_equal"] is True


def test_the_check_refuses_a_file_that_answers_otherwise(workspace, f16):
    spoil_weights(workspace / "models" / "gguf" / f16.name)
    done = run("eval/gguf_check.py", workspace)
    assert done.returncode == 78
    assert "f16: mean KL" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_that_cannot_all_be_written_leave_the_old_ones(workspace, f16):
    before = (workspace / "models" / "gguf" / f16.name).read_bytes()
    (workspace / "models" / "merged" / "config.json").write_text('{"architectures": ["NoSuch"]}')
    done = run("export/to_gguf.py", workspace)
    assert done.returncode == 78
    assert "NoSuch is not supported" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (workspace / "models").iterdir()) == ["gguf", "merged"]
    assert (workspace / "models" / "gguf" / f16.name).read_bytes() == before
