"""What the tests of the cluster start from: the image, a checkout with it, a native training."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import promise
import workspace
from cluster import CACHE, HERE, HOME, USER, Cluster

ROOT = HERE.parent.parent
NAME = "siftune"
SIF, LOCK = "containers/siftune-cpu.sif", "containers/image.lock"
# All that decides what is in the image, in containers/.
RECIPE = (
    "build.py", "image.def", "install.sh", "llama.sh", "image_test.py", "sbom.py",
    "locks/cpu.txt", "locks/llama.txt", "locks/llama-tools.txt",
)  # fmt: skip
SITE = """# The test cluster: no GPUs, and the base model is not in the checkout.
SIFTUNE_VARIANT=cpu
SIFTUNE_BINDS=(/home/user/siftune.model)
"""
NATIVELY = """
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay overlay -o lowerdir=/home,upperdir=/mnt/upper,workdir=/mnt/work /home
mkdir -p "$1"
mount --bind "$2" "$1"
cd "$1/$3"
shift 3
exec "$@"
"""


def natively(home: Path, folder: str, *command: str) -> str:
    """The output of a command in a folder of that home, not in the cluster; paths are the same."""
    environment = workspace.environment(HOME / folder) | {
        # The folders are another user's.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    environment["TMPDIR"] = "/tmp"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-ec", NATIVELY, "natively",
         HOME, home, folder, *command],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def prepare(cluster: Cluster) -> None:
    """Make the checkout ~/siftune, and golden.json: what its training leaves natively."""
    home, made = cluster.home, cluster.home / NAME
    make = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT / 'tests/faults')!r}); "
        f"import workspace; workspace.make(pathlib.Path({str(HOME / NAME)!r}))"
    )
    made.mkdir()
    natively(home, NAME, sys.executable, "-c", make)
    (made / "slurm/sites/test.sh").write_text(SITE)
    own(home)
    cluster.ok(
        "git config --global user.name user && git config --global user.email user@login && "
        f"cd {NAME} && git init -q && git add -A && git commit -qm start"
    )
    bring_image(cluster)
    cluster.ok(f"cd {NAME} && git add containers/image.lock && git commit -qm image")
    natively(home, NAME, "dvc", "repro", "encode")
    shutil.rmtree(made / "work/runs")
    workspace.copy(made, home / "native")
    natively(home, "native", "dvc", "repro", "sft")
    golden = promise.outcome(home / "native")
    (cluster.folder / "golden.json").write_text(json.dumps(golden))
    own(home)


def own(home: Path) -> None:
    subprocess.run(["chown", "-hR", f"{USER}:{USER}", home], check=True)


def bring_image(cluster: Cluster) -> None:
    """The image of this recipe, into the checkout: as it was built before, or built now."""
    base = Path(_script("root.sh", "base"))
    key = digest([ROOT / "containers" / name for name in RECIPE], base.name)
    kept = CACHE / f"image-{key}"
    checkout = cluster.home / NAME
    if not kept.is_dir():
        build(cluster, base)
        aside = kept.with_suffix(".tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name in (SIF, LOCK):
            shutil.copy2(checkout / name, aside)
        shutil.copy2(cluster.folder / "build.log", aside)
        for old in CACHE.glob("image-????????????"):
            shutil.rmtree(old)  # a gigabyte each
        aside.rename(kept)  # only a whole image counts
    for name in (SIF, LOCK):
        (checkout / name).unlink(missing_ok=True)
        shutil.copy2(kept / Path(name).name, checkout / name)
    shutil.copy2(kept / "build.log", cluster.folder)


def build(cluster: Cluster, base: Path) -> None:
    """As the user would, on a login node without a network: from a wheelhouse and a local base."""
    locks = [ROOT / "containers" / name for name in RECIPE if name.startswith("locks/")]
    wheels = CACHE / f"wheels-{digest(locks)}"
    if not wheels.is_dir():
        aside = wheels.with_suffix(".tmp")
        command = [sys.executable, ROOT / "containers/build.py", "wheels", "cpu", aside]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        aside.rename(wheels)
    for source, name in ((base, "base"), (wheels, "wheels")):
        subprocess.run(["cp", "-a", source, cluster.home / name], check=True)
    own(cluster.home)
    built = cluster.run(
        f"cd {NAME} && python3 containers/build.py cpu --base ~/base --wheels ~/wheels "
        "--llama-cpp converter --fast 2>&1"
    )
    (cluster.folder / "build.log").write_text(built.stdout)
    assert built.returncode == 0, built.stdout
    for name in ("base", "wheels"):
        shutil.rmtree(cluster.home / name)


def digest(files: list[Path], *words: str) -> str:
    """Twelve letters that stand for the files' contents."""
    parts = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return hashlib.sha256("\n".join([*parts, *words]).encode()).hexdigest()[:12]


def _script(name: str, *arguments: str) -> str:
    done = subprocess.run([HERE / name, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()
