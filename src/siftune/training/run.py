"""What the scripts of all phases share: what a training stands on, and how its end is published."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from siftune import files, models, tokens, tracking
from siftune.learning_curve import LearningCurve, summarise
from siftune.resume import agreement, attempt, fingerprint
from siftune.resume.trainer import Resumable
from siftune.sections import Training
from siftune.training import adapters, left_out, loading, origin, phases


@dataclass(frozen=True)
class Ground:
    """What a phase's trainer is made on, besides its section."""

    section: Training
    earlier: list[Path]  # what the phases before this one trained
    tokenizer: PreTrainedTokenizerBase
    num_new_tokens: int  # the last of the tokenizer, that the base has not seen
    rows: Path  # the folder of the phase's splits
    attempt: attempt.Attempt
    curve: LearningCurve
    scratch: Path  # TRL wants a folder; nothing is written there
    tracked: tracking.Run

    def model(self) -> PreTrainedModel:
        """What the phase starts from: the base with what all earlier phases trained."""
        return loading.base(
            models.base_folder(),
            self.section,
            num_tokens=len(self.tokenizer),
            earlier=self.earlier,
            scratch=self._start,
        )

    @property
    def _start(self) -> Path:
        return self.attempt.folder / "start"

    def train(self, trainer: Resumable) -> None:
        """Train from where the last start ended, and publish the weights, the curve, the numbers.

        Raises:
            RunAgain, StartAgain, UserError: as `Resumable.train_from`.
        """
        phase, run = self.section.phase, self.tracked
        train = tokens.path("train", self.rows)
        run.dataset(train, name="tokens", digest=files.sha256(train), context="train")
        chosen = loading.facts(trainer.model, self.section.load)
        if trainer.is_fsdp_enabled:
            chosen["shards"] = trainer.args.world_size
        if agreement.is_first():
            print("Loaded:", ", ".join(f"{name} {value}" for name, value in chosen.items()))
        checkpoint = self.attempt.begin()
        step = checkpoint.step if checkpoint else 0
        if agreement.is_first():
            self.curve.restore(run.rewind(step), step=step)
        trainer.train_from(checkpoint)
        if not agreement.is_first():
            return
        self.curve.write(left_out.curve(phase))
        with files.published_folder(left_out.published(phase)) as folder:
            adapters.save(
                trainer.model,
                folder,
                base=origin.name(phase),
                first=trainer.first_factors,
                weights=trainer.gathered,
            )
        run.artifact(left_out.curve(phase))
        run.artifact(left_out.published(phase))
        run.report(**summarise(trainer, self.curve), loaded=chosen)
        shutil.rmtree(self._start, ignore_errors=True)


@contextmanager
def of(section: Training, also: Mapping[str, str] | None = None) -> Iterator[Ground]:
    """One start of a phase's training, tracked from its first line to its last word.

    Args:
        also: curves of this phase alone, as for `LearningCurve`.
    """
    phase = section.phase
    earlier = phases.before(phase)
    tokenizer = models.load_tokenizer()
    num_new = len(tokenizer) - len(models.read_tokenizer(models.base_folder()))
    made_of = fingerprint.of_stage(phase)
    with (
        tracking.stage(phase, phase, fingerprint=made_of.digest) as tracked,
        attempt.of(made_of, section.save_every) as this_start,
        tempfile.TemporaryDirectory() as scratch,
    ):
        yield Ground(
            section=section,
            earlier=earlier,
            tokenizer=tokenizer,
            num_new_tokens=num_new,
            rows=tokens.folder_of(phase),
            attempt=this_start,
            curve=LearningCurve(tracked, examples_per_step=section.global_batch, also=also),
            scratch=Path(scratch),
            tracked=tracked,
        )
