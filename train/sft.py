"""Train an adapter, or all weights, on the encoded conversations with TRL."""

import tempfile
from pathlib import Path

from siftune import config, files, ranks, stage, tracking

ADAPTER = Path("models/adapter")
CURVE = Path("plots/learning_curve.csv")


def main() -> None:
    ranks.launch()
    params = config.load("sft")
    from siftune.training import engine

    engine.start(params.sft.load)
    from siftune import models, tokens
    from siftune.learning_curve import LearningCurve, summarise
    from siftune.resume import agreement, attempt, fingerprint
    from siftune.training import adapters, loading, sft

    base = models.base_folder()
    tokenizer = models.load_tokenizer()
    num_new = len(tokenizer) - len(models.read_tokenizer(base))
    made_of = fingerprint.of_stage("sft")
    with (
        tracking.stage("sft", "sft", fingerprint=made_of.digest) as run,
        attempt.of(made_of, params.sft.save_every) as this_start,
        tempfile.TemporaryDirectory() as scratch,
    ):
        curve = LearningCurve(run, examples_per_step=params.sft.global_batch)
        trainer = sft.make_trainer(
            loading.base(base, params.sft, num_tokens=len(tokenizer)),
            tokenizer,
            sft=params.sft,
            encoded=tokens.FOLDER,
            num_new_tokens=num_new,
            curve=curve,
            attempt=this_start,
            folder=Path(scratch),
        )
        train = tokens.path("train")
        run.dataset(train, name="tokens", digest=files.sha256(train), context="train")
        sft.check_batches(trainer)
        chosen = loading.facts(trainer.model, params.sft.load)
        if agreement.is_first():
            print("Loaded:", ", ".join(f"{name} {value}" for name, value in chosen.items()))
        checkpoint = this_start.begin()
        step = checkpoint.step if checkpoint else 0
        if agreement.is_first():
            curve.restore(run.rewind(step), step=step)
        trainer.train_from(checkpoint)
        if not agreement.is_first():
            return
        curve.write(CURVE)
        with files.published_folder(ADAPTER) as folder:
            source = files.read_json(models.MANIFEST)["source"]
            adapters.save(trainer.model, folder, base=source, first=trainer.first_factors)
        run.artifact(CURVE)
        run.artifact(ADAPTER)
        run.report(**summarise(trainer, curve), loaded=chosen)


if __name__ == "__main__":
    stage.run(main)
