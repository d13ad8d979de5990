"""Write the conversations as tokens, with labels where the loss looks."""

import csv
from collections import Counter
from pathlib import Path

from siftune import config, files, stage, tracking

TOKENS = Path("data/tokens")
HISTOGRAM = Path("plots/token_lengths.csv")
BIN = 8  # tokens


def main() -> None:
    params = config.load("encode")
    from siftune import chat, models

    tokenizer = models.load_tokenizer(models.base_folder())
    lengths: dict[str, list[int]] = {}
    with tracking.stage("encode", "encode") as run:
        num_dropped = 0
        with files.published_folder(TOKENS) as folder:
            for split in ("train", "validation"):
                records = files.read_jsonl(Path(f"data/prepared/{split}.jsonl"))
                rows = [
                    chat.encode(tokenizer, record["messages"], params.encode.system)
                    | {"id": record["id"]}
                    for record in records
                ]
                kept = fit(rows, params.encode, split)
                num_dropped += len(rows) - len(kept)
                lengths[split] = [len(row["input_ids"]) for row in kept]
                save(kept, folder / split)
                run.report(**{split: facts(kept)})
        run.report(dropped=num_dropped)
        write_histogram(lengths)
        run.artifact(HISTOGRAM)


def fit(rows: list[dict], encode: config.Encode, split: str) -> list[dict]:
    kept = [row for row in rows if len(row["input_ids"]) <= encode.max_length]
    too_long = [row for row in rows if len(row["input_ids"]) > encode.max_length]
    if too_long and encode.too_long == "error":
        worst = max(too_long, key=lambda row: len(row["input_ids"]))
        raise stage.UserError(
            f"params.yaml: encode.max_length: {len(too_long)} of {len(rows)} {split} "
            f"conversations are longer than {encode.max_length} tokens, "
            f"{worst['id']} has {len(worst['input_ids'])}. Raise it, or set encode.too_long: drop."
        )
    if not kept:
        raise stage.UserError(
            f"params.yaml: encode.max_length: all {split} conversations are too long."
        )
    return kept


def save(rows: list[dict], folder: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder)


def facts(rows: list[dict]) -> dict[str, float]:
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    num_trained = sum(label != -100 for row in rows for label in row["labels"])
    return {
        "rows": len(rows),
        "tokens": num_tokens,
        "trained_tokens": num_trained,
        "trained_share": round(num_trained / num_tokens, 4),
        "longest": max(len(row["input_ids"]) for row in rows),
    }


def write_histogram(lengths: dict[str, list[int]]) -> None:
    with files.published_file(HISTOGRAM) as aside, aside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "tokens", "rows"])
        for split, values in lengths.items():
            for low, num_rows in sorted(Counter(n // BIN * BIN for n in values).items()):
                table.writerow([split, low, num_rows])


if __name__ == "__main__":
    stage.run(main)
