"""Fold what was trained into the base; refuse what does not answer like base + adapter."""

from pathlib import Path

from siftune import config, files, stage, tracking
from siftune.sections import Merge

MERGED = Path("models/merged")


def main() -> None:
    params = config.load("data", "encode", "merge")
    from siftune import encoders, encoding, merging, models
    from siftune.training import phases

    base, trained = models.base_folder(), phases.before()
    tokenizer = models.load_tokenizer()
    how = encoders.how(tokenizer, params.encode, params.data.reasoning_tags)
    rows = [
        encoded.input_ids
        for encoded in encoding.some(
            Path("data/prepared/test.jsonl"), params.merge.num_prompts, how
        )
    ]
    with tracking.stage("merge", "data", "encode", "merge") as run:
        num_tokens = len(tokenizer)
        with files.published_folder(MERGED) as folder:
            merged = phases.write(base, trained, folder, num_tokens=num_tokens)
            models.stop_as_encoded(merged, tokenizer, models.TOKENIZER)
            merged.generation_config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del merged
            # One model at a time; what was written is measured, not what was in memory.
            reference = merging.logits(
                merging.load_trained(base, trained, num_tokens=num_tokens), rows
            )
            measured = merging.distance(reference, merging.logits(models.load_model(folder), rows))
            run.report(**measured)
            refuse_far(measured, params.merge)


def refuse_far(measured: dict[str, float], limits: Merge) -> None:
    if (
        measured["mean_kl"] > limits.max_kl
        or measured["top1_agreement"] < limits.min_top1_agreement
    ):
        raise stage.UserError(
            "The merged model does not answer like base + adapter: "
            f"mean KL {measured['mean_kl']:.2e} "
            f"(merge.max_kl {limits.max_kl}), top-1 agreement {measured['top1_agreement']:.4f} "
            f"(merge.min_top1_agreement {limits.min_top1_agreement}). Nothing was published. Where "
            "the KL is far below its limit, rounding to the base's dtype decides between tokens "
            "that are nearly equally likely, as in verse: lower merge.min_top1_agreement. "
            "Otherwise the adapter is not of this base, or a weight is broken: train again."
        )


if __name__ == "__main__":
    stage.run(main)
