"""Which code, image, machine and job made this, and what it cost."""

import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What decides a result. params.yaml is not among them: its values are logged whole; nor is
# image.lock: the image that runs is logged itself.
CODE = ("src", "train", "eval", "export", "containers", "dvc.yaml", ":!containers/image.lock")
# What a clone must have of it to do the same.
CHECKOUT = (*CODE, "params.yaml", "conf", "slurm")
STACK = ("torch", "transformers", "trl", "peft", "datasets", "lm-eval", "mlflow", "dvc", "gguf")


def tags(params: dict[str, Any]) -> dict[str, str]:
    """The tags that tie the stages of one run together; a fact that is not known is left out."""
    facts = {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": str(bool(_git("status", "--porcelain", "--", *CODE))).lower(),
        "params_sha256": digest(params),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "image_sha256": os.environ.get("SIFTUNE_IMAGE_SHA256", ""),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "host": socket.gethostname(),
        "python": platform.python_version(),
    }
    return {f"siftune.{name}": value for name, value in facts.items() if value}


def stack() -> dict[str, str]:
    """The versions of the pinned stack, as installed."""
    return {name: version(name) for name in STACK}


def digest(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Cost:
    """Wall time and peak memory since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def measure(self) -> dict[str, float]:
        """`wall_seconds`, `peak_memory_mb`, and where a GPU was used `peak_gpu_memory_mb`."""
        cost = {
            "wall_seconds": round(time.monotonic() - self._start, 2),
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }
        # Only a stage that used torch can have used a GPU: asking is no reason to import it.
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            cost["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return cost


def peak_memory_mb() -> float:
    """The most resident memory that this process, or its largest child, has held, in MiB."""
    sizes = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return max(sizes) / 1024


def _git(*arguments: str) -> str:
    # A checkout without git (an exported archive) still trains; its runs only lack the commit.
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path.cwd())
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
