"""The site file, Slurm's word about account and partition, and the image: what sbatch will use."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from siftune import wording
from siftune.doctor import place
from siftune.doctor.finding import OK, PATIENCE, PROBLEM, WARNING, Finding, ask

SITES = Path("slurm/sites")
IMAGES, LOCK = Path("containers"), Path("containers/image.lock")
HASHING = 2.0  # seconds; every start of a job hashes all of it
_PART = 1 << 20
# What the job scripts read, so that a site file means the same here.
_SOURCE = """
. slurm/site.sh
export SIFTUNE_VARIANT=$variant SIFTUNE_SCRATCH SIFTUNE_MODULES
printf '%s\\0' "${SIFTUNE_BINDS[@]}" --
env -0
"""
_CHECK = ". slurm/site.sh && check_site"


def site() -> Iterator[Finding]:
    """The site file and what it must set; its variables are this process's from then on."""
    if place.in_image() or not place.on_cluster():
        return
    name = os.environ.get("SIFTUNE_SITE")
    done = _bash(_SOURCE)
    if done.returncode:
        yield Finding(PROBLEM, "site", _said(done), "Mend it, or choose another SIFTUNE_SITE.")
        return
    *told, _ = done.stdout.split("\0")
    binds, variables = told[: told.index("--")], told[told.index("--") + 1 :]
    os.environ.update(dict(line.split("=", 1) for line in variables))
    if name is None:
        yield Finding(
            WARNING, "site", "SIFTUNE_SITE is not set: the cluster's own defaults apply",
            f"Copy {SITES}/example.sh to {SITES}/NAME.sh, fill it in, export SIFTUNE_SITE=NAME.",
        )  # fmt: skip
    else:
        yield Finding(OK, "site", f"{SITES}/{name}.sh")
    missing = [path for path in binds if not Path(path).exists()]
    if missing:
        yield Finding(
            WARNING, "site", f"not on this machine: {', '.join(missing)} of SIFTUNE_BINDS",
            "What is not there is not bound; correct the path, or leave it if only nodes have it.",
        )  # fmt: skip
    refused = _bash(_CHECK)
    if refused.returncode:
        yield Finding(PROBLEM, "submission", _said(refused))


def slurm() -> Iterator[Finding]:
    """Whether Slurm knows the partition and the account; the job's own facts inside one."""
    partition, account = os.environ.get("SBATCH_PARTITION"), os.environ.get("SBATCH_ACCOUNT")
    known = [name.rstrip("*") for name in (ask("sinfo", "-h", "-o", "%P") or "").split()]
    wanted = partition.split(",") if partition else []
    unknown = [name for name in wanted if name not in known]
    if known and unknown:
        todo = f"SBATCH_PARTITION in the site file; there are {', '.join(sorted(set(known)))}."
        yield Finding(PROBLEM, "partition", f"Slurm knows no {', '.join(unknown)}", todo)
    elif known:
        yield Finding(OK, "partition", partition or "the cluster's default")
    of_user = ("sacctmgr", "-nP", "show", "assoc", f"user={os.environ.get('USER', '')}")
    accounts = sorted(set((ask(*of_user, "format=account") or "").split()))
    if account and accounts and account not in accounts:
        todo = f"SBATCH_ACCOUNT in the site file; yours are {', '.join(accounts)}."
        yield Finding(PROBLEM, "account", f"you have no account {account} here", todo)
    elif account:
        yield Finding(OK, "account", account)
    if place.in_job():
        yield _job()


def image() -> Iterator[Finding]:
    """Whether the image is the one of image.lock, as far as there is time to look."""
    path = IMAGES / f"siftune-{place.variant()}.sif"
    try:
        wanted = json.loads(LOCK.read_text(encoding="utf-8"))[str(place.variant())]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # `check_site` says it
    if not path.is_file():
        return
    told = f"{path}, {wording.size(path.stat().st_size)}"
    found = _hash(path)
    if found is None:
        told += ", too large to hash in a moment: every job does so before it runs"
        yield Finding(OK, "image", told)
    elif found == wanted:
        yield Finding(OK, "image", f"{told}, sha256 {found[:12]} as in {LOCK}")
    else:
        yield Finding(
            PROBLEM, "image", f"{told} is not that of {LOCK}: its sha256 is {found}",
            "It was changed, or copied in part: copy it again with image.lock, or build it.",
        )  # fmt: skip


def _job() -> Finding:
    end = os.environ.get("SLURM_JOB_END_TIME")
    told = f"{os.environ['SLURM_JOB_ID']} on {os.environ.get('SLURM_JOB_NODELIST', '?')}"
    if end is None:
        return Finding(
            WARNING, "job", f"{told}; when it ends is not known here",
            "A training then saves only when Slurm warns it: use slurm/train.sh.",
        )  # fmt: skip
    return Finding(OK, "job", f"{told}, {wording.duration(float(end) - time.time())} left")


def _hash(path: Path) -> str | None:
    """The sha256; None: there is no time for it."""
    deadline = time.monotonic() + HASHING
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
            if time.monotonic() > deadline:
                return None
    return digest.hexdigest()


def _bash(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, errors="replace", timeout=PATIENCE,
    )  # fmt: skip


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    said = done.stderr.strip().splitlines()
    return said[-1].removeprefix("siftune: ") if said else "it ends without a word"
