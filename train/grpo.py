"""Train an adapter, or all weights, on what the model's own completions earn, by GRPO with TRL."""

from siftune import config, files, ranks, stage, tokens
from siftune.rewards import choosing, completions
from siftune.training import left_out


def main() -> None:
    params = config.load("grpo")
    if not left_out.is_trained("grpo", params.grpo):
        files.write_jsonl(completions.PUBLISHED, [])
        return
    chosen = choosing.choose(params.grpo.rewards, "grpo.rewards")
    for split in tokens.SPLITS:
        choosing.refuse_unfit(
            chosen, tokens.records(split, tokens.folder_of("grpo")), "grpo.rewards"
        )
    ranks.launch()
    from siftune.training import grpo, packed_grpo, requirements, run

    requirements.require_generation(params.grpo)
    with run.of(params.grpo, also=grpo.curves(params.grpo.rewards)) as ground:
        trainer = grpo.make_trainer(
            ground.model(),
            ground.tokenizer,
            grpo=params.grpo,
            chosen=chosen,
            encoded=ground.rows,
            num_new_tokens=ground.num_new_tokens,
            curve=ground.curve,
            attempt=ground.attempt,
            folder=ground.scratch,
        )
        packed_grpo.check_batches(trainer)
        ground.train(trainer)
        grpo.publish(trainer, ground.curve, ground.tracked)


if __name__ == "__main__":
    stage.run(main)
