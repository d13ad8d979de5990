"""Fold the adapter into the base; refuse a result that does not answer like base + adapter."""

from pathlib import Path

from siftune import config, files, stage, tracking
from siftune.sections import Merge

ADAPTER, MERGED = Path("models/adapter"), Path("models/merged")


def main() -> None:
    params = config.load("data", "encode", "merge")
    from siftune import encoding, merging, models

    base = models.base_folder()
    tokenizer = models.load_tokenizer()
    how = encoding.how(tokenizer, params.encode, params.data.reasoning_tags)
    rows = [
        encoded.input_ids
        for encoded in encoding.some(
            Path("data/prepared/test.jsonl"), params.merge.num_prompts, how
        )
    ]
    with tracking.stage("merge", "data", "encode", "merge") as run:
        num_tokens = len(tokenizer)
        trained = merging.load_trained(base, ADAPTER, num_tokens=num_tokens)
        reference = merging.logits(trained, rows)
        with files.published_folder(MERGED) as folder:
            merged = merging.merge(base, ADAPTER, num_tokens=num_tokens)
            models.stop_as_encoded(merged, tokenizer, models.TOKENIZER)
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            # What was written is measured, not what was in memory.
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
            f"(merge.min_top1_agreement {limits.min_top1_agreement}). Nothing was published."
        )


if __name__ == "__main__":
    stage.run(main)
