"""`siftune samples`: which checkpoints are here, and what one of them answers."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from siftune import config, decoding, files, status
from siftune.stage import UserError
from siftune.talk import spelling, weights
from siftune.talk.weights import Weights

TEST = Path("data/prepared/test.jsonl")


def show() -> None:
    """Print the checkpoints of all trainings, and what was published at their end."""
    for line in listing():
        print(line)


def listing() -> Iterator[str]:
    """The lines of `siftune samples`."""
    saved = weights.of_checkpoints()
    published = weights.of_phases()
    if not saved and not published:
        yield "No training has saved a checkpoint here yet; `dvc repro sft` trains."
        return
    rows = [(one.name, *_told(one)) for one in saved]
    rows += [(one.name, "", f"the end of the last training, {one.path}") for one in published]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, steps, when in rows:
        yield f"{name:<{widths[0]}}  {steps:<{widths[1]}}  {when}"
    yield ""
    yield f"`siftune samples --checkpoint {rows[0][0]}` asks it, and the base, what the test asks."


def _told(one: Weights) -> tuple[str, str]:
    manifest = one.manifest or {}
    saved = status.age(str(manifest.get("saved")))
    return f"step {manifest.get('step')} of {manifest.get('max_steps', '?')}", f"saved {saved}"


def ask(wanted: str, *, num_prompts: int | None, output: Path | None) -> None:
    """Print what the base and the chosen weights answer to the test split, next to the reference.

    Args:
        wanted: as for `weights.find`.
        num_prompts: None: as many as params say.
        output: a file for the same as JSON lines; None: none.

    Raises:
        UserError: there is no such checkpoint, or it cannot be used.
    """
    params = config.load("samples", "encode")
    decoding.require(params.samples)
    chosen = weights.find(wanted, weights.all_here())
    if chosen.path.suffix == ".gguf":
        raise UserError(f"{chosen.name} is a GGUF file: `siftune chat {chosen.name}` asks it.")
    chosen.refuse_strange()
    if not TEST.is_file():
        raise UserError(f"{TEST} is not there; prepare writes it. Run `dvc repro prepare`.")
    from siftune import generation, models
    from siftune.talk import voices

    tokenizer = models.load_tokenizer()
    test = files.read_jsonl(TEST)
    records = generation.spread(test, num_prompts or params.samples.num_prompts)

    def answers(one: Weights) -> generation.Answers:
        gc.collect()  # the weights before these must not be in memory beside them
        model = voices.load(one, tokenizer)
        return generation.by_each_decoding(
            model, tokenizer, records, params.samples, system=params.encode.system
        )

    # The checkpoint first: it may be dropped by its training, the base may not.
    tuned, base = answers(chosen), answers(Weights("base", weights.BASE))
    rows = generation.rows(records, base=base, tuned=tuned)
    if output is not None:
        files.write_jsonl(output, rows)
    for line in described(rows, chosen.name):
        print(line)


def described(rows: list[dict[str, Any]], name: str) -> Iterator[str]:
    """The rows in lines, the tuned answers under the name of their weights."""
    for row in rows:
        yield from _block("prompt", row["prompt"])
        yield from _block("reference", row["reference"])
        for setting, both in row["answers"].items():
            of = f" · {setting}" if len(row["answers"]) > 1 else ""
            yield from _block(f"base{of}", both["base"])
            yield from _block(f"{name}{of}", both["tuned"])
        yield ""


def _block(title: str, text: str) -> Iterator[str]:
    yield f"── {title}"
    yield spelling.harmless(text.strip()) or "(no answer)"
