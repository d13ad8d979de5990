"""`siftune sync` completes every run, once, from any machine, and closes the dead."""

import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from siftune import history, lock, mirror, store, sync, tracking
from siftune.stage import RunAgain, UserError


class NoFollower:
    """A store that does not answer for as long as the stage runs."""

    def __init__(self, folder: Path) -> None: ...

    def end(self, *, interrupted: bool = False) -> None: ...


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite file with MLflow's tables: making them takes longer than a test."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        store.connect()
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch, empty_store) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(tracking, "Follower", NoFollower)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"sft": {"seed": 1}, "merge": {}}))
    return tmp_path


def train(
    first: int = 1, last: int = 12, error: type[Exception] | None = None, fingerprint: str = "f"
) -> Path:
    """A stage that logs two numbers a step, and a file."""
    try:
        with tracking.stage("sft", "sft", fingerprint=fingerprint) as run:
            run.rewind(first - 1)
            for step in range(first, last + 1):
                run.log({"loss": 1 / step, "rate": 0.5}, step=step)
            run.artifact(Path("params.yaml"))
            run.dataset(Path("params.yaml"), name="d", digest="a", context="train")
            run.report(final={"loss": 0.5})
            if error:
                raise error
    except RunAgain:
        pass
    return run.folder


def change(folder: Path, **facts) -> None:
    record = json.loads((folder / mirror.RECORD).read_text())
    (folder / mirror.RECORD).write_text(json.dumps(record | facts))


def process(**facts) -> dict:
    with lock.workspace("sft"):
        holder = vars(lock.holder())
    return {name: value for name, value in (holder | facts).items() if name != "heartbeat"}


def runs() -> list:
    return store.connect().search_runs(search_all_experiments=True, output_format="list")


def assert_complete(folder: Path, *, status: str = "FINISHED") -> str:
    """One run, and in it all numbers of the folder, each once."""
    (run,) = (run for run in runs() if run.data.tags["siftune.run"] == folder.name)
    assert run.info.status == status
    client = store.connect().MlflowClient()
    rows = history.read(folder)
    for name in ("loss", "rate"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in points] == [
            (row["step"], row[name]) for row in rows
        ]
    if status == "FINISHED":
        assert run.data.metrics["final/loss"] == 0.5
        assert len(client.get_metric_history(run.info.run_id, "final/loss")) == 1
        assert len(run.inputs.dataset_inputs) == 1
        listed = client.list_artifacts(run.info.run_id)
        assert [file.path for file in listed] == ["params.yaml", "sft.json"]
    return run.info.run_id


def test_syncing_again_does_nothing_and_says_so(workspace, capsys):
    folders = [train(fingerprint=name) for name in "ab"]
    sync.main(None)
    told = capsys.readouterr().out
    for folder in folders:
        assert f"{folder.name}: complete, FINISHED" in told
    for _ in range(3):
        sync.main(None)
        assert capsys.readouterr().out == "nothing to do for 2 of 2\n"
    assert len({assert_complete(folder) for folder in folders}) == 2


def test_a_run_that_goes_on_after_a_sync_stays_one_run(workspace):
    folder = train(last=8, error=RunAgain)
    sync.main(None)
    first = assert_complete(folder, status="KILLED")
    assert train(first=6, last=10, error=RunAgain) == folder
    sync.main(None)
    train(first=11)
    sync.main(None)
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    points = store.connect().MlflowClient().get_metric_history(first, "loss")
    assert [point.step for point in points] == list(range(1, 13))


def test_any_machine_completes_what_another_one_made(workspace, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(mirror, "MAX_METRICS", 100)
    folder = train(last=160)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree("work/runs", elsewhere / "work/runs")
    shutil.copy("mlflow.db", elsewhere / "other.db")
    os.unlink("params.yaml")
    monkeypatch.chdir(elsewhere)
    sync.main(f"sqlite:///{elsewhere}/other.db")
    assert_complete(Path("work/runs", folder.name))


def test_runs_of_dead_processes_are_closed_and_others_are_not(workspace, monkeypatch, capsys):
    folders = [train(fingerprint=name) for name in "abcd"]
    mine = process()
    others = [
        process(start_time=mine["start_time"] + 1),  # the id was given again
        process(boot_id="of another boot"),
        process(host="elsewhere", boot_id="its own"),
        mine,
    ]
    for folder, its in zip(folders, others, strict=True):
        change(folder, status="running", ended=None, results={}, process=its)
    sync.main(None)
    told = capsys.readouterr().out
    for folder in folders[:2]:
        assert f"{folder.name}: complete, KILLED" in told
        assert_complete(folder, status="KILLED")
    assert f"{folders[2].name}: pushed; whether it still runs on elsewhere" in told
    assert_complete(folders[2], status="RUNNING")
    assert f"{folders[3].name}: still runs" in told
    assert folders[3].name not in {run.data.tags["siftune.run"] for run in runs()}
    sync.main(None)
    assert "nothing to do for 3 of 4" in capsys.readouterr().out
    # Once it can be known, it is done.
    monkeypatch.setattr(lock, "alive", lambda holder: False)
    sync.main(None)
    assert_complete(folders[2], status="KILLED")


def test_a_run_that_is_being_mirrored_is_left_to_its_mirror(workspace, capsys):
    folder = train()
    with mirror.only_pusher(folder, wait=True):
        sync.main(None)
    assert f"{folder.name}: is being mirrored by its own stage" in capsys.readouterr().out
    assert runs() == []


def test_what_was_deleted_in_mlflow_stays_deleted_until_it_goes_on(workspace, capsys):
    folder = train(last=5, error=RunAgain)
    sync.main(None)
    client = store.connect().MlflowClient()
    client.delete_run(runs()[0].info.run_id)
    train(first=6, last=8, error=RunAgain)
    capsys.readouterr()
    sync.main(None)
    assert "was deleted in MLflow" in capsys.readouterr().out
    assert runs() == []
    record = json.loads((folder / mirror.RECORD).read_text())
    live = mirror.MirroredRun(store.connect(), folder, lambda seconds: None)
    live.push(record, "KILLED")
    assert_complete(folder, status="KILLED")


def test_two_runs_of_one_folder_become_one(workspace):
    folder = train()
    sync.main(None)
    kept = runs()[0]
    client = store.connect().MlflowClient()
    twin = client.create_run(kept.info.experiment_id, tags={"siftune.run": folder.name})
    sync.main(None)
    assert assert_complete(folder) == kept.info.run_id != twin.info.run_id


def test_a_run_that_mlflow_refuses_does_not_stop_the_others(workspace, capsys):
    refused, taken = (train(fingerprint=name) for name in "ab")
    mlflow = store.connect()
    mlflow.delete_experiment(mlflow.create_experiment("gone"))
    change(refused, experiment="gone")
    with pytest.raises(UserError, match="refused 1 of 2 runs"):
        sync.main(None)
    assert f"{refused.name}: refused: " in capsys.readouterr().out
    assert_complete(taken)


class Broken:
    """MLflow's client, whose `number`-th request fails: on the way there, or back."""

    def __init__(self, client, number: int, *, arrives: bool) -> None:
        self._client = client
        self._arrives = arrives
        self._left = itertools.count(number, -1)

    def __getattr__(self, name: str):
        def request(*arguments, **named):
            is_broken = next(self._left) == 1
            if is_broken and not self._arrives:
                raise ConnectionError
            answer = getattr(self._client, name)(*arguments, **named)
            if is_broken:
                raise ConnectionError
            return answer

        return request


def test_pushing_may_break_off_at_any_request(workspace, monkeypatch):
    monkeypatch.setattr(mirror, "MAX_METRICS", 7)
    mlflow = store.connect()
    made = train().rename("made")
    record = json.loads((made / mirror.RECORD).read_text())
    for number in itertools.count(1):
        for arrives in (True, False):
            name = f"{number}-{arrives}"
            copy = shutil.copytree(made, tracking.RUNS / name)
            change(copy, run=name)
            broken = Broken(mlflow.MlflowClient(), number, arrives=arrives)
            there = SimpleNamespace(
                MlflowClient=lambda client=broken: client,
                MlflowException=mlflow.MlflowException,
                entities=mlflow.entities,
            )
            run = mirror.MirroredRun(there, copy, lambda seconds: None)
            try:
                run.push(record | {"run": name}, "FINISHED", mark=True)
            except ConnectionError:
                sync.main(None)
                assert_complete(copy)
                shutil.rmtree(copy)
            else:
                assert number > 10
                return


def test_what_is_wrong_is_told_without_a_secret(workspace, monkeypatch, tmp_path_factory):
    train()
    address = "http://ann:canary-pass@127.0.0.1:9"
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI") as told:
        sync.main(address)
    assert "canary" not in str(told.value)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match="nothing to sync"):
        sync.main(None)


def test_numbers_that_are_none_arrive_too(workspace):
    with tracking.stage("merge", "merge") as run:
        run.log({"loss": float("nan"), "rate": float("inf")}, step=1)
        run.log({"loss": 1.0, "rate": -float("inf")}, step=2)
    sync.main(None)
    (mirrored,) = runs()
    points = store.connect().MlflowClient().get_metric_history(mirrored.info.run_id, "loss")
    assert str([point.value for point in points]) == "[nan, 1.0]"
    assert [row["rate"] for row in history.read(run.folder)] == [float("inf"), -float("inf")]
