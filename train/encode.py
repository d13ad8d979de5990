"""Write the conversations as tokens, labels where the loss looks, and a page that proves it."""

import csv
from contextlib import ExitStack
from pathlib import Path

from siftune import config, files, stage, tracking
from siftune.data import kinds

PREPARED = Path("data/prepared")
HISTOGRAM = Path("plots/token_lengths.csv")
PAGE = Path("report/data.html")


def main() -> None:
    params = config.load("data", "encode")
    from siftune import encoders, encoding, models, tokens
    from siftune.chat import templates
    from siftune.proof import page

    prepared = {split: PREPARED / f"{split}.jsonl" for split in tokens.SPLITS}
    require_phases(encoding.count(prepared))
    with tracking.stage("encode", "data", "encode") as run:
        base = models.base_folder()
        own = models.read_tokenizer(base)
        tokenizer = templates.choose(own, params.encode.template)
        stops = models.all_stop_ids(base, own, tokenizer)
        warning = templates.settle_stop_token(tokenizer, stops)
        how = encoders.how(tokenizer, params.encode, params.data.reasoning_tags)
        with files.published_folder(models.TOKENIZER) as folder:
            tokenizer.save_pretrained(folder)
            models.write_stops(stops, tokenizer, folder)
        with ExitStack() as stack:
            folders = {
                phase: stack.enter_context(files.published_folder(tokens.folder_of(phase)))
                for phase in tokens.SCHEMAS
            }
            facts = encoding.encode_splits(prepared, how, folders)
        files.write_json(tokens.FACTS, encoding.for_the_page(facts, how))
        run.report(**encoding.results(facts), warning=warning)
        write_histogram(facts)
        with files.published_file(PAGE) as aside:
            aside.write_text(page.render(tokenizer=tokenizer), encoding="utf-8")
        run.artifact(HISTOGRAM)
        run.artifact(PAGE)


def require_phases(counted: dict) -> None:
    # No param of this stage: a phase's script says it again, should params change later.
    trained = config.names_of_phases()
    with_rows = {phase for phase, _ in counted}
    kinds.require({phase: (phase in trained, phase in with_rows) for phase in kinds.ROWS})


def write_histogram(facts: dict) -> None:
    from siftune import encoding

    with files.published_file(HISTOGRAM) as aside, aside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "tokens", "rows"])
        for split, found in encoding.by_name(facts).items():
            for low, num_rows in sorted(found.lengths["total"].items()):
                table.writerow([split, low, num_rows])


if __name__ == "__main__":
    stage.run(main)
