"""Checkpoints that are whole or absent: written aside, hashed, flushed to disk, then renamed.

A checkpoint is a folder `step-00000040` with the trainer's files, `manifest.json` (what it is, and
size and sha256 of each file) and `published`, the manifest's own sha256. What does not match is set
aside as `broken-…` with the reason, and the newest that matches is used.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from siftune import files
from siftune.stage import UserError

MANIFEST, PUBLISHED = "manifest.json", "published"
SHARD = "shard-"  # how the names of files begin that are one process's own (`sharded`)
KEPT = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose every byte was verified."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """The optimiser steps that were done."""
        return int(self.manifest["step"])


@dataclass
class Store:
    """The checkpoints of one training."""

    folder: Path
    fingerprint: dict[str, Any]  # as fingerprint.Fingerprint.parts
    _verified: set[int] = field(default_factory=set)

    def aside(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into, for all ranks of a training.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        return Path(tempfile.mkdtemp(prefix=f".{_name(step)}.", suffix=".tmp", dir=self.folder))

    def publish(self, aside: Path, step: int, facts: dict[str, Any]) -> Path:
        """Give the folder that `aside` returned its manifest and its name; drop the oldest ones."""
        manifest = {
            "step": step,
            **facts,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": self.fingerprint,
            "files": files.describe_folder(aside),
        }
        files.write_json(aside / MANIFEST, manifest)
        (aside / PUBLISHED).write_text(files.sha256(aside / MANIFEST))
        files.flush_folder(aside)
        target = self.folder / _name(step)
        if target.exists():  # of an earlier try; the same step is the same checkpoint
            self._remove(target)
        aside.rename(target)
        files.flush(self.folder)
        self._verified.add(step)
        self.drop_oldest(KEPT)
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is what its manifest says; None where there never was one.

        Raises:
            UserError: there are only broken ones, or it belongs to another training.
        """
        self._sweep()
        for step in sorted(self._steps(), reverse=True):
            try:
                found = verify(self.folder / _name(step))
            except ValueError as reason:
                self._set_aside(step, str(reason))
                continue
            self._refuse_another(found)
            self._verified = {step}
            return found
        if broken := sorted(self.folder.glob("broken-*")):
            listed = "".join(f"\n  {one.name}: {_reason(one)}" for one in broken)
            raise UserError(
                f"{self.folder}: every checkpoint of this training is broken, so it cannot go on:"
                f"{listed}\nMend the disk, or copy a whole checkpoint back. To begin at step 0 "
                f"instead, remove {self.folder.parent}, then start again."
            )
        return None

    def drop_oldest(self, num_kept: int) -> None:
        """Keep the newest verified ones, and none that is older."""
        kept = sorted(self._verified)[-num_kept:]
        if len(kept) == num_kept:
            for step in self._steps():
                if step < kept[0]:
                    self._remove(self.folder / _name(step))

    def _steps(self) -> list[int]:
        names = [_NAME.fullmatch(path.name) for path in self.folder.glob("step-*")]
        return [int(name[1]) for name in names if name]

    def _refuse_another(self, found: Checkpoint) -> None:
        theirs = found.manifest["fingerprint"]
        if theirs != self.fingerprint:
            from siftune.resume.fingerprint import differences

            told = "\n  ".join(differences(theirs, self.fingerprint, "there", "here"))
            raise UserError(
                f"{found.folder} belongs to another training; it is not used:\n  {told}\n"
                "Remove it from there, or restore what it was made with."
            )

    def _remove(self, published: Path) -> None:
        # Out of sight first: half of it must never look like a checkpoint.
        gone = published.with_name(f".{published.name}.removed.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        published.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _set_aside(self, step: int, reason: str) -> None:
        published = self.folder / _name(step)
        number = 1 + len(list(self.folder.glob(f"broken-{_name(step)}-*")))
        target = self.folder / f"broken-{_name(step)}-{number}"
        published.rename(target)
        (target / "broken.txt").write_text(reason + "\n", encoding="utf-8")
        print(
            f"siftune: {published} is broken ({reason}); it is kept as {target.name}, and the "
            "checkpoint before it is used.",
            file=sys.stderr,
            flush=True,
        )

    def _sweep(self) -> None:
        """Remove what a writer that died had not published."""
        for left in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def published(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The checkpoints in a folder with their manifests, the newest first; nothing is changed.

    The manifests are what was published; the other files are not looked at.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            is_published = (path / PUBLISHED).read_text().strip() == files.sha256(path / MANIFEST)
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):  # half gone: a training drops it just now
            continue
        if is_published and isinstance(manifest, dict):
            yield path, manifest


def verify(folder: Path) -> Checkpoint:
    """Compare every byte of a published checkpoint with its manifest.

    Raises:
        ValueError: it is not what was published; the message says in what.
    """
    try:
        expected = (folder / PUBLISHED).read_text()
        actual = files.sha256(folder / MANIFEST)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{PUBLISHED} or {MANIFEST} cannot be read: {error}") from None
    if actual != expected:
        raise ValueError(f"{MANIFEST} is not what was published")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if _name(manifest["step"]) != folder.name:
        raise ValueError(f"it is the checkpoint of step {manifest['step']}")
    found = files.describe_folder(folder)
    for name in (MANIFEST, PUBLISHED):
        del found[name]
    for name, described in manifest["files"].items():
        if name not in found:
            raise ValueError(f"{name} is missing")
        if found[name] != described:
            raise ValueError(f"{name} is not what was published ({found[name]['size']} bytes)")
    if extra := sorted(set(found) - set(manifest["files"])):
        raise ValueError(f"{extra[0]} does not belong to it")
    return Checkpoint(folder, manifest)


def is_in_shards(described: Iterable[str]) -> bool:
    """Whether these files, of a manifest, are parts of weights that several processes hold."""
    return any(name.startswith(SHARD) for name in described)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _reason(broken: Path) -> str:
    try:
        return (broken / "broken.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return "no reason is written"
