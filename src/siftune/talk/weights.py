"""Which weights are here to be asked: the base, what was trained from it, and checkpoints.

From the files alone, beside a training that is at work; nothing is changed or locked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siftune import files, llama_cpp, status
from siftune.resume import checkpoints
from siftune.sections import PHASES
from siftune.stage import UserError
from siftune.training import left_out, origin

BASE, TOKENIZER = Path("models/base.json"), Path("models/tokenizer")
MERGED, GGUF = Path("models/merged"), Path("models/gguf")
NEWEST = "newest"
# Of a checkpoint; the rest of it is for going on.
_READ = ("adapter_", "config.json", "generation_config.json", "model")


@dataclass(frozen=True)
class Weights:
    """Weights that a person can name."""

    name: str
    path: Path
    manifest: dict[str, Any] | None = None  # of a checkpoint
    phase: str | None = None  # that trained them; None: not one alone

    def refuse_strange(self) -> None:
        """Make sure that they were trained from the base and the tokenizer that are here.

        Raises:
            UserError: they were not.
        """
        if self.manifest is None:
            settings = self.path / "adapter_config.json"
            if not settings.is_file():
                return
            theirs = files.read_json(settings)["base_model_name_or_path"]
            assert self.phase
            is_strange = theirs != origin.name(self.phase)
        else:
            inputs = self.manifest["fingerprint"]["inputs"]
            is_strange = any(
                inputs.get(name) != sha256 for name, sha256 in _origin(self.phase).items()
            )
        if is_strange:
            raise UserError(
                f"{self.name} ({self.path}) was trained from another base model, with another "
                f"tokenizer or chat template, or after another earlier phase, than {BASE}, "
                f"{TOKENIZER} and models/ have now: it would be "
                "asked in another form than it learned. Put params.yaml back to what it was "
                "trained with and run `dvc repro encode`, or train anew."
            )

    def refuse_broken(self) -> None:
        """Compare the bytes that will be read of a checkpoint with its manifest.

        Raises:
            UserError: they are not what was saved.
        """
        described = self.manifest["files"] if self.manifest else {}
        if checkpoints.is_in_shards(described):
            raise UserError(
                f"{self.name} holds the parts of several processes (trainer.fsdp), for going on. "
                "What is published at the end of the training can be asked."
            )
        for name in [name for name in described if name.startswith(_READ)]:
            if files.sha256(self.path / name) != described[name]["sha256"]:
                raise UserError(
                    f"{self.path / name} is not what was saved; the disk may be failing. "
                    "`siftune samples` lists the other checkpoints."
                )

    @contextmanager
    def while_read(self) -> Iterator[None]:
        """Say so where a training drops its checkpoint while it is read."""
        try:
            yield
        except Exception:
            if self.manifest is None or (self.path / checkpoints.PUBLISHED).exists():
                raise
            raise UserError(
                f"{self.name} is gone: its training has dropped it meanwhile, for it keeps only "
                f"its newest {checkpoints.KEPT}. Choose again among those that `siftune samples` "
                "lists."
            ) from None


def of_checkpoints() -> list[Weights]:
    """All published checkpoints, those of the newest training first, and of each the newest."""
    return [
        Weights(
            f"{training.name[:8]}/{manifest['step']}",
            folder,
            manifest,
            next(iter(manifest["fingerprint"]["params"])),
        )
        for training in status.trainings()
        for folder, manifest in checkpoints.published(training / "checkpoints")
    ]


def of_phases() -> list[Weights]:
    """What each phase has published, the last first."""
    folders = {phase: left_out.published(phase) for phase in reversed(PHASES)}
    return [
        Weights(phase, folder, phase=phase)
        for phase, folder in folders.items()
        if left_out.holds_weights(folder)
    ]


def all_here() -> list[Weights]:
    """What can be asked, the most finished first; the base last.

    Raises:
        UserError: there is not even a base model and a tokenizer.
    """
    for path in (BASE, TOKENIZER):
        if not path.exists():
            raise UserError(f"{path} is not there: nothing can be asked. Run `dvc repro encode`.")
    return [
        *([Weights("merged", MERGED)] if MERGED.is_dir() else []),
        *of_phases(),
        *of_checkpoints(),
        *(Weights(kind, path) for kind, path in llama_cpp.gguf_files(GGUF).items()),
        Weights("base", BASE),
    ]


def find(wanted: str, among: list[Weights]) -> Weights:
    """The one of this name; of a checkpoint, a longer training, the path, or `newest` will do.

    Raises:
        UserError: there is none; the message has the names.
    """
    saved = [one for one in among if one.manifest]
    if wanted == NEWEST and saved:
        return saved[0]
    for one in among:
        training = one.path.parent.parent.name
        if wanted in (one.name, str(one.path)) or (
            one.manifest and wanted == f"{training}/{one.manifest['step']}"
        ):
            return one
    names = ", ".join(one.name for one in among)
    raise UserError(f"There is no {wanted!r} to be asked here. There are: {names or 'none yet'}.")


def _origin(phase: str | None) -> dict[str, str]:
    """What a phase begins from, as the inputs of its fingerprint name it."""
    names = list(PHASES)
    earlier = [Path("models") / name for name in names[: names.index(phase)]] if phase else []
    return {str(BASE): files.sha256(BASE)} | {
        f"{folder}/{name}": file["sha256"]
        for folder in (TOKENIZER, *earlier)
        for name, file in files.describe_folder(folder).items()
    }
