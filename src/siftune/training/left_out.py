"""Whether a phase is trained; where it is left out, what it publishes is empty, and costs no time.

Imports no torch.
"""

from pathlib import Path

from siftune import files, lock, tokens
from siftune.sections import Training
from siftune.stage import UserError
from siftune.tracking import METRICS

# What the rows of a phase are.
ROWS = {
    "pretrain": "plain text (data.sources.format: text)",
    "sft": "conversations that end with an answer",
    "dpo": "pairs of a chosen and a rejected answer, or answers that are labelled good or bad",
    "grpo": "problems with a ground truth",
}


def published(phase: str) -> Path:
    """What a phase trained: an adapter, or all weights; an empty folder where it was left out."""
    return Path("models") / phase


def curve(phase: str) -> Path:
    """The learning curve of a phase, as CSV."""
    return Path("plots") / f"{phase}.csv"


def is_trained(phase: str, section: Training | None) -> bool:
    """Whether to train; if not, the phase's empty outputs are written.

    Raises:
        UserError: the section is set and no row is for this phase, or the other way round.
    """
    has_rows = tokens.are_there("train", tokens.folder_of(phase))
    if section is None and has_rows:
        raise UserError(
            f"params.yaml: {phase}: null, but data.sources hold rows for it "
            f"({tokens.folder_of(phase)}): {ROWS[phase]}. Set the section, e.g. by "
            f"method={phase}-lora, or leave those rows out of data.sources."
        )
    if section is not None and not has_rows:
        raise UserError(
            f"params.yaml: {phase}: this section is set, but no row of data.sources is for it. It "
            f"is trained on {ROWS[phase]}. Add such rows, or write {phase}: null."
        )
    if section is None:
        _leave_out(phase)
    return section is not None


def _leave_out(phase: str) -> None:
    with lock.workspace(phase):
        with files.published_folder(published(phase)):
            pass
        with files.published_file(curve(phase)) as aside:
            aside.write_text("step,train_loss\n")
        files.write_json(METRICS / f"{phase}.json", {})
