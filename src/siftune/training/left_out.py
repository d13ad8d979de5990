"""Whether a phase is trained; where it is left out, nothing is published, in no time.

Imports no torch; without being asked whether there are rows, no numpy either.
"""

from pathlib import Path

from siftune import files, lock
from siftune.data import kinds
from siftune.sections import Training
from siftune.tracking import METRICS

# Stands alone in the folder of a phase that was left out: DVC warns of empty ones again and again.
NOTE = "left_out.txt"


def published(phase: str) -> Path:
    """What a phase trained: an adapter, or all weights; only a note where it was left out."""
    return Path("models") / phase


def holds_weights(folder: Path) -> bool:
    """Whether a phase's folder is there, and has what it trained and not the note."""
    return folder.is_dir() and any(one.name != NOTE for one in folder.iterdir())


def curve(phase: str) -> Path:
    """The learning curve of a phase, as CSV."""
    return Path("plots") / f"{phase}.csv"


def is_trained(phase: str, section: Training | None) -> bool:
    """Whether to train; if not, the phase's empty outputs are written.

    Raises:
        UserError: the section is set and no row is for this phase, or the other way round.
    """
    from siftune import tokens

    has_rows = tokens.are_there("train", tokens.folder_of(phase))
    kinds.require({phase: (section is not None, has_rows)})
    if section is None:
        _leave_out(phase)
    return section is not None


def _leave_out(phase: str) -> None:
    with lock.workspace(phase):
        with files.published_folder(published(phase)) as folder:
            (folder / NOTE).write_text(f"params.yaml has {phase}: null. Nothing was trained.\n")
        with files.published_file(curve(phase)) as aside:
            aside.write_text("step,train_loss\n")
        files.write_json(METRICS / f"{phase}.json", {})
