"""The scripts of slurm/ in a checkout of their own, with stand-ins for Slurm and Apptainer."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Writes its arguments and surroundings, and then does what it is told.
FAKE = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$RECORD/$(basename "$0").arguments"
env -0 >"$RECORD/$(basename "$0").environment"
case $(basename "$0") in
sbatch)
    printf '%s\n' "$*" >>"$RECORD/submitted"
    number=$((11 + $(wc -l <"$RECORD/submitted")))
    case $* in *--parsable*) echo "$number;cluster" ;; *) echo "Submitted batch job $number" ;; esac
    ;;
squeue) printf '%s' "${QUEUE:-}" ;;
srun) while [[ $1 == -* ]]; do shift; done; exec "$@" ;;
scontrol) exit "${REFUSED:-0}" ;;
apptainer)
    [ -z "${REQUEUE:-}" ] || touch "$SIFTUNE_JOB/requeue"
    exit "${CODE:-0}"
    ;;
esac
"""


def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an image, in a folder whose name is hard on shells."""
    folder = tmp_path / 'it\'s a, "clone" of: mine'
    shutil.copytree(ROOT / "slurm", folder / "slurm", ignore=shutil.ignore_patterns("*.log"))
    (folder / "containers").mkdir()
    image = folder / "containers" / "siftune-cpu.sif"
    image.write_bytes(b"image")
    sha256 = hashlib.sha256(b"image").hexdigest()
    lock = {
        "cpu": {"base": "b", "lock_sha256": "1" * 64, "sha256": sha256},
        "cuda": {"base": "b", "sha256": "2" * 64},
    }
    (folder / "containers" / "image.lock").write_text(json.dumps(lock, indent=2, sort_keys=True))
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "apptainer", "squeue", "scontrol"):
        (tmp_path / "bin" / name).write_text(FAKE)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("SLURM", "SIFTUNE", "SBATCH"))]:
        monkeypatch.delenv(name)
    settings = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECORD": str(tmp_path),
        "HOME": str(tmp_path / "home"), "SIFTUNE_VARIANT": "cpu",
        "SIFTUNE_SCRATCH": str(tmp_path / "scratch"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return folder


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def in_job(
    clone: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess:
    """As Slurm runs a batch script: a copy of it, from its spool folder."""
    spooled = clone.parent / "slurm_script"
    shutil.copy(clone / "slurm" / script, spooled)
    job = {
        "SLURM_JOB_ID": "12", "SLURM_SUBMIT_DIR": str(clone), "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_END_TIME": "2000000000",
    }  # fmt: skip
    return run("bash", str(spooled), *arguments, **job, **environment)


def arguments(clone: Path, program: str) -> list[str]:
    return (clone.parent / f"{program}.arguments").read_text().split("\0")[:-1]


def surroundings(clone: Path, program: str) -> dict[str, str]:
    rows = (clone.parent / f"{program}.environment").read_text().split("\0")[:-1]
    return dict(row.split("=", 1) for row in rows)
