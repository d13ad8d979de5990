"""Fold the adapter into the base; refuse a result that does not answer like base + adapter."""

from pathlib import Path

from siftune import config, files, stage, tracking

ADAPTER, MERGED = Path("models/adapter"), Path("models/merged")


def main() -> None:
    params = config.load("encode", "merge")
    from siftune import chat, merging, models

    base = models.base_folder()
    tokenizer = models.load_tokenizer(base)
    records = list(files.read_jsonl(Path("data/prepared/test.jsonl")))[: params.merge.num_prompts]
    rows = [
        chat.encode(tokenizer, record["messages"], params.encode.system)["input_ids"]
        for record in records
    ]
    with tracking.stage("merge", "encode", "merge") as run:
        reference = merging.logits(merging.load_with_adapter(base, ADAPTER), rows)
        with files.published_folder(MERGED) as folder:
            merging.merge(base, ADAPTER).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            # What was written is measured, not what was in memory.
            measured = merging.distance(reference, merging.logits(models.load_model(folder), rows))
            run.report(**measured)
            refuse_far(measured, params.merge)


def refuse_far(measured: dict[str, float], limits: config.Merge) -> None:
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
