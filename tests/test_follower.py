"""The mirror beside a stage, against real servers: PostgreSQL with a password, and broken ones."""

import configparser
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from siftune import history, store, sync

PASSWORD = "canary-of-the-server"
DATABASE_PASSWORD = "canary-of-the-database"
STAGE = """
import sys, time
from pathlib import Path
from siftune import stage, tracking

def main():
    with tracking.stage("sft", "sft") as run:
        step = 0
        # Until told, but not for ever should the test fail.
        while step < 20 or (step < 2000 and not Path("enough").exists()):
            step += 1
            run.log({"loss": 1 / step}, step=step)
            time.sleep(0.05)
        run.artifact(Path("params.yaml"))
        run.report(final=1)

stage.run(main)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"sft": {"seed": 1}}))
    return tmp_path


def start(address: str, folder: Path | None = None, *before: str, **environment: str):
    """A stage that goes on until the file `enough` is there."""
    return subprocess.Popen(
        [*before, sys.executable, "-P", "-c", STAGE],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": address, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, folder: Path) -> str:
    (folder / "enough").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def wait_for(is_so, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs() -> list:
    return store.connect().search_runs(search_all_experiments=True, output_format="list")


def assert_complete(folder: Path, num_runs: int = 1) -> None:
    """All that the folder's only run logged is in MLflow, each step once."""
    found = runs()
    assert len(found) == num_runs
    (of,) = (folder / "work/runs").iterdir()
    (run,) = (run for run in found if run.data.tags["siftune.run"] == of.name)
    assert (run.info.status, run.data.metrics["final"]) == ("FINISHED", 1)
    client = store.connect().MlflowClient()
    points = client.get_metric_history(run.info.run_id, "loss")
    rows = history.read(of)
    assert len(rows) >= 20
    assert [(point.step, point.value) for point in points] == [
        (row["step"], row["loss"]) for row in rows
    ]
    listed = client.list_artifacts(run.info.run_id)
    assert [file.path for file in listed] == ["params.yaml", "sft.json"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def programs_of_postgres() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a fresh PostgreSQL that asks for a password."""
    programs = programs_of_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian's package `postgresql`)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    # Not below pytest's folder: PostgreSQL refuses root, and others may not look there.
    with tempfile.TemporaryDirectory() as place:
        is_root = os.geteuid() == 0
        other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if is_root else {}
        if is_root:
            shutil.chown(place, "nobody", "nogroup")
        secret = Path(place, "password")
        secret.write_text(DATABASE_PASSWORD)
        secret.chmod(0o644)
        subprocess.run(
            [
                *(programs / "initdb", "--no-sync", "-D", f"{place}/data", "-U", "siftune"),
                *("-A", "scram-sha-256", f"--pwfile={secret}"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=place,
            **other,
        )
        port = free_port()
        server = subprocess.Popen(
            [
                *(programs / "postgres", "-D", f"{place}/data", "-p", str(port), "-k", place),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            stderr=subprocess.DEVNULL,
            cwd=place,
            **other,
        )
        address = f"postgresql://siftune:{DATABASE_PASSWORD}@127.0.0.1:{port}/postgres"
        try:
            wait_for(lambda: answers(port))
            yield address
        finally:
            server.send_signal(signal.SIGINT)  # ends its sessions, too
            server.wait(timeout=30)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Server:
    """`mlflow server` on a database, that asks for a password."""

    def __init__(self, database: str, folder: Path) -> None:
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._command = [Path(sys.executable).with_name("mlflow"), "server", "--workers", "1"]
        self._command += ["--app-name", "basic-auth", "--backend-store-uri", database]
        self._command += ["--artifacts-destination", folder / "artifacts"]
        self._command += ["--host", "127.0.0.1", "--port", str(self._port)]
        settings = configparser.ConfigParser()
        users = f"sqlite:///{folder}/users.db"
        settings["mlflow"] = {
            "default_permission": "READ",
            "database_uri": users,
            "admin_username": "ann",
            "auth_cache_ttl_seconds": "60",  # a password is slow to check, as it should be
        }
        with (folder / "auth.ini").open("w") as file:
            settings.write(file)
        self._environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._is_healthy)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.address}/health", timeout=5).status == 200
        return False


@pytest.fixture(scope="module")
def server(database, tmp_path_factory) -> Iterator[Server]:
    pytest.importorskip("flask_wtf", reason="Flask-WTF is not installed: mlflow[auth]")
    made = Server(database, tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def login(monkeypatch, server) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def test_a_server_killed_midway_gets_it_all_later(workspace, server, login, capsys):
    wrong = workspace / "wrong"
    wrong.mkdir()
    shutil.copy("params.yaml", wrong)
    refused = start(server.address, wrong, MLFLOW_TRACKING_PASSWORD="canary-that-is-wrong")
    assert finish(refused, wrong).count("error code 401") == 1
    process = start(server.address, workspace)
    wait_for(lambda: runs() and "loss" in runs()[0].data.metrics)
    server.kill()
    told = finish(process, workspace)
    assert told.count("MLflow does not answer as it should") == 1
    assert told.count("`siftune sync` completes it") == 1
    server.start()
    (run,) = runs()
    assert run.info.status == "RUNNING"
    for _ in range(3):
        sync.main(None)
        assert_complete(workspace)
    assert "nothing to do for 1 of 1" in capsys.readouterr().out
    os.chdir(wrong)
    sync.main(None)
    assert_complete(wrong, num_runs=2)
    written = [path for path in workspace.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in written)
    assert not [path for path in written if b"canary" in path.read_bytes()]


def test_a_server_with_a_password_shows_a_stage_while_it_runs(workspace, server, login):
    before = len(runs())
    process = start(server.address, workspace)
    wait_for(lambda: len(runs()) > before and "loss" in runs()[0].data.metrics)
    assert runs()[0].info.status == "RUNNING"
    assert finish(process, workspace) == ""
    assert_complete(workspace, num_runs=before + 1)


def test_the_database_itself_may_be_the_store(workspace, database, monkeypatch):
    # Where the server's runs keep their files is known to the server only.
    process = start(database, workspace, MLFLOW_EXPERIMENT_NAME="direct")
    assert finish(process, workspace) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    assert_complete(workspace, num_runs=len(runs()))
    (record,) = Path("work/runs").glob("*/run.json")
    assert DATABASE_PASSWORD not in record.read_text()


@contextlib.contextmanager
def failing_server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def do_POST(self) -> None:
            self.send_error(status)

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def nothing() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


def test_a_store_that_fails_costs_one_line_and_no_number(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    ways = {
        "refused": nothing(),
        "black hole": black_hole(),
        "500": failing_server(500),
        "401": failing_server(401),
    }
    with contextlib.ExitStack() as stack:
        stages = {}
        for name, way in ways.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "params.yaml").write_text("sft: {seed: 1}")
            stages[name] = start(stack.enter_context(way), folder)
        for name, process in stages.items():
            wait_for(lambda folder=tmp_path / name: list(folder.glob("work/runs/*/run.json")))
            told = finish(process, tmp_path / name)
            assert told.count("MLflow does not answer as it should") == 1, name
            assert told.count("`siftune sync` completes it") == 1, name
            assert len(told.splitlines()) == 2, name
    for number, name in enumerate(ways, start=1):
        monkeypatch.chdir(tmp_path / name)
        for _ in range(3):
            sync.main(f"sqlite:///{tmp_path}/mlflow.db")
        assert_complete(tmp_path / name, num_runs=number)


def test_without_any_network_the_file_in_the_repository_is_the_store(workspace, monkeypatch):
    alone = ("unshare", "--net")
    if subprocess.run([*alone, "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare --net is not allowed here")
    process = start("", workspace, *alone)
    assert finish(process, workspace) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace}/mlflow.db")
    assert_complete(workspace)
    assert json.loads(Path("metrics/sft.json").read_text())["final"] == 1
