"""Ask the base and the tuned model the same few prompts, for people to read."""

from pathlib import Path

from siftune import config, files, stage, tracking

MERGED, SAMPLES = Path("models/merged"), Path("data/samples.jsonl")


def main() -> None:
    params = config.load("samples", "encode")
    from siftune import generation, models
    from siftune.throughput import onednn

    test = files.read_jsonl(Path("data/prepared/test.jsonl"))
    records = generation.spread(test, params.samples.num_prompts)

    def ask(folder: Path, tokenizer_folder: Path) -> generation.Answers:
        tokenizer = models.load_tokenizer(tokenizer_folder)
        model = models.load_model(folder, num_tokens=len(tokenizer))
        models.stop_as_encoded(model, tokenizer, tokenizer_folder)
        return generation.by_each_decoding(
            onednn.used_in(model), tokenizer, records, params.samples, system=params.encode.system
        )

    with tracking.stage("samples", "samples", "encode") as run:
        base, tuned = ask(models.base_folder(), models.TOKENIZER), ask(MERGED, MERGED)
        rows = generation.rows(records, base=base, tuned=tuned)
        files.write_jsonl(SAMPLES, rows)
        run.artifact(SAMPLES)
        run.report(num_prompts=len(rows))


if __name__ == "__main__":
    stage.run(main)
