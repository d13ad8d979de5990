"""`siftune sync`: what MLflow does not have yet of the runs in work/runs, from the files alone."""

import os
from pathlib import Path
from typing import Any

from siftune import lock, mirror, redaction, store, tracking
from siftune.stage import UserError

UP_TO_DATE = "nothing to do"
SURROUNDINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # nothing waits for this command
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def main(address: str | None) -> None:
    """Complete every run in MLflow, and close as KILLED those whose job is dead.

    Args:
        address: of MLflow's store, in place of MLFLOW_TRACKING_URI.

    Raises:
        UserError: there are no runs, MLflow does not answer, or it refused one.
    """
    runs = tracking.read_runs()
    if not runs:
        raise UserError(
            f"there is nothing to sync: {Path.cwd()} has no run in {tracking.RUNS}. Run this in "
            "the repository's root, after a stage has run."
        )
    if address:
        os.environ["MLFLOW_TRACKING_URI"] = address
    for variable, value in SURROUNDINGS.items():
        os.environ.setdefault(variable, value)
    mlflow = _connect()
    refused = 0
    outcomes = []
    for folder, record in runs:
        try:
            outcomes.append(_sync(mlflow, folder, record))
        except Exception as error:  # what MLflow raises is not one family
            _connect()
            refused += 1
            outcomes.append(f"refused: {store.reason(error)}")
        if outcomes[-1] != UP_TO_DATE:
            print(f"{folder.name}: {outcomes[-1]}", flush=True)
    num_same = outcomes.count(UP_TO_DATE)
    print(f"{UP_TO_DATE} for {num_same} of {len(runs)}")
    if refused:
        raise UserError(
            f"MLflow at {_where()} refused {refused} of {len(runs)} runs, for the reasons above. "
            "The files hold them; run `siftune sync` again once it takes them."
        )


def _sync(mlflow: Any, folder: Path, record: dict[str, Any]) -> str:
    """Bring MLflow up to one folder, and say what that was."""
    with mirror.only_pusher(folder, wait=False) as is_alone:
        if not is_alone:
            return "is being mirrored by its own stage"
        status = mirror.status_of(record)
        is_alive = _is_alive(record) if status == "RUNNING" else False
        if is_alive:
            return "still runs, and mirrors itself"
        if status == "RUNNING" and is_alive is False:
            status = "KILLED"
        run = mirror.MirroredRun(mlflow, folder, lambda seconds: None)
        if run.find(record):
            if run.is_deleted:
                return "was deleted in MLflow, and stays so"
            if run.is_mirrored(record, status):
                (folder / mirror.MIRRORED).touch()
                return UP_TO_DATE
        run.push(record, status, mark=True)
    if status == "RUNNING":
        host = record["process"]["host"]
        return f"pushed; whether it still runs on {host} cannot be known here"
    return f"complete, {status}"


def _is_alive(record: dict[str, Any]) -> bool | None:
    return lock.alive(lock.Holder(**record["process"], heartbeat=0.0))


def _connect() -> Any:
    try:
        return store.connect()
    except Exception as error:
        raise UserError(
            f"MLflow does not answer as it should at {_where()}: {store.reason(error)}. Set "
            "MLFLOW_TRACKING_URI to a server that does (with MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, if it asks for them), then run `siftune sync` again."
        ) from None


def _where() -> str:
    return redaction.text(store.address())
