"""One MLflow run a stage, from the same numbers that DVC reads.

The files are the truth: `work/runs/<run>/metrics.jsonl` over steps and `metrics/<stage>.json` at
the end. MLflow mirrors them. When it does not answer, the stage goes on and says so once.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from siftune import config, files, provenance
from siftune.stage import UserError

METRICS = Path("metrics")
DEFAULT_STORE = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "siftune"
# MLflow's own default waits minutes for a server that is not there.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class Run:
    """What a stage logs while it runs."""

    def __init__(self, folder: Path, tags: dict[str, str], mirror: "_Mirror") -> None:
        self.tags = tags
        self.results: dict[str, Any] = {}
        self._history = folder / "metrics.jsonl"
        self._mirror = mirror

    @property
    def id(self) -> str | None:
        """MLflow's run id, or None while MLflow does not answer."""
        return self._mirror.run_id

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Append numbers at a step; on disk before this returns."""
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._mirror.call(lambda mlflow: mlflow.log_metrics(dict(values), step=step))

    def report(self, **results: Any) -> None:
        """Results, also nested: numbers and facts for metrics/<stage>.json and MLflow."""
        self.results.update(results)

    def artifact(self, path: Path) -> None:
        """Keep a file or folder with the run."""
        log = "log_artifacts" if path.is_dir() else "log_artifact"
        self._mirror.call(lambda mlflow: getattr(mlflow, log)(str(path)))

    def dataset(self, path: Path, *, name: str, digest: str, context: str) -> None:
        """Say which data went in, by name, sha256 and place."""

        def log(mlflow: Any) -> None:
            from mlflow.data.meta_dataset import MetaDataset
            from mlflow.data.sources import LocalArtifactDatasetSource

            source = LocalArtifactDatasetSource(uri=path.resolve().as_uri())
            # MLflow stores 36 characters of a digest.
            mlflow.log_input(MetaDataset(source, name=name, digest=digest[:36]), context=context)

        self._mirror.call(log)


@contextmanager
def stage(name: str, *sections: str) -> Iterator[Run]:
    """Track one run of a stage; `sections` are the parts of params.yaml that it read.

    At the end `metrics/<name>.json` is written and the same numbers are logged. After an error the
    MLflow run is FAILED (KILLED after an interrupt), and no metrics file is written.
    """
    params = config.raw_sections(*sections)
    cost = provenance.Cost()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    folder = Path("work/runs") / f"{stamp}-{name}-{os.getpid()}"
    folder.mkdir(parents=True)
    tags = {**provenance.tags(params), "siftune.stage": name}
    files.write_json(folder / "run.json", {"stage": name, "params": params, "tags": tags})
    mirror = _Mirror()
    mirror.start(name, tags=tags, params=flatten(params, separator="."))
    run = Run(folder, tags, mirror)
    try:
        yield run
        results = {**run.results, "cost": cost.measure()}
        files.write_json(METRICS / f"{name}.json", results)
    except Exception:
        mirror.end("FAILED")
        raise
    except BaseException:
        mirror.end("KILLED")
        raise
    numbers = {key: value for key, value in flatten(results).items() if _is_number(value)}
    mirror.call(lambda mlflow: mlflow.log_metrics(numbers))
    mirror.call(lambda mlflow: mlflow.log_artifact(str(METRICS / f"{name}.json")))
    mirror.end("FINISHED")


class Score(NamedTuple):
    """What the alias `best` is decided by: scores on other test data do not compare."""

    metric: str
    value: float
    test_sha256: str


class Registered(NamedTuple):
    """A version in MLflow's registry, and whether it now carries the alias `best`."""

    version: int
    is_best: bool


def register(
    run: Run, name: str, *, reference: Path, score: Score, tags: dict[str, str]
) -> Registered:
    """Register the folder `reference` as a new version of the model `name`.

    Raises:
        UserError: MLflow does not answer; here nothing else can take its place.
    """
    if run.id is None:
        raise UserError(
            f"MLflow does not answer at {_store()}, and a registry cannot be mirrored later. "
            "Set MLFLOW_TRACKING_URI to a server that answers, then run `dvc repro` again."
        )
    import mlflow

    logged = mlflow.pyfunc.log_model(
        name="merged",
        loader_module="siftune.registry",
        data_path=str(reference),
        pip_requirements=[],  # the checkout and the image are the environment
        registered_model_name=name,
    )
    version = str(logged.registered_model_version)
    client = mlflow.MlflowClient()
    best = client.get_registered_model(name).aliases.get("best")
    is_best = best is None or _beats(score, client.get_model_version(name, best).tags)
    own = {
        "siftune.metric": score.metric,
        "siftune.score": repr(score.value),
        "siftune.test_sha256": score.test_sha256,
    }
    for tag, value in {**run.tags, **tags, **own}.items():
        client.set_model_version_tag(name, version, tag, value)
    if is_best:
        client.set_registered_model_alias(name, "best", version)
    return Registered(int(version), is_best)


def _beats(score: Score, best: dict[str, str]) -> bool:
    same_test = (best.get("siftune.metric"), best.get("siftune.test_sha256")) == (
        score.metric,
        score.test_sha256,
    )
    return not same_test or score.value > float(best["siftune.score"])


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


class _Mirror:
    """MLflow, or nothing once it has failed."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self._mlflow: Any = None

    def start(self, name: str, *, tags: dict[str, str], params: dict[str, Any]) -> None:
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        self._mlflow = connect()

        def begin(mlflow: Any) -> None:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT))
            self.run_id = mlflow.start_run(run_name=name, tags=tags).info.run_id
            mlflow.log_params(params)

        self.call(begin)

    def call(self, action: Callable[[Any], Any]) -> None:
        if self._mlflow is None:
            return
        try:
            action(self._mlflow)
        except Exception as error:  # whatever the store raises must not end a training
            self._mlflow = None
            print(
                f"siftune: MLflow does not answer; the files go on without it: {error}",
                file=sys.stderr,
            )

    def end(self, status: str) -> None:
        self.call(lambda mlflow: mlflow.end_run(status))


def connect() -> Any:
    """The mlflow module, set to MLFLOW_TRACKING_URI or the SQLite file in the repository's root."""
    import mlflow

    mlflow.set_tracking_uri(_store())
    return mlflow


def _store() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_STORE)
