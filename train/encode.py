"""Write the conversations as tokens, labels where the loss looks, and a page that proves it."""

import csv
from pathlib import Path

from siftune import config, files, stage, tracking

PREPARED = Path("data/prepared")
HISTOGRAM = Path("plots/token_lengths.csv")
PAGE = Path("report/data.html")


def main() -> None:
    params = config.load("data", "encode")
    from siftune import encoding, models, tokens
    from siftune.chat import templates
    from siftune.proof import page

    with tracking.stage("encode", "data", "encode") as run:
        base = models.base_folder()
        own = models.read_tokenizer(base)
        tokenizer = templates.choose(own, params.encode.template)
        stops = models.all_stop_ids(base, own, tokenizer)
        warning = templates.settle_stop_token(tokenizer, stops)
        how = encoding.how(tokenizer, params.encode, params.data.reasoning_tags)
        with files.published_folder(models.TOKENIZER) as folder:
            tokenizer.save_pretrained(folder)
            models.write_stops(stops, tokenizer, folder)
        prepared = {split: PREPARED / f"{split}.jsonl" for split in tokens.SPLITS}
        for phase in tokens.SCHEMAS:
            with files.published_folder(tokens.folder_of(phase)) as folder:
                if phase == "sft":
                    facts = encoding.encode_splits(prepared, how, folder)
                    continue
                for split in tokens.SPLITS:
                    with tokens.write(split, folder, phase):
                        pass
        files.write_json(tokens.FACTS, encoding.for_the_page(facts, how))
        run.report(**encoding.results(facts), warning=warning)
        write_histogram(facts)
        with files.published_file(PAGE) as aside:
            aside.write_text(page.render(tokenizer=tokenizer), encoding="utf-8")
        run.artifact(HISTOGRAM)
        run.artifact(PAGE)


def write_histogram(facts: dict) -> None:
    with files.published_file(HISTOGRAM) as aside, aside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "tokens", "rows"])
        for split, found in facts.items():
            for low, num_rows in sorted(found.lengths["total"].items()):
                table.writerow([split, low, num_rows])


if __name__ == "__main__":
    stage.run(main)
