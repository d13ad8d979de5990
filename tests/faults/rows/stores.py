"""MLflow's store refuses, is silent, answers with errors, or dies; training does not mind."""

import http.server
import json
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import promise
import workspace
from process import until
from promise import must
from trial import HANG, Trial

from rows.jobs import check_store

WHICH = ("refused", "black-holed", "500", "401", "killed midway", "killed with its stage")
SERVER_SECONDS = 90.0


def fails(trial: Trial) -> None:
    """WHICH[seed % 6]; later three syncs complete a store, and none of them doubles a number."""
    which = WHICH[trial.seed % len(WHICH)]
    trial.copy()
    if which == "killed midway":
        return _server_killed(trial)
    if which == "killed with its stage":
        _stage_killed(trial)
    else:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
            if which != "refused":
                listening.listen(16)
            if which in ("500", "401"):
                trial.call(lambda: _answer(listening, int(which)), "server")
            _trained_beside(trial, which, uri)
    _synced(trial, which, f"sqlite:///{trial.base}/later.db", trial.base / "later.db")


def _synced(trial: Trial, which: str, uri: str, store: Path) -> None:
    promise.check_finished(trial.folder, trial.template.golden)
    told = []
    for _ in range(3):
        synced = trial.siftune("sync", uri)
        must(synced.code == 0, f"{which}: sync ended with {synced.code}: {synced.err[-600:]}")
        told.append(synced.out.strip().splitlines()[-1])
        check_store(store, trial.template.golden)
    must(told[1:] == ["nothing to do for 1 of 1"] * 2, f"{which}: the syncs said {told}")


def _trained_beside(trial: Trial, which: str, uri: str) -> None:
    # Without a store that has to be asked for an answer; under the same load as what follows.
    usual = workspace.copy(trial.template.folder, trial.base / "usual")
    must(trial.start(folder=usual).wait(2 * HANG) == 0, "without any fault it fails")
    running = trial.start(MLFLOW_TRACKING_URI=uri)
    code = running.wait(2 * HANG)
    must(code == 0, f"{which}: it ended with {code}: {running.err[-600:]}")
    must("MLflow" in running.err, f"{which}: not a word of it", promise.Silent)
    ratio = step_seconds(trial.folder) / step_seconds(usual)
    trial.notes.append(f"{which}: a step takes {ratio:.2f} of its usual time")


def step_seconds(folder: Path) -> float:
    """The median of what a step takes."""
    times: dict[int, float] = {}
    for line in promise.lines(promise.run_folder(folder) / "metrics.jsonl"):
        times.setdefault(line["step"], line["time"])
    return statistics.median(after - before for before, after in pairwise(times.values()))


def _answer(listening: socket.socket, code: int) -> None:
    """In a forked child, until it is killed: an error for everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def refuse(self) -> None:
            body = json.dumps({"error_code": "INTERNAL_ERROR", "message": "no"}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = refuse  # noqa: N815

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    server.serve_forever()


def _server_killed(trial: Trial) -> None:
    """A real server, whose processes are all killed while the stage trains; later it is back."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        port = any_port.getsockname()[1]
    store, uri = trial.base / "live.db", f"http://127.0.0.1:{port}"
    with _server(store, port):
        running = trial.start(patch=_slow_steps, MLFLOW_TRACKING_URI=uri)
        has_begun = until(lambda: _num_points(store) > 0, HANG)
        must(has_begun, "MLflow got nothing of a training that is under way")
    code = running.wait(2 * HANG)
    must(code == 0, f"killed midway: it ended with {code}: {running.err[-600:]}")
    must("MLflow" in running.err, "killed midway: not a word of it", promise.Silent)
    with _server(store, port):
        _synced(trial, "killed midway", uri, store)


@contextmanager
def _server(store: Path, port: int) -> Iterator[None]:
    """Killed at the end, with all of its processes."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{store}", "--host", "127.0.0.1"],
        cwd=store.parent, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    ) as server:  # fmt: skip
        try:
            must(until(lambda: _listens(port), SERVER_SECONDS), "mlflow server does not start")
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def _stage_killed(trial: Trial) -> None:
    """Beside a store that answers: after kill -9 and a second start, it is one run."""
    store = trial.base / "later.db"
    address = f"sqlite:///{store}"
    running = trial.start(patch=_slow_steps, MLFLOW_TRACKING_URI=address)
    has_begun = until(lambda: _num_points(store) > 0, HANG)
    must(has_begun, "MLflow got nothing of a training that is under way")
    running.runs_for(random.Random(trial.seed).uniform(0, 1))
    running.kill()
    trial.finish(resumed_from=trial.newest(), MLFLOW_TRACKING_URI=address)
    check_store(store, trial.template.golden)


def _slow_steps() -> None:
    """A mirror is live: give it the time that real steps have."""
    from siftune.resume.trainer import Resumable

    log = Resumable.log

    def slow(self: Resumable, *args: object, **kwargs: object) -> None:
        time.sleep(0.25)
        log(self, *args, **kwargs)

    Resumable.log = slow


def _listens(port: int) -> bool:
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0


def _num_points(store: Path) -> int:
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as opened:
            return opened.execute("SELECT count(*) FROM metrics").fetchone()[0]
    except sqlite3.Error:
        return 0
