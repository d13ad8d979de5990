"""One MLflow run a stage, from the same numbers that DVC reads.

The files are the truth: a stage's run is the folder `work/runs/<run>`, with `metrics.jsonl` over
steps, what went in and what came out, and the results are in `metrics/<stage>.json`. A process
beside the stage mirrors the folder to MLflow; what it could not, `siftune sync` does.
"""

import contextlib
import getpass
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from siftune import config, files, history, lock, mirror, provenance, redaction
from siftune.follower import Follower
from siftune.stage import RUN_AGAIN, RunAgain, StartAgain

METRICS = Path("metrics")
RUNS = Path("work/runs")
DEFAULT_EXPERIMENT = "siftune"
# Smaller files are copied; a larger one is published by a rename, never written in place.
LARGEST_COPY = 2**20


class Run:
    """What a stage logs while it runs.

    Args:
        folder: holds all that MLflow is to get.
        record: what becomes its run.json.
    """

    def __init__(self, folder: Path, record: dict[str, Any], follower: Follower) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        self._record = record
        self._follower = follower

    @property
    def id(self) -> str | None:
        """MLflow's run id, or None while MLflow does not answer; waits for its first answer."""
        return self._follower.run_id()

    @property
    def tags(self) -> dict[str, str]:
        """What ties the stages of one run together."""
        return self._record["tags"]

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append numbers at a step; on disk before this returns."""
        history.append(self.folder, values, step=step)

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """Go on from a step: what was logged at later ones is void. The rows that stand."""
        return history.rewind(self.folder, step)

    def report(self, **results: Any) -> None:
        """Results, also nested: numbers and facts for metrics/<stage>.json and MLflow."""
        self.results.update(results)

    def artifact(self, path: Path) -> None:
        """Keep a file, or the files of a folder, with the run, as they are now."""
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        names = {
            file.relative_to(path if path.is_dir() else path.parent).as_posix(): file
            for file in inside
            if file.is_file()
        }
        for name, file in names.items():
            _keep(file, self.folder / mirror.ARTIFACTS / name)
        self._record["artifacts"] = sorted({*self._record["artifacts"], *names})
        self._write()

    def dataset(self, path: Path, *, name: str, digest: str, context: str) -> None:
        """Say which data went in, by name, sha256 and place."""
        uri = path.resolve().as_uri()
        this = {"name": name, "digest": digest, "context": context, "uri": uri}
        if this not in self._record["datasets"]:
            self._record["datasets"].append(this)
            self._write()

    def _end(self, status: str) -> None:
        self._record |= {"status": status, "ended": time.time(), "results": self.results}
        self._write()

    def _write(self) -> None:
        files.write_json(self.folder / mirror.RECORD, self._record)


class _OtherRank(Run):
    """The run of a process that is not the first: it logs nowhere."""

    def __init__(self) -> None:
        self.results = {}

    @property
    def id(self) -> None:
        return None

    @property
    def tags(self) -> dict[str, str]:
        return {}

    def log(self, values: Mapping[str, float], *, step: int) -> None: ...

    def rewind(self, step: int) -> list[dict[str, Any]]:
        return []

    def artifact(self, path: Path) -> None: ...

    def dataset(self, path: Path, *, name: str, digest: str, context: str) -> None: ...


@contextmanager
def stage(name: str, *sections: str, fingerprint: str | None = None) -> Iterator[Run]:
    """Track one run of a stage; `sections` are the parts of params.yaml that it read.

    At the end `metrics/<name>.json` is written and the same numbers are logged. After an error the
    MLflow run is FAILED (KILLED after a stop), and no metrics file is written. A stage that did not
    finish and starts again from the same params and code goes on with its run. Of several ranks,
    only the first has a run.

    Args:
        fingerprint: what decides the result, in place of params and code. What is one training has
            one run, also if it starts again after its end because DVC did not note that.

    Raises:
        RunAgain: another stage works in this folder.
    """
    if os.environ.get("RANK", "0") != "0":
        yield _OtherRank()
        return
    params = config.raw_sections(*sections)
    cost = provenance.Cost()
    with lock.workspace(name):
        folder, record = _open(name, params, fingerprint)
        follower = Follower(folder)
        run = Run(folder, record, follower)
        try:
            yield run
            run.report(cost=cost.measure())
            files.write_json(METRICS / f"{name}.json", run.results)
            run.artifact(METRICS / f"{name}.json")
            run._end("finished")
        except BaseException as error:
            run.results = {}
            with contextlib.suppress(OSError):  # a full disk; without an end, it counts as killed
                run._end("stopped" if _is_stop(error) else "failed")
            follower.end(interrupted=True)
            raise
        follower.end()


def _open(
    name: str, params: dict[str, Any], fingerprint: str | None
) -> tuple[Path, dict[str, Any]]:
    """The folder of the run that goes on, or of a new one, and its run.json as written."""
    identity = fingerprint or provenance.digest([params, _code()])
    folder, record = _earlier(name, identity, also_finished=fingerprint is not None) or _new(name)
    holder = lock.holder()
    assert holder is not None
    process = asdict(holder)
    del process["heartbeat"]
    record |= {
        "identity": identity,
        "status": "running",
        "process": process,
        "ended": None,
        "script": sys.argv[0],
        "params": redaction.tree(params),
        "tags": {**provenance.tags(params), "siftune.stage": name},
        "results": {},
    }
    if not folder.exists():
        # Whole or absent: a stage that is killed here leaves no run.
        for left in RUNS.glob(".*.tmp"):
            shutil.rmtree(left)
        aside = RUNS / f".{folder.name}.tmp"
        aside.mkdir(parents=True)
        files.write_json(aside / mirror.RECORD, record)
        aside.rename(folder)
    files.write_json(folder / mirror.RECORD, record)
    return folder, record


def _earlier(
    name: str, identity: str, *, also_finished: bool
) -> tuple[Path, dict[str, Any]] | None:
    """The last run of the same, to go on with."""
    for folder, record in reversed(read_runs()):
        if (record["stage"], record["identity"]) == (name, identity):
            is_open = also_finished or record["status"] != "finished"
            return (folder, record) if is_open else None
    return None


def read_runs() -> list[tuple[Path, dict[str, Any]]]:
    """The folder and the run.json of every run of this repository, the oldest first."""
    found = []
    for path in sorted(RUNS.glob(f"[0-9]*/{mirror.RECORD}")):
        record = files.read_json(path)
        if "identity" in record:  # earlier versions pushed their runs themselves
            found.append((path.parent, record))
    return sorted(found, key=lambda run: run[1]["started"])


def _new(name: str) -> tuple[Path, dict[str, Any]]:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    # A process id is not enough: in containers all are 1.
    folder = RUNS / f"{stamp}-{name}-{secrets.token_hex(4)}"
    return folder, {
        "run": folder.name,
        "stage": name,
        "started": time.time(),
        "user": _user(),
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT),
        "datasets": [],
        "artifacts": [],
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container it may have no name
        return str(os.getuid())


def _code() -> str:
    """A digest of the package and the script, with or without git."""
    paths = [*sorted(Path(__file__).parent.rglob("*.py")), Path(sys.argv[0])]
    parts = [path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _is_stop(error: BaseException) -> bool:
    if isinstance(error, SystemExit):
        return error.code == RUN_AGAIN
    return isinstance(error, RunAgain | StartAgain | KeyboardInterrupt)


def _keep(file: Path, target: Path) -> None:
    """What the run made stays, whatever stands at its place later."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.published_file(target) as aside:
        if file.stat().st_size > LARGEST_COPY:
            with contextlib.suppress(OSError):  # other file system, or none with links
                os.link(file, aside)
                return
        shutil.copyfile(file, aside)
