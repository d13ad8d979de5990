"""What decides a result decides where its checkpoints are; what does not, does not."""

from pathlib import Path

import pytest
import yaml

from siftune.resume import fingerprint
from siftune.stage import UserError

STAGE = {
    "cmd": "python -P train/sft.py",
    "deps": ["train/sft.py", "src/siftune/chat", "models/base.json", "data/tokens"],
    "params": ["sft"],
}


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIFTUNE_IMAGE_SHA256", raising=False)
    for name in (
        "train/sft.py",
        "src/siftune/chat/a.py",
        "models/base.json",
        "data/tokens/t.arrow",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sft": STAGE}}))
    write_params(learning_rate=0.1, save_every="5 steps")
    return tmp_path


def write_params(**sft) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"sft": sft, "merge": {"x": 1}}))


def test_it_is_the_same_where_nothing_that_decides_has_changed(workspace):
    before = fingerprint.of_stage("sft")
    write_params(learning_rate=0.1, save_every="9 minutes")
    (workspace / "src/siftune/chat/__pycache__").mkdir()
    (workspace / "src/siftune/chat/__pycache__/a.pyc").write_text("x")
    (workspace / "unrelated").write_text("x")
    assert fingerprint.of_stage("sft") == before
    assert before.folder == Path("work") / before.digest
    assert len(before.digest) == 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: Path("train/sft.py").write_text("x"), "code.train/sft.py: "),
        (lambda: Path("src/siftune/chat/b.py").write_text("x"), "code.src/siftune/chat/b.py: noth"),
        (lambda: Path("models/base.json").write_text("x"), "inputs.models/base.json: "),
        (lambda: Path("data/tokens/t.arrow").unlink(), "inputs.data/tokens/t.arrow: "),
        (lambda: write_params(learning_rate=0.2), "params.sft.learning_rate: 0.1 there, 0.2 here"),
    ],
)
def test_every_change_that_decides_is_told(workspace, change, told):
    before = fingerprint.of_stage("sft")
    change()
    after = fingerprint.of_stage("sft")
    assert after.digest != before.digest
    (line,) = fingerprint.differences(before.parts, after.parts)
    assert line.startswith(told)


def test_another_image_is_another_training(workspace, monkeypatch):
    before = fingerprint.of_stage("sft")
    monkeypatch.setenv("SIFTUNE_IMAGE_SHA256", "ab" * 32)
    after = fingerprint.of_stage("sft")
    assert "image.sha256: nothing there, abababababab here" in fingerprint.differences(
        before.parts, after.parts
    )


def test_an_input_that_is_missing_is_a_users_error(workspace):
    Path("models/base.json").unlink()
    with pytest.raises(UserError, match=r"models/base\.json is not there"):
        fingerprint.of_stage("sft")
