"""`models:/…` loads the registered weights, also after the workspace has moved on."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from siftune import files, registry, tracking
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


@pytest.fixture
def tracked(tmp_path, monkeypatch) -> Path:
    """A folder to register, where a stage can run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(yaml.safe_dump({"register": {"name": "m"}}))
    reference = tmp_path / "reference"
    reference.mkdir()
    (reference / registry.REFERENCE).write_text("{}")
    return reference


def score(value: float, test: str = "t") -> registry.Score:
    return registry.Score(metric="task/acc", value=value, test_sha256=test)


def test_best_follows_the_score_on_the_same_test_data(tracked):
    scores = (score(0.5), score(0.4), score(0.6), score(0.1, test="other"))
    with tracking.stage("register", "register") as run:
        outcomes = [
            registry.register(run, "m", reference=tracked, score=one, tags={"k": "v"})
            for one in scores
        ]
        run.report(version=4)
    assert outcomes == [(1, True), (2, False), (3, True), (4, True)]
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("m", "best").version == 4
    version = client.get_model_version("m", 1)
    tags = version.tags
    assert (tags["siftune.score"], tags["k"], tags["siftune.stage"]) == ("0.5", "v", "register")
    (mirrored,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert mirrored.info.run_id == run.id == version.run_id
    assert mirrored.info.status == "FINISHED"
    assert mirrored.data.metrics["version"] == 4


def test_without_mlflow_there_is_no_registry(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:canary-pass@127.0.0.1:9")
    with (
        pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as told,
        tracking.stage("register", "register") as run,
    ):
        registry.register(run, "m", reference=tracked, score=score(1.0), tags={})
    assert "canary" not in str(told.value)
