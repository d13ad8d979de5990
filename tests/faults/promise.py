"""What was promised, looked at from outside: with this folder's own eyes, not the product's."""

import csv
import hashlib
import json
from pathlib import Path

from workspace import SAVE_EVERY

LEARNED = (
    "train_loss", "validation_loss", "learning_rate", "grad_norm",
)  # fmt: skip


class Lost(Exception):  # noqa: N818 (it is a finding)
    """The promise is broken."""


class Silent(Exception):  # noqa: N818 (it is a finding)
    """Something went wrong, and neither exit code nor message said so."""


def must(condition: object, message: str, kind: type[Exception] = Lost) -> None:
    if not condition:
        raise kind(message)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(path: Path) -> dict[str, str]:
    """sha256 by relative path, of a file or of all files of a folder."""
    if path.is_file():
        return {path.name: sha256(path)}
    return {
        str(one.relative_to(path)): sha256(one) for one in sorted(path.rglob("*")) if one.is_file()
    }


def lines(path: Path) -> list[dict]:
    """The whole lines of a JSONL file."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def history(path: Path) -> tuple[dict[int, dict], list[int]]:
    """Numbers by step, and how many steps each rewind made void; a number twice is an error."""
    rows: dict[int, dict] = {}
    redone = []
    for line in lines(path):
        if "rewind" in line:
            redone.append(max(rows, default=0) - line["rewind"])
            rows = {step: row for step, row in rows.items() if step <= line["rewind"]}
            continue
        row = rows.setdefault(line["step"], {})
        for name, value in line.items():
            if name not in ("step", "time"):
                must(name not in row, f"{name} of step {line['step']} was logged twice")
                row[name] = value
    return rows, redone


def learned(rows: dict[int, dict]) -> dict[str, dict]:
    """What does not depend on the clock."""
    return {
        str(step): {name: row[name] for name in LEARNED if name in row}
        for step, row in rows.items()
    }


def curve(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [
            [row["step"], *(row[name] for name in LEARNED if name in row)]
            for row in csv.DictReader(file)
        ]


def trainings(folder: Path) -> list[Path]:
    """The folders work/<fingerprint>."""
    return sorted(path.parent for path in folder.glob("work/*/fingerprint.json"))


def checkpoints(folder: Path) -> Path:
    """Of the one training in a workspace."""
    found = trainings(folder)
    must(len(found) <= 1, f"{len(found)} trainings where one was started")
    return found[0] / "checkpoints" if found else folder / "work/none"


def newest_whole(store: Path) -> int:
    """The step of the newest published checkpoint whose bytes are all there; 0: none."""
    for path in sorted(store.glob("step-*"), reverse=True):
        if is_whole(path):
            return int(path.name[5:])
    return 0


def is_whole(path: Path) -> bool:
    try:
        text = (path / "manifest.json").read_bytes()
        if hashlib.sha256(text).hexdigest() != (path / "published").read_text().strip():
            return False
        manifest = json.loads(text)
        return path.name == f"step-{manifest['step']:08d}" and all(
            sha256(path / name) == one["sha256"] for name, one in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def outcome(folder: Path) -> dict:
    """What a finished training left, without what depends on the clock."""
    rows, _ = history(run_folder(folder) / "metrics.jsonl")
    return {**published(folder), "history": learned(rows)}


def published(folder: Path) -> dict:
    """What DVC takes from it."""
    return {
        "adapter": describe(folder / "models/sft"),
        "curve": curve(folder / "plots/sft.csv"),
    }


def run_folder(folder: Path) -> Path:
    found = sorted(folder.glob("work/runs/*-sft-*"))
    must(len(found) == 1, f"{len(found)} runs of sft where one was started: {found}")
    return found[0]


def check_finished(folder: Path, golden: dict, *, most_redone: int = SAVE_EVERY) -> None:
    """The training came to its end as if nothing had been.

    Raises:
        Lost: what it left is not what an uninterrupted one leaves.
    """
    must((folder / "models/sft").is_dir(), "no adapter was published")
    found = outcome(folder)
    must(found["adapter"] == golden["adapter"], "the adapter is not the golden one")
    must(found["curve"] == golden["curve"], "the learning curve is not the golden one")
    steps = [int(step) for step in found["history"]]
    num_steps = len(golden["history"])
    must(sorted(steps) == list(range(1, num_steps + 1)), f"the history has the steps {steps}")
    must(found["history"] == golden["history"], "the history is not the golden one")
    _, redone = history(run_folder(folder) / "metrics.jsonl")
    must(max(redone, default=0) <= most_redone, f"{redone} steps were done again")
    record = json.loads((run_folder(folder) / "run.json").read_text())
    must(record["status"] == "finished", f"the run is {record['status']}")
    check_starts(trainings(folder)[0] / "starts.jsonl")
    check_nothing_left(folder)


def check_starts(path: Path) -> None:
    """One after another: nobody ended after the next had begun."""
    before = None
    for line in lines(path):
        word = "started" if "started" in line else "ended"
        must((before, word) not in ((None, "ended"), ("ended", "ended")), "two at once")
        before = word
    must(before == "ended", "the last start has no end")


def check_nothing_left(folder: Path) -> None:
    left = [
        str(path.relative_to(folder))
        for path in folder.rglob("*.tmp")
        if not path.is_relative_to(folder / ".dvc")
    ]
    must(not left, f"left behind: {left}")
    must(not (folder / "work/lock.json").exists(), "work/lock.json was left")
