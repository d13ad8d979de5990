"""Train a LoRA adapter on the encoded conversations with TRL."""

import tempfile
from pathlib import Path

from siftune import config, files, stage, tracking

ADAPTER = Path("models/adapter")
CURVE = Path("plots/learning_curve.csv")


def main() -> None:
    params = config.load("sft")
    from siftune import models, tokens, training

    base = models.base_folder()
    tokenizer = models.load_tokenizer()
    num_new = len(tokenizer) - len(models.read_tokenizer(base))
    with tracking.stage("sft", "sft") as run, tempfile.TemporaryDirectory() as scratch:
        curve = training.LearningCurve(run, examples_per_step=params.sft.global_batch)
        trainer = training.make_trainer(
            models.load_model(base, num_tokens=len(tokenizer)),
            tokenizer,
            sft=params.sft,
            encoded=tokens.FOLDER,
            num_new_tokens=num_new,
            curve=curve,
            folder=Path(scratch),
        )
        train = tokens.path("train")
        run.dataset(train, name="tokens", digest=files.sha256(train), context="train")
        training.check_batches(trainer)
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
