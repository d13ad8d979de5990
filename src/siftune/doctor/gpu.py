"""The driver against the CUDA of the image, and the GPU against the code that is in it."""

import re
from collections.abc import Iterator
from pathlib import Path

from siftune.doctor import packages, place
from siftune.doctor.finding import OK, PROBLEM, WARNING, Finding, ask

PROC = Path("/proc/driver/nvidia/version")
# The oldest driver that runs a CUDA of this major version (NVIDIA, "Minor Version Compatibility").
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# Compute capabilities that a variant has code for.
CAPABILITIES = {"cuda": ((7, 5), (99, 0)), "volta": ((7, 0), (7, 0))}
OTHER_VARIANT = {"cuda": "volta", "volta": "cuda"}
BF16_FROM = (8, 0)
_MODULE = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")


def check() -> Iterator[Finding]:
    """The driver, then each kind of GPU."""
    if place.variant() == "cpu":
        yield Finding(OK, "GPU", "none is needed: the variant is cpu")
        return
    driver = _driver()
    if driver is None:
        yield _none()
        return
    yield _judge_driver(driver)
    rows = _gpus()
    if not rows:
        yield Finding(
            PROBLEM, "GPU", "this host has a driver, but nvidia-smi shows no GPU here",
            "In a container: --nv (slurm/run.sh gives it). In a job: ask for a GPU "
            "(--gpus-per-node=1).",
        )  # fmt: skip
    for (name, capability), num in rows.items():
        yield _judge_gpu(name, capability, num)
    if place.in_job() and rows and _num_given() == 0:
        yield Finding(
            PROBLEM, "GPU", "the job was given none of this node's GPUs",
            "Submit it with --gpus-per-node=1.",
        )  # fmt: skip


def _num_given() -> int | None:
    """Of this job; None: not known to a Python without the packages."""
    if not packages.has_stack():
        return None
    from siftune import ranks

    return ranks.num_gpus()


def _none() -> Finding:
    if place.in_job():
        return Finding(
            PROBLEM, "GPU", "this node has no NVIDIA driver, and the image is not for the CPU",
            "Choose a partition with GPUs, or SIFTUNE_VARIANT=cpu.",
        )  # fmt: skip
    if place.on_cluster():
        return Finding(
            OK, "GPU", "none on this login node; in a job, siftune doctor looks at a node's"
        )
    return Finding(OK, "GPU", "none: trainings run on the CPU")


def _driver() -> str | None:
    try:
        match = _MODULE.search(PROC.read_text())
    except OSError:
        match = None
    if match:
        return match[1]
    answer = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.split()[0] if answer and answer.strip() else None


def _judge_driver(driver: str) -> Finding:
    cuda = place.cuda()
    if cuda is None:
        return Finding(
            WARNING, "driver", f"{driver}, but what is installed here trains on the CPU",
            "Install torch with CUDA (docs/troubleshooting.md), or use the image.",
        )  # fmt: skip
    major, oldest = cuda[0], OLDEST_DRIVER.get(cuda[0], 0)
    told = f"{driver}; CUDA {major}.{cuda[1]} needs {oldest} or newer"
    if int(driver.split(".")[0]) >= oldest:
        return Finding(OK, "driver", told)
    others = "ask who runs this machine for a newer driver, or take nodes that have one"
    return Finding(
        PROBLEM, "driver", told,
        f"The variant volta (CUDA 12) runs with {OLDEST_DRIVER[12]}, on V100 only; else {others}."
        if major == 13 else f"{others[0].upper()}{others[1:]}.",
    )  # fmt: skip


def _gpus() -> dict[tuple[str, tuple[int, int]], int]:
    """How many there are of each name and compute capability."""
    answer = ask("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader") or ""
    found: dict[tuple[str, tuple[int, int]], int] = {}
    for name, capability in re.findall(r"^(.+), (\d+\.\d+)$", answer, flags=re.M):
        major, minor = capability.split(".")
        kind = (name, (int(major), int(minor)))
        found[kind] = found.get(kind, 0) + 1
    return found


def _judge_gpu(name: str, capability: tuple[int, int], num: int) -> Finding:
    variant = place.variant() or "cuda"
    oldest, newest = CAPABILITIES[variant]
    code = f"sm_{capability[0]}{capability[1]}"
    told = f"{num} x {name} ({code})"
    if oldest <= capability <= newest:
        dtype = "bf16" if capability >= BF16_FROM else "fp16, as it has no bf16"
        return Finding(OK, "GPU", f"{told}, trains in {dtype}")
    if capability < (7, 0):
        return Finding(
            PROBLEM, "GPU", f"{told} is too old for every variant", "Take nodes with V100 or newer."
        )
    return Finding(
        PROBLEM, "GPU", f"{told}, but the variant {variant} is not made for it",
        f"Use the variant {OTHER_VARIANT[variant]}: {place.VARIANT}={OTHER_VARIANT[variant]} in "
        "the site file, and its image.",
    )  # fmt: skip
