"""Where this runs: on a login node, in a job, in the image; and with which packages."""

import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCKS = Path("containers/locks")
VARIANT = "SIFTUNE_VARIANT"
_OF_CUDA = re.compile(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", re.M)


def in_job() -> bool:
    """Whether Slurm started this."""
    return "SLURM_JOB_ID" in os.environ


def in_image() -> bool:
    """Whether this runs in one of our images."""
    return "SIFTUNE_IMAGE_VARIANT" in os.environ


def on_cluster() -> bool:
    """Whether trainings will run in Slurm's jobs, in the image."""
    return in_job() or "SIFTUNE_SITE" in os.environ or shutil.which("sbatch") is not None


def variant() -> str | None:
    """The image's variant; None: there is no image, trainings run in this Python."""
    if in_image():
        return os.environ["SIFTUNE_IMAGE_VARIANT"]
    return os.environ.get(VARIANT, "cuda") if on_cluster() else None


def cuda() -> tuple[int, int] | None:
    """The CUDA that trainings are built with; None: they run on the CPU, or it is not known."""
    name = variant()
    if name is not None:
        lock = LOCKS / f"{name}.txt"
        match = _OF_CUDA.search(lock.read_text()) if lock.is_file() else None
        return (int(match[1]), int(match[2])) if match else None
    for package in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        try:
            major, minor, *_ = version(package).split(".")
        except PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None
