"""What the tasks in eval/tasks ask, and how they score what is no exact match; lm-eval calls it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from siftune import files
from siftune.data import kinds
from siftune.rewards import poems
from siftune.stage import UserError

PREPARED = Path("data/prepared")
# Examples before a question are the first of these; all of a large split need not be in memory.
NUM_TRAINING_ROWS = 10_000


def questions(**told: Any) -> dict[str, Any]:
    """The splits `train` and `test`: all records with a true answer, as {"id", "messages"}.

    One by one, since rows of several kinds have different columns, and each kind need not be in
    each split. Left out are plain text, and answers that are labelled bad.

    Args:
        told: what else the task's file says; lm-eval passes it on.

    Raises:
        UserError: the test split has no such record.
    """
    import datasets

    test = list(_conversations("test"))
    if not test:
        raise UserError(
            "params.yaml: benchmark.tasks: the tasks in eval/tasks ask the questions of the test "
            "split, and it has no row with a question and a true answer. Name tasks of lm-eval "
            "(`lm_eval ls tasks`), and one of their metrics in register.metric."
        )
    train = list(islice(_conversations("train"), NUM_TRAINING_ROWS))
    return {"train": datasets.Dataset.from_list(train), "test": datasets.Dataset.from_list(test)}


def _conversations(split: str) -> Iterator[dict[str, Any]]:
    for record in files.read_jsonl(PREPARED / f"{split}.jsonl"):
        found = kinds.as_conversation(record)
        if found and record.get("label") is not False:
            turns = [{"role": one["role"], "content": one["content"]} for one in found["messages"]]
            yield {"id": record["id"], "messages": turns}


def poem_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The scores, from 0 to 1, of one ending of a poem.

    Args:
        doc: a record whose last message is the true ending.
        results: the model's ending.

    Returns:
        right_form: both of the following. right_lines: as many lines as the true ending.
        right_characters: there are lines, each with as many characters as the true ending's, all
        Chinese, none said before. rhyme: the reward of that name.
    """
    *prompt, true = doc["messages"]
    [ending] = results
    record = {"answer": true["content"]}
    found, wanted = (len(poems.lines(text)) for text in (ending, true["content"]))
    whatever_lines = poems.poem_form(prompt, ending, record, num_lines=max(1, found))
    return {
        "right_form": float(poems.poem_form(prompt, ending, record) == 1.0),
        "right_lines": float(found == wanted),
        "right_characters": float(whatever_lines == 1.0),
        "rhyme": poems.rhyme(prompt, ending, record, follows_prompt=True),
    }
