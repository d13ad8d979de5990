"""`siftune fetch --all`: what the params name, where nodes without a network find it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from siftune import config, files, provenance, sources, stage, wording
from siftune.stage import UserError

RECORD = Path("work/fetched.json")
# What lm-eval reads with these comes from a file of ours, which a stage writes.
_FILE_READERS = ("arrow", "csv", "json", "parquet", "text")
_FOUND = "loads without a network"
_NOTHING = "nothing to fetch"


@dataclass(frozen=True)
class Piece:
    """A model, a data set, or the data of a benchmark."""

    kind: str  # base model, adapter, data, evaluation data
    name: str
    folders: list[str]  # absolute; none where there is nothing to fetch
    problem: str | None = None


def main() -> None:
    """Fetch all, look whether it can be loaded without a network, and say what cannot.

    Raises:
        UserError: something is not here; the message says what, why, and what to do.
    """
    params = config.load("model", "data", "benchmark")
    stages = subprocess.run([sys.executable, "-P", "-m", "siftune", "repro", "fetch"])
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("", "0"):
        reasons = {(piece.kind, piece.name): piece.problem for piece in pieces(params)}
    else:
        reasons = {}
    found = _without_network()
    files.write_json(RECORD, {"of": _identity(params), "pieces": [asdict(one) for one in found]})
    for line in _table(found):
        print(line)
    problems = []
    for one in found:
        # What the hub said is the reason; that it is not on this disk, the consequence.
        reason = reasons.get((one.kind, one.name)) or one.problem
        if one.problem and reason:
            problems.append(f"{one.kind} {one.name}: {reason}".replace("\n", "\n  "))
    if stages.returncode:
        problems.append("the stages up to `fetch` did not finish; their own words are above.")
    if problems:
        raise UserError(
            f"not all that a node without a network needs is here ({_home()}).\n  "
            + "\n  ".join(problems)
        )
    print(f"All that a node without a network needs is in {_home()}.")


def pieces(params: Any) -> Iterator[Piece]:
    """What the params name, fetched if need be; HF_HUB_OFFLINE=1 makes it look only."""
    yield _of_model("base model", "model", params.model.source, params.model.revision)
    if adapter := params.model.adapter:
        yield _of_model("adapter", "adapter", adapter.source, adapter.revision)
    for source in params.data.sources:
        try:
            folder = sources.data_files(source)
            yield Piece("data", source.source, [str(folder)] if folder else [])
        except UserError as error:
            yield Piece("data", source.source, [], str(error))
    # The library of benchmarks takes its time.
    from siftune import benchmark

    try:
        tasks = benchmark.find_tasks(params.benchmark.tasks)
    except UserError as error:
        yield Piece("evaluation data", ", ".join(params.benchmark.tasks), [], str(error))
        return
    for name in params.benchmark.tasks:
        try:
            yield Piece("evaluation data", name, _evaluation_data(tasks, name))
        except UserError as error:
            yield Piece("evaluation data", name, [], str(error))


def _of_model(
    piece: str, kind: Literal["model", "adapter"], source: str, revision: str | None
) -> Piece:
    try:
        path = sources.model_files(source, revision, kind=kind)
    except UserError as error:
        return Piece(piece, source, [], str(error))
    # Not resolved: a link below the repository is where a bundle will have the model.
    return Piece(piece, source, [str(path.absolute())])


def recorded() -> list[Piece] | None:
    """What the last `siftune fetch --all` found; None: there was none, or of other params."""
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        if record["of"] == _identity(config.load("model", "data", "benchmark")):
            return [Piece(**piece) for piece in record["pieces"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _evaluation_data(tasks: Any, name: str) -> list[str]:
    """The folders of a benchmark's data in the cache of `datasets`."""
    from siftune import benchmark

    own = tasks.task_index[name].cfg or {}
    if own.get("dataset_path") in _FILE_READERS:
        return []
    splits = [
        split
        for task in benchmark.loaded(tasks, [name]).values()
        for split in (task.dataset or {}).values()
    ]
    # A benchmark that makes its data up has no files.
    arrows = [file["filename"] for split in splits for file in getattr(split, "cache_files", [])]
    return sorted({str(Path(arrow).parent.resolve()) for arrow in arrows})


def _without_network() -> list[Piece]:
    """`pieces`, as a process sees them that reaches no hub: libraries read that when imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_DATASETS_OFFLINE", None)
    command = [sys.executable, "-P", "-m", "siftune.fetching"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError("what was fetched cannot be looked at; the reason is above.")
    return [Piece(**piece) for piece in json.loads(done.stdout.splitlines()[-1])]


def _identity(params: Any) -> str:
    return provenance.digest(
        {"model": asdict(params.model), "data": asdict(params.data),
         "tasks": params.benchmark.tasks}
    )  # fmt: skip


def _home() -> str:
    from huggingface_hub import constants

    given = "" if os.environ.get("HF_HOME") else " (HF_HOME is not set)"
    return f"{constants.HF_HOME}{given}"


def _table(found: Iterable[Piece]) -> Iterator[str]:
    rows = [
        (
            one.kind,
            one.name,
            wording.size(sum(map(_size, one.folders))) if one.folders else "",
            "MISSING" if one.problem else _FOUND if one.folders else _NOTHING,
        )
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for kind, name, size, state in rows:
        yield f"{kind:<{widths[0]}}  {name:<{widths[1]}}  {size:>{widths[2]}}  {state}"


def _size(folder: str) -> int:
    paths = [Path(folder), *Path(folder).rglob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _print_pieces() -> None:
    found = list(pieces(config.load("model", "data", "benchmark")))
    print(json.dumps([asdict(one) for one in found]), flush=True)


if __name__ == "__main__":
    stage.run(_print_pieces, ends_with_dvc=False)
