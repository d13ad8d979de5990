"""Ask the base and the tuned model the same few prompts, for people to read."""

from pathlib import Path

from siftune import config, files, stage, tracking

MERGED, SAMPLES = Path("models/merged"), Path("data/samples.jsonl")


def main() -> None:
    params = config.load("samples", "encode")
    from siftune import chat, generation, models

    test = files.read_jsonl(Path("data/prepared/test.jsonl"))
    records = generation.spread(test, params.samples.num_prompts)
    conversations = [record["messages"] for record in records]

    def ask(folder: Path) -> list[str]:
        tokenizer = models.load_tokenizer(folder)
        prompts = [chat.prompt_text(tokenizer, c, params.encode.system) for c in conversations]
        return generation.answers(models.load_model(folder), tokenizer, prompts, params.samples)

    with tracking.stage("samples", "samples", "encode") as run:
        base, tuned = ask(models.base_folder()), ask(MERGED)
        rows = [
            {
                "id": record["id"],
                "prompt": "\n\n".join(turn["content"] for turn in record["messages"][:-1]),
                "reference": record["messages"][-1]["content"],
                "base": before,
                "tuned": after,
            }
            for record, before, after in zip(records, base, tuned, strict=True)
        ]
        files.write_jsonl(SAMPLES, rows)
        run.artifact(SAMPLES)
        run.report(num_prompts=len(rows))


if __name__ == "__main__":
    stage.run(main)
