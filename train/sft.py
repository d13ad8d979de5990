"""Train a LoRA adapter on the encoded conversations with TRL."""

import tempfile
from pathlib import Path

from siftune import config, files, stage, tracking

TOKENS = Path("data/tokens")
ADAPTER = Path("models/adapter")
CURVE = Path("plots/learning_curve.csv")


def main() -> None:
    params = config.load("sft")
    from siftune import models, training

    base = models.base_folder()
    with tracking.stage("sft", "sft") as run, tempfile.TemporaryDirectory() as scratch:
        curve = training.LearningCurve(run, examples_per_step=params.sft.global_batch)
        trainer = training.make_trainer(
            models.load_model(base),
            models.load_tokenizer(base),
            sft=params.sft,
            tokens=TOKENS,
            curve=curve,
            folder=Path(scratch),
        )
        digest = files.sha256(next((TOKENS / "train").glob("*.arrow")))
        run.dataset(TOKENS, name="tokens", digest=digest, context="train")
        trainer.train()
        curve.write(CURVE)
        with files.published_folder(ADAPTER) as folder:
            source = files.read_json(models.MANIFEST)["source"]
            training.save_adapter(trainer.model, folder, base=source)
        run.artifact(CURVE)
        run.artifact(ADAPTER)
        run.report(**training.summarise(trainer, curve))


if __name__ == "__main__":
    stage.run(main)
