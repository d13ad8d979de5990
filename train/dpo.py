"""Train an adapter, or all weights, on answers that are preferred to others, with TRL."""

from siftune import config, ranks, stage
from siftune.training import left_out


def main() -> None:
    params = config.load("dpo")
    if not left_out.is_trained("dpo", params.dpo):
        return
    ranks.launch()
    from siftune.training import engine

    engine.start(params.dpo.load)
    from siftune.training import dpo, run

    with run.of(params.dpo, also=dpo.CURVES) as ground:
        trainer = dpo.make_trainer(
            ground.model,
            ground.tokenizer,
            dpo=params.dpo,
            encoded=ground.rows,
            num_new_tokens=ground.num_new_tokens,
            curve=ground.curve,
            attempt=ground.attempt,
            folder=ground.scratch,
        )
        dpo.check_batches(trainer)
        ground.train(trainer)


if __name__ == "__main__":
    stage.run(main)
