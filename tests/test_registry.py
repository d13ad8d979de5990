"""`models:/…` loads the registered weights, also after the workspace has moved on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from siftune import files, registry
from siftune.stage import UserError

DVC = [str(Path(sys.executable).with_name("dvc"))]


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_model) -> Path:
    """A repository whose stage `merge` wrote models/merged, kept in DVC's cache."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "tiny")
    Path("dvc.yaml").write_text(
        "stages:\n  merge:\n    cmd: cp -r tiny models/merged\n    deps: [tiny]\n    outs: "
        "[models/merged]\n"
    )
    Path("models").mkdir()
    subprocess.run([*DVC, "init", "--no-scm", "-q"], check=True)
    subprocess.run([*DVC, "repro", "-q"], check=True)
    return tmp_path


def test_the_registered_files_are_found_again_wherever_they_are(workspace):
    merged = Path("models/merged")
    reference = registry.reference(merged)
    assert registry.locate(reference) == merged.resolve()
    (merged / "config.json").unlink()
    (merged / "config.json").write_text("{}")
    restored = registry.locate(reference)
    assert restored == workspace / "work" / "registered" / reference["sha256"][:16]
    assert files.describe_folder(restored) == reference["files"]
    answers = registry.Answerer(restored).predict(["1+1?", "2+2?"], None)
    assert len(answers) == 2
    assert all(isinstance(answer, str) for answer in answers)


def test_weights_that_are_nowhere_are_an_error_and_never_others(workspace):
    reference = registry.reference(Path("models/merged"))
    (workspace / "models" / "merged" / "model.safetensors").unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    with pytest.raises(UserError, match="does not hold it"):
        registry.locate(reference)
    with pytest.raises(UserError, match="does not hold it"):
        registry.locate(reference | {"dvc_md5": None})
    assert not (workspace / "work").exists() or not list(
        (workspace / "work").rglob("*.safetensors")
    )
