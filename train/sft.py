"""Train an adapter, or all weights, on the encoded conversations with TRL."""

from siftune import config, ranks, stage
from siftune.training import left_out


def main() -> None:
    params = config.load("sft")
    if not left_out.is_trained("sft", params.sft):
        return
    ranks.launch()
    from siftune.training import engine

    engine.start(params.sft.load)
    from siftune.training import run, sft

    with run.of(params.sft) as ground:
        trainer = sft.make_trainer(
            ground.model(),
            ground.tokenizer,
            sft=params.sft,
            encoded=ground.rows,
            num_new_tokens=ground.num_new_tokens,
            curve=ground.curve,
            attempt=ground.attempt,
            folder=ground.scratch,
        )
        sft.check_batches(trainer)
        ground.train(trainer)


if __name__ == "__main__":
    stage.run(main)
