"""This checkout: git, DVC, the params, and whether an offline job finds model, data, benchmarks."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siftune import provenance
from siftune.doctor import packages, place
from siftune.doctor.finding import OK, PATIENCE, PROBLEM, WARNING, Finding
from siftune.stage import UserError

MANIFEST, RAW = Path("models/base.json"), Path("data/raw.json")
TASKS = Path("eval/tasks")
FETCH = "On a login node run `siftune fetch --all`."


def git() -> Iterator[Finding]:
    """Whether a run can be traced to a commit."""
    if shutil.which("git") is None:
        yield Finding(
            PROBLEM, "git", "is not on the path, and DVC needs it", "Install git, or load a module."
        )
        return
    done = _git("status", "--porcelain", "--", *provenance.CHECKOUT)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["git status fails"]
        todo = "Clone the repository with git; DVC works in a clone only."
        if "dubious ownership" in done.stderr:
            todo = f"git config --global --add safe.directory '{Path.cwd()}'"
        yield Finding(PROBLEM, "git", said[0], todo)
        return
    commit = _git("rev-parse", "--short", "HEAD").stdout.strip() or "no commit yet"
    changed = done.stdout.splitlines()
    if changed:
        yield Finding(
            WARNING, "git", f"{commit}, and changes of {len(changed)} files that are not in it",
            "Commit them: runs are logged with their commit.",
        )  # fmt: skip
    else:
        yield Finding(OK, "git", f"{commit}, clean")


def params() -> Iterator[Finding]:
    """Whether params.yaml is valid, here and with the processes of this job."""
    if not packages.has_stack():
        return
    from siftune import config, preflight, ranks

    num_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    try:
        world_size = ranks.num_processes() * num_nodes
        preflight.check(config.load_all(), world_size=world_size)
    except UserError as error:
        yield Finding(PROBLEM, "params", " ".join(str(error).split()))
    else:
        yield Finding(OK, "params", "params.yaml is valid, as far as a moment shows")


def offline() -> Iterator[Finding]:
    """Whether base model, data and benchmarks are on this disk."""
    if not packages.has_stack():
        return
    from siftune import config

    try:
        found = config.load("model", "data", "benchmark")
    except UserError:
        return  # `params` says it
    yield from _base_model(found.model)
    yield from _data(found.data)
    yield from _benchmarks(found.benchmark.tasks)


def _base_model(model: Any) -> Iterator[Finding]:
    from siftune import sources

    try:
        folder = sources.model_files(model.source, model.revision, offline=True)
    except UserError as error:
        yield Finding(PROBLEM, "base model", str(error).splitlines()[0], FETCH)
        return
    described = _read(MANIFEST)
    is_this = [described.get("source"), described.get("revision")] == [model.source, model.revision]
    # A GGUF file is turned into the files that are described, whenever they are gone.
    wrong = [
        name for name, file in described.get("files", {}).items()
        if is_this and folder.is_dir() and not _has_size(folder / name, file["size"])
    ]  # fmt: skip
    if wrong:
        again = "Run `dvc repro --force fetch` on a login node."
        yield Finding(PROBLEM, "base model", f"{folder}: {', '.join(wrong)} changed", again)
    else:
        yield Finding(OK, "base model", f"{model.source}, on this disk")
    if model.adapter:
        yield _adapter(model.adapter)


def _adapter(adapter: Any) -> Finding:
    from siftune import sources

    try:
        sources.model_files(adapter.source, adapter.revision, kind="adapter", offline=True)
    except UserError as error:
        return Finding(PROBLEM, "adapter", str(error).splitlines()[0], FETCH)
    return Finding(OK, "adapter", f"{adapter.source}, on this disk")


def _data(data: Any) -> Iterator[Finding]:
    from siftune import sources

    named = [[source.source, source.revision] for source in data.sources]
    try:
        sources.check_data(data)
        if _read(RAW).get("sources") != named or not Path(data.path).exists():
            for source in data.sources:
                sources.data_files(source, offline=True)
    except UserError as error:
        yield Finding(PROBLEM, "data", str(error).splitlines()[0], FETCH)
    else:
        yield Finding(OK, "data", f"{data.name}, needs no network")


def _benchmarks(tasks: list[str]) -> Iterator[Finding]:
    from siftune import fetching

    known = {
        piece.name: piece
        for piece in fetching.recorded() or []
        if piece.kind == "evaluation data" and not piece.problem
    }
    missing = [
        name for name in tasks
        if name not in known or not all(Path(one).is_dir() for one in known[name].folders)
    ]  # fmt: skip
    of_a_hub = [name for name in missing if name in _of_lm_eval(tasks)]
    if of_a_hub:
        told = f"whether {', '.join(of_a_hub)} can be loaded without a network was not tried here"
        yield Finding(PROBLEM if place.in_job() else WARNING, "benchmarks", told, FETCH)
    else:
        yield Finding(OK, "benchmarks", f"{', '.join(tasks)}, on this disk")


def _of_lm_eval(tasks: list[str]) -> list[str]:
    """Those that are no file of eval/tasks; what ours read is known to lm-eval only."""
    ours = {path.stem for path in TASKS.rglob("*.yaml")}
    return [name for name in tasks if name not in ours]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _git(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["git", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
