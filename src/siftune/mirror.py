"""MLflow's side of a run: all that is in the run's folder, once.

Pushing may be broken off and begun again anywhere, by `follow` while the stage runs and by
`siftune sync` later. The MLflow run is found by its tag `siftune.run`; of each metric only steps
beyond the last that MLflow has are pushed. That loses none: a batch arrives whole or not at all,
in the order of the file. Times are the file's own, and the same point twice is one to MLflow.
"""

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from siftune import files, history

RECORD = "run.json"
ARTIFACTS = "artifacts"
# What MLflow takes.
MAX_METRICS = 1000
MAX_PARAM = 6000
MAX_NAME = 250
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
RUN_TAG = "siftune.run"
MIRRORED_TAG = "siftune.mirrored"
MIRRORED = ".mirrored"  # touched when MLflow has all; for `siftune status`, which asks no MLflow
_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")
_ALL = 3  # mlflow.entities.ViewType: deleted runs, too


def status_of(record: Mapping[str, Any]) -> str:
    """MLflow's word for the status of a run."""
    return STATUSES.get(record["status"], "RUNNING")


@contextmanager
def only_pusher(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Keep other processes from pushing this folder; False: one does, and `wait` was not asked."""
    with (folder / ".mirror").open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


class MirroredRun:
    """The MLflow run of one run folder.

    Args:
        busy: is told for how many seconds at most the next request may take.
    """

    def __init__(self, mlflow: Any, folder: Path, busy: Callable[[float], None]) -> None:
        self.id = ""
        self._folder = folder
        self._busy = busy
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient()
        self._timeout = int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        self._reader = history.Reader(folder)
        self.is_deleted = False
        self._run: Any = None
        self._last_steps: dict[str, int] = {}
        self._datasets: set[tuple[str, str]] = set()
        self._waiting: dict[tuple[str, int], Any] = {}
        self._uploaded: set[tuple[str, int, int]] = set()
        self._seen = ""

    def find(self, record: Mapping[str, Any]) -> bool:
        """Whether MLflow has the run, be it as one that was deleted."""
        experiment = self._client.get_experiment_by_name(record["experiment"])
        self._busy(0)
        if experiment is None:
            return False
        name = record["run"]
        found = self._client.search_runs(
            [experiment.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", run_view_type=_ALL
        )
        kept = [run for run in found if run.info.lifecycle_stage == "active"]
        kept.sort(key=lambda run: (-len(run.data.metrics), run.info.run_id))
        # Two machines that pushed at the same moment may have made one each.
        for twin in kept[1:]:
            self._client.delete_run(twin.info.run_id)
        for run in (kept or found)[:1]:
            self._take(run)
            self.is_deleted = not kept
        return bool(found)

    def is_mirrored(self, record: Mapping[str, Any], status: str) -> bool:
        """Whether MLflow has all of the folder as it is now; only of a run that was found."""
        return self._run.data.tags.get(MIRRORED_TAG) == self._digest(record, status)

    def push(self, record: Mapping[str, Any], status: str, *, mark: bool = False) -> None:
        """Bring MLflow up to the folder.

        Args:
            mark: note in MLflow that all of the folder is there.
        """
        if self._run is None and not self.find(record):
            self._create(record)
        if self.is_deleted:
            self._client.restore_run(self.id)
            self.is_deleted = False
        if (seen := json.dumps(record)) != self._seen:
            self._push_facts(record)
        self._push_points()
        if status != "RUNNING":
            self._push_results(record)
            ended = record["ended"] or _last_sign(self._folder)
            self._client.set_terminated(self.id, status, int(ended * 1000))
            self._busy(0)
        elif self._run.info.status != "RUNNING":
            self._client.update_run(self.id, status="RUNNING")
            self._take(self._client.get_run(self.id))
        if seen != self._seen:
            self._push_artifacts(record)
        self._seen = seen
        if mark:
            self._client.set_tag(self.id, MIRRORED_TAG, self._digest(record, status))
            (self._folder / MIRRORED).touch()
            self._busy(0)

    def _create(self, record: Mapping[str, Any]) -> None:
        experiment = self._client.get_experiment_by_name(record["experiment"])
        if experiment is None:
            try:
                number = self._client.create_experiment(record["experiment"])
            except self._mlflow.MlflowException:  # another stage was faster
                number = self._client.get_experiment_by_name(record["experiment"]).experiment_id
        else:
            number = experiment.experiment_id
        self._busy(0)
        tags = {
            RUN_TAG: record["run"],
            "mlflow.user": record["user"],
            "mlflow.source.name": record["script"],
            "mlflow.source.type": "LOCAL",
        }
        run = self._client.create_run(
            number, int(record["started"] * 1000), tags=tags, run_name=record["stage"]
        )
        self._take(run)

    def _take(self, run: Any) -> None:
        self._run, self.id = run, run.info.run_id
        # The latest points, with their steps; the public `metrics` has only the values.
        inputs = run.inputs.dataset_inputs if run.inputs else []
        self._datasets = {(one.dataset.name, one.dataset.digest) for one in inputs}
        self._last_steps = {point.key: point.step for point in run.data._metric_objs}
        self._busy(0)

    def _push_facts(self, record: Mapping[str, Any]) -> None:
        entities = self._mlflow.entities
        params = {
            _name(key): _shortened(str(value))
            for key, value in flatten(record["params"], separator=".").items()
        }
        has = self._run.data
        new_params = {key: value for key, value in params.items() if key not in has.params}
        new_tags = {
            key: value for key, value in record["tags"].items() if has.tags.get(key) != value
        }
        self._client.log_batch(
            self.id,
            params=[entities.Param(key, value) for key, value in new_params.items()],
            tags=[entities.RunTag(key, value) for key, value in new_tags.items()],
        )
        has.params.update(new_params)
        has.tags.update(new_tags)
        self._busy(0)
        for dataset in record["datasets"]:
            self._push_dataset(**dataset)

    def _push_dataset(self, name: str, digest: str, context: str, uri: str) -> None:
        digest = digest[:36]  # all that MLflow stores
        if (name, digest) in self._datasets:
            return
        entities = self._mlflow.entities
        dataset = entities.Dataset(name, digest, "local", json.dumps({"uri": uri}))
        tags = [entities.InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self.id, [entities.DatasetInput(dataset, tags)])
        self._datasets.add((name, digest))
        self._busy(0)

    def _push_points(self) -> None:
        for line in self._reader.new_lines():
            if "rewind" in line:
                self._waiting = {
                    point: metric
                    for point, metric in self._waiting.items()
                    if point[1] <= line["rewind"]
                }
            else:
                values = {key: line[key] for key in line if key not in ("step", "time")}
                self._add(values, step=line["step"], seconds=line["time"])
        self._push_waiting()

    def _push_results(self, record: Mapping[str, Any]) -> None:
        """Numbers of no step; where one of the same name has a history, that says it."""
        numbers = {
            key: value
            for key, value in flatten(record["results"]).items()
            if _is_number(value) and _name(key) not in self._last_steps
        }
        self._add(numbers, step=0, seconds=record["ended"] or 0)
        self._push_waiting()

    def _add(self, values: Mapping[str, Any], *, step: int, seconds: float) -> None:
        for key, value in values.items():
            name = _name(key)
            if step > self._last_steps.get(name, -math.inf):
                metric = self._mlflow.entities.Metric(name, value, int(seconds * 1000), step)
                self._waiting.setdefault((name, step), metric)

    def _push_waiting(self) -> None:
        while self._waiting:
            points = list(self._waiting)[:MAX_METRICS]
            self._client.log_batch(self.id, metrics=[self._waiting[point] for point in points])
            self._busy(0)
            for key, step in points:
                self._last_steps[key] = max(step, self._last_steps.get(key, step))
                del self._waiting[key, step]

    def _push_artifacts(self, record: Mapping[str, Any]) -> None:
        for name in record["artifacts"]:
            path = self._folder / ARTIFACTS / name
            facts = path.stat()
            this = (name, facts.st_size, facts.st_mtime_ns)
            if this in self._uploaded:
                continue
            # A store takes its time for a large file.
            seconds = facts.st_size // 2**20
            self._busy(seconds)
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self._timeout + seconds)
            folder = Path(name).parent.as_posix()
            self._client.log_artifact(self.id, str(path), None if folder == "." else folder)
            os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self._timeout)
            self._uploaded.add(this)
            self._busy(0)

    def _digest(self, record: Mapping[str, Any], status: str) -> str:
        numbers = self._folder / history.NAME
        parts = [record, status, files.sha256(numbers) if numbers.exists() else None]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def flatten(tree: Mapping[str, Any], *, separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a/b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator=separator, prefix=f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _name(key: str) -> str:
    return _NOT_IN_NAMES.sub("_", key)[:MAX_NAME]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_PARAM else f"{text[: MAX_PARAM - 1]}…"


def _last_sign(folder: Path) -> float:
    """When a run that did not say its end was seen last."""
    signs = [folder / RECORD, folder / history.NAME]
    return max(path.stat().st_mtime for path in signs if path.exists())
