"""What is done, what runs, what goes on from which step: from the files alone, on any host.

Nothing is changed or locked, and neither DVC nor MLflow is asked: it may run beside a stage, and
reads what it finds, whole or not.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from siftune import files, history, lock, mirror, wording
from siftune.config import PARAMS_FILE
from siftune.resume import checkpoints, fingerprint
from siftune.sections import PHASES
from siftune.stage import UserError

PIPELINE, PIPELINE_LOCK = Path("dvc.yaml"), Path("dvc.lock")
WORK = Path("work")
FINGERPRINT = "[0-9a-f]" * 16
MAX_TRAININGS = 3
AT_WORK = ("running", "stopping", "running?")


def main() -> None:
    """Print the stages in order, the trainings that can go on, and what MLflow lacks.

    Raises:
        UserError: this is not the repository's root.
    """
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE} is not in {Path.cwd()}: run this in the repository's root.")
    for line in report():
        print(line)


def report() -> Iterator[str]:
    """The lines of `siftune status`."""
    runs = _runs()
    states = _states([run for _, run in runs])
    widths = [max(len(row[column]) for row in states) for column in (0, 1)]
    for stage, state, detail in states:
        yield f"{stage:<{widths[0]}}  {state:<{widths[1]}}  {detail}".rstrip()
    yield from _trainings(is_running=any(state in AT_WORK for _, state, _ in states))
    yield ""
    ended = [folder for folder, run in runs if run.get("status") != "running"]
    lacking = sum(not _is_mirrored(folder) for folder in ended)
    if lacking:
        yield f"MLflow lacks part of {lacking} of {len(ended)} runs; `siftune sync` completes them."
    waiting = [stage for stage, state, _ in states if state not in ("done", "left out")]
    if not waiting:
        yield "All is done; `dvc status` says whether code or data have changed since."
    elif not any(state in AT_WORK for _, state, _ in states):
        yield f"`dvc repro` goes on with {waiting[0]}."


def _states(runs: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Stage, state and what is to be said about it, in the order of dvc.yaml."""
    locked = _mapping(_read(PIPELINE_LOCK), "stages")
    params = _read(PARAMS_FILE)
    last = {str(run.get("stage")): run for run in runs}
    holder, odd = _holder()
    states = []
    for stage in _mapping(_read(PIPELINE), "stages"):
        if stage in PHASES and stage in params and params[stage] is None:
            states.append((stage, "left out", ""))
        elif holder and holder.stage == stage and (state := _state_of(holder)):
            states.append((stage, state, holder.where))
        else:
            states.append((stage, *_state(_mapping(locked, stage), params, last.get(stage))))
    return [*states, *([("lock", "odd", odd)] if odd else [])]


def _state(
    locked: dict[str, Any], params: dict[str, Any], run: dict[str, Any] | None
) -> tuple[str, str]:
    outs = [str(out.get("path")) for out in locked.get("outs") or [] if isinstance(out, dict)]
    if locked and all(Path(out).exists() for out in outs):
        used = _mapping(locked, "params", str(PARAMS_FILE))
        changed = [name for name, value in used.items() if params.get(name) != value]
        if not changed:
            return "done", ""
        return "outdated", f"{PARAMS_FILE} has changed since: {', '.join(changed)}"
    if run is None:
        return "to do", ""
    status = str(run.get("status"))
    if status == "running":
        return _state_of_run(run)
    when = f"at {_time(run['ended'])}" if isinstance(run.get("ended"), int | float) else ""
    if status == "finished":
        return status, f"{when}; DVC did not note it, and runs it again"
    return status, when


def _state_of_run(run: dict[str, Any]) -> tuple[str, str]:
    """Of one that says it is running: a killed one says so for ever."""
    try:
        process = lock.as_holder(run.get("process"))
    except ValueError:
        return "unknown", "its run.json is not complete"
    job = f" (Slurm job {process.job})" if process.job else ""
    return _state_of(process) or "killed", f"on {process.host}{job}, begun {process.since}"


def _state_of(holder: lock.Holder) -> str | None:
    """A word for a holder that may be at work; None: it is dead."""
    alive = lock.alive(holder)
    if alive is None:
        return "running?"  # it cannot be known from here
    if not alive:
        return None
    return "stopping" if lock.is_stopping(holder) else "running"


def _holder() -> tuple[lock.Holder | None, str]:
    try:
        return lock.holder(), ""
    except (OSError, UserError) as error:
        return None, str(error)


def _runs() -> list[tuple[Path, dict[str, Any]]]:
    """Folder and run.json of each tracked run, the oldest first."""
    records = sorted((WORK / "runs").glob(f"[0-9]*/{mirror.RECORD}"))
    return [(path.parent, _read(path)) for path in records]


def _is_mirrored(folder: Path) -> bool:
    """Whether nothing was logged since MLflow had all of it."""
    try:
        then = (folder / mirror.MIRRORED).stat().st_mtime
        logged = [folder / mirror.RECORD, folder / history.NAME]
        return all(path.stat().st_mtime <= then for path in logged if path.exists())
    except FileNotFoundError:
        return False


def _trainings(*, is_running: bool) -> Iterator[str]:
    """What can be gone on with, the newest first."""
    found = trainings()
    for folder in found[:MAX_TRAININGS]:
        yield ""
        made_of = _mapping(_read(folder / fingerprint.MADE_OF), "params")
        phases = [phase for phase in PHASES if made_of.get(phase)]
        yield " ".join([f"training {folder}", *(f"({phase})" for phase in phases)])
        try:
            facts = list(_training(folder, is_running=is_running))
        except OSError as error:
            facts = [("odd", str(error))]
        yield from (f"  {name:<10}  {text}" for name, text in facts)
    if len(found) > MAX_TRAININGS:
        yield f"\n{len(found) - MAX_TRAININGS} older trainings are in {WORK}."


def trainings() -> list[Path]:
    """The folders of what was trained here, the one that changed last first."""
    found = [path for path in WORK.glob(FINGERPRINT) if path.is_dir()]
    return sorted(found, key=_last_change, reverse=True)


def _training(folder: Path, *, is_running: bool) -> Iterator[tuple[str, str]]:
    starts = [
        row
        for row in files.read_lines(folder / "starts.jsonl")
        if isinstance(row, dict) and ("started" in row or "ended" in row)
    ]
    ends = [row for row in starts if "ended" in row]
    manifest = next((found for _, found in checkpoints.published(folder / "checkpoints")), {})
    step = manifest.get("step", 0)
    if ends and ends[-1]["ended"] == "finished":
        yield "finished", f"at step {ends[-1].get('step')}"
    elif manifest:
        saved = age(str(manifest.get("saved")))
        yield "checkpoint", f"step {step} of {manifest.get('max_steps', '?')}, saved {saved}"
        yield "resumable", f"from step {step}"
    else:
        yield "checkpoint", "none yet: it begins at step 0"
    if broken := sorted(path.name for path in folder.glob("checkpoints/broken-*")):
        yield "broken", f"{len(broken)} set aside: {', '.join(broken[-2:])}"
    if died := _died(starts, step, is_running=is_running):
        error = next((f": {error}" for error in reversed(died) if error), "")
        yield "died", f"{len(died)} of the last starts at step {step}{error}"


def _died(starts: list[dict[str, Any]], step: int, *, is_running: bool) -> list[str]:
    """The last words, if any, of the starts in a row that died at `step`."""
    died: list[tuple[Any, str]] = []
    for row in starts:
        if "started" in row:
            died.append((row.get("step"), ""))
        elif row["ended"] == "crashed" and died:
            died[-1] = (died[-1][0], str(row.get("error", "")))
        else:
            died.clear()
    if is_running and starts and "started" in starts[-1]:
        died.pop()
    return [error for begun, error in died if begun == step]


def _last_change(folder: Path) -> float:
    paths = [folder, *folder.glob("*"), *folder.glob("checkpoints/*")]
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # just removed by a training that is at work
            continue
    return max(times, default=0.0)


def _read(path: Path) -> dict[str, Any]:
    """A mapping from a JSON or YAML file; an empty one where there is none to be read."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        inner = tree.get(key)
        tree = inner if isinstance(inner, dict) else {}
    return tree


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(when: str) -> str:
    """A time, as files have it, and how long ago that is."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    except (TypeError, ValueError):  # no time, or one without its zone
        return when
    return f"{when} ({wording.duration(max(seconds, 0.0))} ago)"
