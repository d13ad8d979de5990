"""Read the GGUF files back and refuse those that do not answer like the merged model."""

from pathlib import Path

from siftune import config, gguf_limits, llama_cpp, stage, tracking

MERGED, GGUF = Path("models/merged"), Path("models/gguf")


def main() -> None:
    params = config.load("data", "encode", "gguf_check")
    from siftune import encoders, encoding, gguf_fidelity, gguf_readers, models

    ggufs = llama_cpp.gguf_files(GGUF)
    gguf_limits.require(list(ggufs), params.gguf_check.limits)
    tokenizer = models.load_tokenizer(MERGED)
    how = encoders.how(tokenizer, params.encode, params.data.reasoning_tags)
    test = Path("data/prepared/test.jsonl")
    conversations = list(encoding.some(test, params.gguf_check.num_prompts, how))
    with tracking.stage("gguf_check", "data", "encode", "gguf_check") as run:
        # In fp32 on every device: the reference must be finer than what it judges.
        model = models.load_model(MERGED).float()
        merged = gguf_fidelity.reference(model, tokenizer, conversations)
        del model
        found = []
        for kind, path in ggufs.items():
            with gguf_readers.open_gguf(path, context=max(map(len, merged.ids))) as reader:
                measured = gguf_fidelity.measure(reader, merged)
            print(f"{kind}: {measured}")
            run.report(**{kind: measured})
            found += gguf_limits.complaints(kind, measured, params.gguf_check.limits[kind])
        if found:
            raise stage.UserError(
                "\n  ".join(["GGUF files do not answer like the merged model.", *found])
            )


if __name__ == "__main__":
    stage.run(main)
