"""Files are the truth, MLflow mirrors them; a real SQLite store."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from siftune import registry, tracking
from siftune.stage import UserError

PARAMS = {"sft": {"learning_rate": 0.1, "lora": {"rank": 4}}, "merge": {"x": 1}}


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # MLflow keeps one store a URI for the life of a process; each test needs its own.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


def runs() -> list:
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


def test_dvc_and_mlflow_get_the_same_numbers(workspace):
    with tracking.stage("sft", "sft") as run:
        for step in (1, 2, 3):
            run.log({"train_loss": 1.0 / step}, step=step)
        run.dataset(workspace / "params.yaml", name="d", digest="a" * 64, context="train")
        run.report(final={"loss": 0.25}, note="text", flag=True)
    written = json.loads(Path("metrics/sft.json").read_text())
    (mirrored,) = runs()
    assert written["final"]["loss"] == mirrored.data.metrics["final/loss"] == 0.25
    assert mirrored.data.metrics["cost/wall_seconds"] == written["cost"]["wall_seconds"]
    assert written["cost"]["peak_memory_mb"] > 50
    assert mirrored.data.params == {"sft.learning_rate": "0.1", "sft.lora.rank": "4"}
    assert mirrored.info.status == "FINISHED"
    assert mirrored.info.run_name == mirrored.data.tags["siftune.stage"] == "sft"
    assert mirrored.inputs.dataset_inputs[0].dataset.digest == "a" * 36
    history = mlflow.MlflowClient().get_metric_history(mirrored.info.run_id, "train_loss")
    lines = [json.loads(line) for line in next(Path("work/runs").glob("*/metrics.jsonl")).open()]
    assert [(m.step, m.value) for m in history] == [(x["step"], x["train_loss"]) for x in lines]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("error", "status"), [(UserError, "FAILED"), (RuntimeError, "FAILED"), (SystemExit, "KILLED")]
)
def test_no_run_stays_running_after_an_error(workspace, error, status):
    with pytest.raises(error), tracking.stage("merge", "merge"):
        raise error
    (run,) = runs()
    assert run.info.status == status
    assert not Path("metrics/merge.json").exists()


def test_a_stage_goes_on_without_mlflow(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking.stage("merge", "merge") as run:
        run.log({"a": 1.0}, step=1)
        run.report(b=2)
        assert run.id is None
    assert json.loads(Path("metrics/merge.json").read_text())["b"] == 2
    assert capsys.readouterr().err.count("MLflow does not answer") == 1


def score(value: float, test: str = "t") -> tracking.Score:
    return tracking.Score(metric="task/acc", value=value, test_sha256=test)


def test_best_follows_the_score_on_the_same_test_data(workspace):
    reference = workspace / "reference"
    reference.mkdir()
    (reference / registry.REFERENCE).write_text("{}")
    outcomes = []
    with tracking.stage("merge", "merge") as run:
        for s in (score(0.5), score(0.4), score(0.6), score(0.1, test="other")):
            outcomes.append(
                tracking.register(run, "m", reference=reference, score=s, tags={"k": "v"})
            )
    assert outcomes == [(1, True), (2, False), (3, True), (4, True)]
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias("m", "best").version == 4
    tags = client.get_model_version("m", 1).tags
    assert (tags["siftune.score"], tags["k"], tags["siftune.stage"]) == ("0.5", "v", "merge")


def test_without_mlflow_there_is_no_registry(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with (
        pytest.raises(UserError, match="MLFLOW_TRACKING_URI"),
        tracking.stage("merge", "merge") as run,
    ):
        tracking.register(run, "m", reference=workspace, score=score(1.0), tags={})


def test_flatten_names_the_path_of_every_leaf():
    assert tracking.flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a/b": 1,
        "a/c/d": [2],
        "e": None,
    }


def test_a_terminated_stage_is_closed_as_killed_in_the_default_store(workspace, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code = (
        "import os, signal\nfrom siftune import stage, tracking\n"
        "def main():\n  with tracking.stage('merge', 'merge'):\n    os.kill(os.getpid(), "
        "signal.SIGTERM)\n"
        "    signal.pause()\n"
        "stage.run(main)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=workspace, timeout=120)
    assert done.returncode == 143
    assert [run.info.status for run in runs()] == ["KILLED"]
