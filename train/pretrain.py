"""Go on with pre-training on plain text, in blocks of one length, with TRL."""

from siftune import config, ranks, stage
from siftune.training import left_out


def main() -> None:
    params = config.load("pretrain")
    if not left_out.is_trained("pretrain", params.pretrain):
        return
    ranks.launch()
    from siftune.training import engine

    engine.start(params.pretrain.load)
    from siftune.training import pretrain, run, sft

    with run.of(params.pretrain, also=pretrain.CURVES) as ground:
        trainer = pretrain.make_trainer(ground, params.pretrain.block_size)
        sft.check_batches(trainer)
        ground.train(trainer)


if __name__ == "__main__":
    stage.run(main)
