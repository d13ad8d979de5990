"""What goes into a bundle, and where: the image, model, data, benchmarks, wheels and the commit."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune import config, fetching, hubs, provenance
from siftune.bundle import CONTENTS, REPOSITORY
from siftune.stage import UserError

IMAGES, IMAGE_LOCK = Path("containers"), Path("containers/image.lock")
HUB, MODELSCOPE, WHEELS = ".cache/huggingface", ".cache/modelscope", ".cache/wheels"
_SECRET = re.compile(
    r"(^|/)(mlflow\.db.*|config\.local|(stored_)?tokens?|\.netrc|\.env|\.git-credentials|"
    r"id_[a-z0-9]+|.*\.(pem|key))$"
)


@dataclass(frozen=True)
class Entry:
    """A file of the bundle: its name there, below the repository's root, and where it is now."""

    name: str
    path: Path


def collect(wheels: Path | None, aside: Path) -> list[Entry]:
    """All entries: first what is made here, then the others by name.

    Args:
        aside: a folder for what is made here: the commit and the list of contents.

    Raises:
        UserError: something is not committed, not fetched, or not where it can be packed.
    """
    pieces = _pieces()
    tracked = set(_git("ls-files", "-z").split("\0"))
    entries = [*_images(), *_wheels(wheels)]
    for piece in pieces:
        for folder in piece.folders:
            if not piece.name.startswith("package:"):  # the image and the wheels have it
                key = "model.adapter.source" if piece.kind == "adapter" else "model.source"
                entries += _of_folder(Path(folder), key, hubs.MODEL_FILES)
    entries += _own_data()
    # What git tracks comes with the commit.
    by_name = {entry.name: entry for entry in entries if entry.name not in tracked}
    _git("bundle", "create", "--quiet", str(aside / REPOSITORY), "HEAD")
    facts = {
        "siftune_bundle": 1,
        "git_commit": commit(),
        "pieces": [[piece.kind, piece.name] for piece in pieces],
        "images": sorted(name for name in by_name if name.endswith(".sif")),
    }
    (aside / CONTENTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    made = [Entry(name, aside / name) for name in (CONTENTS, REPOSITORY)]
    found = [*made, *(by_name[name] for name in sorted(by_name))]
    for entry in found:
        _refuse_secrets_and_odd_names(entry)
    return found


def locked_images() -> dict[str, str]:
    """sha256 by name in the bundle, of the images that image.lock knows."""
    try:
        lock: dict[str, Any] = json.loads(IMAGE_LOCK.read_text(encoding="utf-8"))
        return {f"{IMAGES}/{one['image']}": one["sha256"] for one in lock.values()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{IMAGE_LOCK} is not what containers/build.py writes: {error}") from None


def commit() -> str:
    """The commit of this checkout, which has no changes beside it."""
    changed = _git("status", "--porcelain", "--", *provenance.CHECKOUT).splitlines()
    if changed:
        raise UserError(
            f"a bundle holds a commit, and {len(changed)} changes are not in one, such as "
            f"{changed[0][3:]}. Commit them, then bundle again."
        )
    if _git("rev-parse", "--is-shallow-repository").strip() == "true":
        raise UserError("this clone is shallow: `git fetch --unshallow`, then bundle again.")
    return _git("rev-parse", "HEAD").strip()


def _pieces() -> list[fetching.Piece]:
    pieces = fetching.recorded()
    if pieces is None or any(piece.problem for piece in pieces):
        raise UserError(
            "these params' model, data and benchmarks are not all known to be on this disk: run "
            "`siftune fetch --all`, then bundle again."
        )
    gone = [folder for piece in pieces for folder in piece.folders if not Path(folder).exists()]
    if gone:
        raise UserError(f"{gone[0]} is gone since it was fetched: run `siftune fetch --all` again.")
    return pieces


def _images() -> Iterator[Entry]:
    for name in locked_images():
        if Path(name).is_file():
            yield Entry(name, Path(name))
    if IMAGE_LOCK.is_file():
        yield Entry(str(IMAGE_LOCK), IMAGE_LOCK)


def _wheels(folder: Path | None) -> Iterator[Entry]:
    if folder is None:
        return
    found = [path for path in sorted(folder.glob("*")) if path.suffix in (".whl", ".gz")]
    if not found:
        raise UserError(
            f"{folder} has no wheels: `python containers/build.py wheels VARIANT FOLDER` makes "
            "such a folder."
        )
    for path in found:
        yield Entry(f"{WHEELS}/{path.name}", path)


def _of_folder(folder: Path, key: str, own_patterns: list[str]) -> Iterator[Entry]:
    """The files of what was fetched, by the cache in which it lies."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE).resolve()
    datasets = Path(
        os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    ).resolve()
    modelscope = Path(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope").expanduser()
    real = folder.resolve()
    if real.is_relative_to(hub):
        # Which commit a tag is, and which files it has.
        for of_repository in ("refs", "trees"):
            yield from _files(real.parents[1] / of_repository, hub, f"{HUB}/hub")
        yield from _files(real, hub, f"{HUB}/hub")
    elif real.is_relative_to(datasets):
        yield from _files(real, datasets, f"{HUB}/datasets")
    elif real.is_relative_to(modelscope.resolve()):
        yield from _files(real, modelscope.resolve(), MODELSCOPE)
    else:
        yield from _own(folder, key, own_patterns)


def _own_data() -> Iterator[Entry]:
    data = config.load("data").data
    if any(source.source == "local" for source in data.sources):
        yield from _own(Path(data.path).absolute(), "data.path", ["*"])


def _own(path: Path, key: str, patterns: list[str]) -> Iterator[Entry]:
    """A file or folder of the user, which keeps its place below the repository's root."""
    root = Path.cwd()
    if not path.is_relative_to(root):
        raise UserError(
            f"params.yaml: {key}: {path} is outside of {root}, so no other machine has it there. "
            "Put it, or a link to it, below the repository, for example in work/, and name that."
        )
    found = [path] if path.is_file() else [one for each in patterns for one in path.rglob(each)]
    for one in found:
        name = one.relative_to(root)
        if one.is_file() and not any(part.startswith(".") for part in name.parts):
            yield Entry(name.as_posix(), one)


def _files(folder: Path, cache: Path, target: str) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            yield Entry(f"{target}/{path.relative_to(cache).as_posix()}", path)


def _refuse_secrets_and_odd_names(entry: Entry) -> None:
    if _SECRET.search(entry.name):
        raise UserError(f"{entry.path} looks like a secret, and a bundle is copied: move it away.")
    if not entry.name.isprintable() or "\\" in entry.name:
        raise UserError(f"{str(entry.path)!r}: rename it; other programs would not read its name.")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
