"""Room on disks, the user's quota, and the folder for temporary files."""

import configparser
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from siftune import wording
from siftune.doctor import filesystem, place
from siftune.doctor.finding import OK, PROBLEM, WARNING, Finding, ask

MANIFEST, PARAMS = Path("models/base.json"), Path("params.yaml")
MANY = 2**30
FEW_FILES = 20_000
NEARLY = 0.9  # of a quota
# Of the 16-bit model.
SIZE_OF_TYPE = {"f16": 1.0, "q8_0": 0.53, "q5_k_m": 0.36, "q4_k_m": 0.31, "q4_0": 0.29}
# name, blocks of 1 KiB: used, quota, limit, grace; files: the same. [1] is not sure, 1* too many
_QUOTA = re.compile(
    r"^ *(\S+) +\[?(\d+)\]?\*? +(\d+) +(\d+) +\S+ +\[?(\d+)\]?\*? +(\d+) +(\d+)", re.M
)


def room() -> Iterator[Finding]:
    """Free space where something will be written, against what the params need."""
    needs = _needs()
    by_disk: dict[int, list[str]] = {}
    for name, path in places().items():
        by_disk.setdefault(filesystem.existing(path).stat().st_dev, []).append(name)
    for names in by_disk.values():
        path = filesystem.existing(places()[names[0]])
        facts = os.statvfs(path)
        free = facts.f_bavail * facts.f_frsize
        told = f"{wording.size(free)} free for {', '.join(names)} ({path})"
        needed = sum(needs.get(name, 0) for name in names)
        if needed:
            told += f"; the params need about {wording.size(needed)}"
        full = "Make room, or put it on another disk: a full one ends a stage with code 78."
        if free < max(needed, MANY):
            yield Finding(PROBLEM, "disk", told, full)
        elif facts.f_files and facts.f_favail < FEW_FILES:
            yield Finding(
                WARNING, "disk", f"{told}, but for {facts.f_favail:,} more files only",
                "Remove what is made of many files, such as old environments and caches.",
            )  # fmt: skip
        else:
            yield Finding(OK, "disk", told)


def places() -> dict[str, Path]:
    """What is written where."""
    found = {"work/": Path("work"), "models/": Path("models"), "DVC's cache": _cache_of_dvc()}
    home = os.environ.get("HF_HOME")
    found["HF_HOME"] = Path(home) if home else Path.home() / ".cache/huggingface"
    return found


def quota() -> Iterator[Finding]:
    """The user's limits, where the system tells them."""
    told = ask("quota", "-wp") or ""
    for path in {filesystem.existing(path) for path in places().values()}:
        if filesystem.mount(path)[0] == "lustre":
            told += ask("lfs", "quota", "-q", "-u", str(os.getuid()), str(path)) or ""
    for where, *numbers in _QUOTA.findall(told):
        used, soft, hard, files, soft_files, hard_files = map(int, numbers)
        limit, limit_files = soft or hard, soft_files or hard_files
        shares = [used / limit if limit else 0.0, files / limit_files if limit_files else 0.0]
        if not max(shares):
            continue
        said = f"{where}: {wording.percent(shares[0])} of {wording.size(limit * 1024)}"
        if limit_files:
            said += f", {wording.percent(shares[1])} of {limit_files:,} files"
        level = PROBLEM if max(shares) >= 1 else WARNING if max(shares) > NEARLY else OK
        todo = "" if level == OK else "Make room there, or ask for more: trainings save often."
        yield Finding(level, "quota", said, todo)


def temporary() -> Iterator[Finding]:
    """The folder for temporary files; Apptainer's own is a few MiB of memory."""
    folder = tempfile.gettempdir()
    if place.in_job() and not place.in_image():
        folder = os.environ.get("SIFTUNE_SCRATCH", folder)  # the image's /tmp will be in it
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    told = f"{folder}: {wording.size(free)} free"
    if free < MANY:
        todo = "Set SIFTUNE_SCRATCH in the site file to a node's own disk: jobs get it as /tmp."
        yield Finding(PROBLEM, "/tmp", told, f"{todo} Without Slurm, set TMPDIR.")
    elif facts.f_flag & os.ST_NOEXEC:
        todo = "Set TMPDIR to another disk: what Triton compiles is loaded from there."
        yield Finding(WARNING, "/tmp", f"{told}, but nothing there may be executed", todo)
    else:
        yield Finding(OK, "/tmp", told)


def _cache_of_dvc() -> Path:
    """As .dvc/config and .dvc/config.local say; a path there is relative to the file."""
    folder = Path(".dvc")
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([folder / "config", folder / "config.local"])
    except configparser.Error:  # DVC itself will say so
        return folder / "cache"
    return folder / config.get("cache", "dir", fallback="cache")


def _needs() -> dict[str, int]:
    """Bytes that the params will make, by place; nothing before the base model is known."""
    try:
        described = json.loads(MANIFEST.read_text(encoding="utf-8"))["files"]
        base = sum(
            file["size"] for name, file in described.items() if name.endswith(".safetensors")
        )
        import yaml

        types = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["to_gguf"]["types"]
        # The merged model and its GGUF files; adapter and checkpoints are small beside them.
        made = int(base * (1.1 + sum(SIZE_OF_TYPE[kind] for kind in types)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        return {}
    has = sum(path.stat().st_size for path in Path("models").rglob("*") if path.is_file())
    # DVC keeps a copy of each; what stands in models/ makes room for what comes.
    return {"models/": max(made - has, 0), "DVC's cache": made}
