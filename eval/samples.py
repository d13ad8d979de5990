"""Ask the base and the tuned model the same few prompts, for people to read."""

from pathlib import Path

from siftune import config, files, stage, tracking

MERGED, SAMPLES = Path("models/merged"), Path("data/samples.jsonl")


def main() -> None:
    params = config.load("samples", "encode")
    from siftune import generation, models
    from siftune.chat import conversation

    test = files.read_jsonl(Path("data/prepared/test.jsonl"))
    records = generation.spread(test, params.samples.num_prompts)

    def ask(folder: Path, tokenizer_folder: Path) -> list[str]:
        tokenizer = models.load_tokenizer(tokenizer_folder)
        prompts = [
            conversation.prompt_text(
                tokenizer, record["messages"], params.encode.system, tools=record.get("tools")
            )
            for record in records
        ]
        model = models.load_model(folder, num_tokens=len(tokenizer))
        return generation.answers(model, tokenizer, prompts, params.samples)

    with tracking.stage("samples", "samples", "encode") as run:
        base, tuned = ask(models.base_folder(), models.TOKENIZER), ask(MERGED, MERGED)
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
