"""A stage's files are the truth, and MLflow shows the same; a real SQLite store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from siftune import history, mirror, store, tracking
from siftune.stage import RunAgain, StartAgain, UserError

PARAMS = {"sft": {"learning_rate": 0.1, "lora": {"rank": 4}}, "merge": {"x": "y" * 7000}}
# A training of steps that are told by a number each; what comes after them is told it by name.
TRAINING = """
import os, signal, sys, time
from siftune import stage, tracking

def main():
    last, then = int(sys.argv[1]), sys.argv[2]
    with tracking.stage("sft", "sft", fingerprint="f" * 64) as run:
        done = len(run.rewind(int(sys.argv[3])))
        for step in range(done + 1, last + 1):
            run.log({"train_loss": 1 / step}, step=step)
        print("at", last, flush=True)
        if then == "wait":
            time.sleep(100)  # until it is killed
        run.report(final=1)

stage.run(main)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # MLflow keeps one store a URI for the life of a process; each test needs its own.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return tmp_path


class NoFollower:
    """MLflow is not asked."""

    def __init__(self, folder: Path) -> None: ...

    def end(self, *, interrupted: bool = False) -> None: ...


def runs() -> list:
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/mlflow.db")
    return store.connect().search_runs(search_all_experiments=True, output_format="list")


def points(run_id: str, name: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient().get_metric_history(run_id, name)
    return [(point.step, point.value) for point in found]


def train(last: int, then: str = "", rewind: int = 10**9) -> subprocess.Popen:
    """A stage in a session of its own, up to its last step."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", TRAINING, str(last), then, str(rewind)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == f"at {last}\n"
    return process


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(is_so, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_dvc_and_mlflow_get_the_same_numbers(workspace):
    made = workspace / "made"
    (made / "inside").mkdir(parents=True)
    (made / "small.txt").write_text("as it was")
    (made / "inside" / "large.bin").write_bytes(b"0" * (tracking.LARGEST_COPY + 1))
    with tracking.stage("sft", "sft") as run:
        for step in (1, 2, 3):
            run.log({"train_loss": 1.0 / step}, step=step)
        for _ in range(2):
            run.dataset(workspace / "params.yaml", name="d", digest="a" * 64, context="train")
        run.report(final={"loss": 0.25, "exact,match": 1}, note="text", flag=True, train_loss=7.0)
        run.artifact(made)
        # The run keeps what it made, not what stands there later.
        (made / "small.txt").write_text("something else")
        (made / "inside" / "large.bin").unlink()
    written = json.loads(Path("metrics/sft.json").read_text())
    (mirrored,) = runs()
    assert mirrored.info.run_id == run.id
    assert written["final"]["loss"] == mirrored.data.metrics["final/loss"] == 0.25
    assert mirrored.data.metrics["final/exact_match"] == 1
    assert mirrored.data.metrics["cost/wall_seconds"] == written["cost"]["wall_seconds"]
    assert mirrored.data.params == {"sft.learning_rate": "0.1", "sft.lora.rank": "4"}
    assert mirrored.info.status == "FINISHED"
    assert mirrored.info.run_name == mirrored.data.tags["siftune.stage"] == "sft"
    assert mirrored.data.tags["siftune.run"] == run.folder.name
    (dataset,) = mirrored.inputs.dataset_inputs
    assert dataset.dataset.digest == "a" * 36
    lines = [json.loads(line) for line in (run.folder / history.NAME).open()]
    assert points(run.id, "train_loss") == [(x["step"], x["train_loss"]) for x in lines]
    assert len(lines) == 3
    artifacts = mlflow.artifacts.download_artifacts(run_id=run.id, dst_path=workspace / "got")
    assert Path(artifacts, "small.txt").read_text() == "as it was"
    assert Path(artifacts, "inside", "large.bin").stat().st_size == tracking.LARGEST_COPY + 1
    assert json.loads(Path(artifacts, "sft.json").read_text()) == written


def test_no_run_stays_running_after_an_error(workspace, capsys):
    for error, status in [(UserError, "FAILED"), (RunAgain, "KILLED")]:
        with pytest.raises(error), tracking.stage("merge", "merge") as run:
            raise error
        # It was started again and did not finish: it is the same run.
        (mirrored,) = runs()
        assert mirrored.info.status == status
        assert not Path("metrics/merge.json").exists()
    with tracking.stage("merge", "merge") as last:
        pass
    assert last.folder == run.folder
    (mirrored,) = runs()
    assert mirrored.info.status == "FINISHED"
    # MLflow takes 6000 characters of a param, and never a second value of it.
    assert mirrored.data.params["merge.x"] == "y" * 5999 + "…"
    assert capsys.readouterr().err == ""


def test_a_stage_goes_on_without_mlflow(workspace, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:canary-pass@127.0.0.1:9")
    with tracking.stage("merge", "merge") as run:
        run.log({"a": 1.0}, step=1)
        run.report(b=2)
        assert run.id is None
    assert json.loads(Path("metrics/merge.json").read_text())["b"] == 2
    told = capsys.readouterr().err
    assert told.count("MLflow does not answer") == 1
    assert f"{run.folder}; `siftune sync` completes it" in told
    assert "canary" not in told + (run.folder / mirror.RECORD).read_text()


def test_a_killed_stage_is_closed_as_killed_and_continued_in_its_run(workspace):
    process = train(8, "wait")
    (follower,) = children(process.pid)
    wait_for(lambda: Path("mlflow.db").exists() and runs() and runs()[0].data.metrics)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: has_ended(follower))
    (run,) = runs()
    assert run.info.status == "KILLED"
    process = train(12, rewind=5)
    output, complaints = process.communicate(timeout=120)
    assert (process.returncode, output, complaints) == (0, "", "")
    (run,) = runs()
    assert run.info.status == "FINISHED"
    (folder,) = Path("work/runs").iterdir()
    rows = history.read(folder)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert points(run.info.run_id, "train_loss") == [(row["step"], 1 / row["step"]) for row in rows]


def test_the_signal_of_a_stop_does_not_take_the_mirror_with_it(workspace, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the default store
    process = train(5, "wait")
    # As Ctrl-C and scancel do: to all processes, and before the follower runs a line of Python.
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
    _, complaints = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "siftune sync" not in complaints
    (run,) = runs()
    assert run.info.status == "KILLED"
    assert len(points(run.info.run_id, "train_loss")) == 5


def test_the_mirror_holds_no_pipe_of_the_stage(workspace):
    process = train(1, "wait")
    (follower,) = children(process.pid)
    pipes = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)}
    held = {os.readlink(path) for path in Path(f"/proc/{follower}/fd").iterdir()}
    assert not {pipe for pipe in pipes if pipe.startswith("pipe:")} & held
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: has_ended(follower))


def test_only_the_first_rank_has_a_run(workspace, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with tracking.stage("sft", "sft") as run:
        run.log({"a": 1}, step=1)
        assert run.rewind(0) == []
        run.artifact(workspace / "params.yaml")
        run.dataset(workspace / "params.yaml", name="d", digest="a", context="train")
        run.report(a=1)
    assert [path.name for path in workspace.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError(), "failed"),
        (ZeroDivisionError(), "failed"),
        (SystemExit(78), "failed"),
        (SystemExit(75), "stopped"),
        (RunAgain(), "stopped"),
        (StartAgain(), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_the_files_say_how_a_stage_ended(workspace, monkeypatch, error, status):
    monkeypatch.setattr(tracking, "Follower", NoFollower)
    with pytest.raises(type(error)), tracking.stage("merge", "merge") as run:
        raise error
    record = json.loads((run.folder / mirror.RECORD).read_text())
    assert (record["status"], record["results"]) == (status, {})
    assert record["ended"] > record["started"]


def test_who_does_the_same_and_did_not_finish_goes_on_with_its_run(workspace, monkeypatch):
    monkeypatch.setattr(tracking, "Follower", NoFollower)
    folders = []
    for fingerprint, params in [("a", 1), ("b", 1), ("a", 2), (None, 1), (None, 2), (None, 2)]:
        monkeypatch.setattr(tracking.config, "raw_sections", lambda *_, p=params: {"sft": p})
        with pytest.raises(RunAgain), tracking.stage("sft", "sft", fingerprint=fingerprint) as run:
            raise RunAgain
        folders.append(run.folder)
    assert folders[0] == folders[2]  # what does not decide the result may change
    assert folders[4] == folders[5]
    assert len(set(folders)) == 4
    # One training is one run, also if it is started again after its end; what has no fingerprint
    # is done anew.
    for fingerprint, is_same in (("a", [True, True]), (None, [True, False])):
        for expected in is_same:
            with tracking.stage("sft", "sft", fingerprint=fingerprint) as run:
                pass
            assert (run.folder in folders) == expected
