"""Opening MLflow's store."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siftune import store


def test_processes_that_open_a_new_sqlite_file_at_once_all_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new/mlflow.db")
    code = "from siftune import store; store.connect()"
    several = [
        subprocess.Popen([sys.executable, "-P", "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    complaints = [one.communicate(timeout=120)[1] for one in several]
    assert [one.returncode for one in several] == [0, 0], complaints


def test_a_process_killed_while_it_makes_the_file_leaves_no_half_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    code = "from siftune import store; store.connect()"

    def databases() -> list[Path]:
        # Not its journals, which come and go.
        return [path for path in folder.glob("*mlflow.db*") if path.suffix in (".db", ".tmp")]

    first = subprocess.Popen([sys.executable, "-P", "-c", code])
    deadline = time.monotonic() + 60
    # Of 950,000 bytes: in the midst of a migration, which MLflow would begin again.
    while not any(path.stat().st_size > 300_000 for path in databases()):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.001)
    first.kill()
    first.wait()
    # As on another node, where another process has the number of the dead one.
    [left] = [path for path in databases() if path.suffix == ".tmp"]
    left.rename(folder / f".mlflow.db.{os.getpid()}.tmp")
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_database_that_is_not_there_is_known_at_once(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://u:p@127.0.0.1:9/mlflow")
    with pytest.raises(OSError, match="refused"):
        store.connect()
