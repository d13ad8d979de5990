"""lm-eval's tasks, and our own in eval/tasks, answered by one model and scored item by item."""

import difflib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from siftune import files, generation, models, provenance
from siftune.chat import conversation
from siftune.sections import Benchmark
from siftune.stage import UserError

TASKS = Path("eval/tasks")
CACHE = Path("work/answers")
# For the few metrics whose standard error has no formula; lm-eval's 100,000 take minutes.
BOOTSTRAP_RESAMPLES = 1000

Results = dict[str, Any]


def load_tasks(names: list[str]) -> TaskManager:
    """lm-eval's index of tasks, after all of `names` were found and their data loaded once.

    Raises:
        UserError: a task is unknown, its data cannot be had, or it needs more than a text model.
    """
    tasks = find_tasks(names)
    for name, task in loaded(tasks, names).items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"params.yaml: benchmark.tasks: {name} runs code that the model writes, or shows "
                "it images or sound. Only text tasks that run no code are done here."
            )
    return tasks


def find_tasks(names: list[str]) -> TaskManager:
    """lm-eval's index of tasks, after all of `names` were found; no data is loaded.

    Raises:
        UserError: a task is unknown.
    """
    tasks = TaskManager(include_path=TASKS, include_defaults=False)
    if not set(names) <= set(tasks.all_tasks):
        # lm-eval's own index takes 20 seconds to read.
        tasks = TaskManager(include_path=TASKS)
    for name in names:
        if name not in tasks.all_tasks:
            near = difflib.get_close_matches(name, tasks.all_tasks, n=5)
            raise UserError(
                f"params.yaml: benchmark.tasks: there is no task {name!r}. "
                f"Near it: {', '.join(near) or 'nothing'}. "
                f"`lm_eval ls tasks` lists lm-eval's tasks; ours are in {TASKS}."
            )
    return tasks


def loaded(tasks: TaskManager, names: list[str]) -> dict[str, Any]:
    """The tasks of these names, those of groups one by one, with their data.

    Raises:
        UserError: their data cannot be had.
    """
    listed = ", ".join(names)
    try:
        with _quiet("lm_eval.api.task"):
            return dict(tasks.load(names)["tasks"])
    except ConnectionError as error:
        raise UserError(
            f"params.yaml: benchmark.tasks: the data of {listed} is not on this disk, and the hub "
            f"does not answer: {error}. Run `siftune fetch --all` where the hub is in reach, with "
            f"HF_HOME on a disk that this machine sees. The tasks in {TASKS} need no hub."
        ) from None
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"params.yaml: benchmark.tasks: {listed} cannot be loaded: {error}"
        ) from error


class ChatModel(HFLM):
    """lm-eval's transformers model, prompted and stopped as our models are trained."""

    def __init__(
        self, folder: Path, tokenizer_folder: Path, settings: Benchmark, *, system: str | None
    ) -> None:
        tokenizer = models.load_tokenizer(tokenizer_folder)
        model = models.load_model(folder, num_tokens=len(tokenizer))
        models.stop_as_encoded(model, tokenizer, tokenizer_folder)
        with _quiet("lm_eval.models.huggingface"):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=settings.batch_size,
                # The template writes the first token, where there is one.
                add_bos_token=False if settings.chat_template else None,
            )
        self._system = system

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text, behind the system message that training used."""
        messages = conversation.with_system(chat_history, self._system)
        return str(super().apply_chat_template(messages, add_generation_prompt))


def evaluate(model: ChatModel, weights: str, tasks: TaskManager, settings: Benchmark) -> Results:
    """Answer and score all tasks.

    Every answer is kept at once, by model, way of computing and the request's text: an interrupted
    run goes on where it was, and a model that did not change is not asked again.

    Args:
        weights: digest of the model's files.

    Returns:
        What lm-eval returns, samples included.
    """
    if settings.max_new_tokens >= model.max_length:
        raise UserError(
            f"params.yaml: benchmark.max_new_tokens is {settings.max_new_tokens}, but the model "
            f"holds {model.max_length} tokens, prompt and answer together."
        )
    with _quiet("lm_eval.evaluator"), _quiet("lm_eval.api.task"):
        results: Results = simple_evaluate(
            model=model,
            tasks=settings.tasks,
            task_manager=tasks,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            use_cache=str(CACHE / _way_of_computing(weights, settings) / "answers"),
            bootstrap_iters=BOOTSTRAP_RESAMPLES,
            apply_chat_template=settings.chat_template,
            gen_kwargs={"max_gen_toks": settings.max_new_tokens},
        )
    return results


def metrics(results: Results) -> dict[str, dict[str, float | int | None]]:
    """value, stderr (None where lm-eval has none) and n of every metric of a task or group."""
    found: dict[str, dict[str, float | int | None]] = {}
    for task, entries in results["results"].items():
        for key, value in entries.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = entries.get(f"{metric}_stderr,{filter_name}")
            found[f"{task}/{_name(metric, filter_name)}"] = {
                "value": value,
                "stderr": error if isinstance(error, float) else None,
                "n": entries["sample_len"],
            }
    return found


def directions(results: Results) -> dict[str, bool]:
    """Whether a higher value is better, by the names of `metrics`."""
    found: dict[str, bool] = {}
    for task, entries in results["samples"].items():
        higher = results["higher_is_better"][task]
        for entry in entries:
            for metric in entry["metrics"]:
                # None: lm-eval does not know.
                found[f"{task}/{_name(metric, entry['filter'])}"] = higher.get(metric) is not False
    return found


def items(results: Results) -> Iterator[dict[str, Any]]:
    """One row an item: task, id, prompt, target, answer, and scores by metric and filter.

    Only metrics that are the mean of their items' scores are among them: the items of a perplexity
    or a corpus BLEU have no score of their own.
    """
    for task, entries in results["samples"].items():
        scored = _mean_metrics(results["results"][task], entries)
        rows: dict[int, dict[str, Any]] = {}
        for entry in entries:
            row = rows.setdefault(entry["doc_id"], {"task": task, **_item(entry), "scores": {}})
            for metric in entry["metrics"]:
                if (metric, entry["filter"]) in scored:
                    row["scores"][_name(metric, entry["filter"])] = float(entry[metric])
        named = {row["id"] for row in rows.values()}
        for number, row in rows.items():
            # Not every data set names its items, or names each differently.
            yield row if len(named) == len(rows) else {**row, "id": str(number)}


def _mean_metrics(values: dict[str, Any], entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    scores: dict[tuple[str, str], list[Any]] = {}
    for entry in entries:
        for metric in entry["metrics"]:
            scores.setdefault((metric, entry["filter"]), []).append(entry[metric])
    return {
        (metric, filter_name)
        for (metric, filter_name), found in scores.items()
        if all(isinstance(score, int | float) for score in found)
        and math.isclose(sum(found) / len(found), values[f"{metric},{filter_name}"], abs_tol=1e-9)
    }


def _item(entry: dict[str, Any]) -> dict[str, str]:
    prompt, *_ = entry["arguments"][0]
    target, answer = entry["target"], ""
    first = entry["resps"][0][0]
    if isinstance(first, str):
        answer = first
    elif isinstance(first, tuple):
        # A choice: the likeliest continuation.
        choices = [continuation for _, continuation in entry["arguments"]]
        likelihoods = [responses[0][0] for responses in entry["resps"]]
        answer = choices[likelihoods.index(max(likelihoods))]
        target = choices[target] if isinstance(target, int) else target
    name = entry["doc"].get("id", entry["doc_id"])
    return {"id": str(name), "prompt": prompt, "target": str(target), "answer": answer}


def _name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}/{filter_name}"


def _way_of_computing(weights: str, settings: Benchmark) -> str:
    """What decides an answer and is not in the text of its request."""
    modules = [files.sha256(Path(str(m.__file__))) for m in (conversation, generation, models)]
    return provenance.digest(
        {
            "weights": weights,
            "code": [files.sha256(Path(__file__)), *modules],
            "stack": {name: version(name) for name in ("lm-eval", "torch", "transformers")},
            "dtype": str(models.device_dtype()),
            "batch_size": settings.batch_size,
            "chat_template": settings.chat_template,
        }
    )[:16]


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """lm-eval repeats as warnings what we have set on purpose."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
