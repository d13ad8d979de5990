"""lm-eval's tasks, and our own in eval/tasks, answered by one model and scored item by item."""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from siftune import files, generation, models, provenance, scored
from siftune.chat import conversation
from siftune.sections import Benchmark
from siftune.stage import UserError
from siftune.throughput import (
    attention,
    greedy,
    head,
    layout,
    likelihood,
    limits,
    loss,
    onednn,
    planner,
)

TASKS = Path("eval/tasks")
CACHE = Path("work/answers")
# For the few metrics whose standard error has no formula; lm-eval's 100,000 take minutes.
BOOTSTRAP_RESAMPLES = 1000

# Settings of generation that only count where tokens are drawn, and those that change no token.
_OF_DRAWING = {"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"}
_HARMLESS = _OF_DRAWING | {
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "use_cache",
    "cache_implementation", "transformers_version", "_from_model_config",
}  # fmt: skip


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
                pretrained=onednn.used_in(model),
                tokenizer=tokenizer,
                batch_size=settings.batch_size,
                # The template writes the first token, where there is one.
                add_bos_token=False if settings.chat_template else None,
            )
        self._system = system
        self._stops = set(model.generation_config.eos_token_id)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt as text, behind the system message that training used."""
        messages = conversation.with_system(chat_history, self._system)
        return str(super().apply_chat_template(messages, add_generation_prompt))

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As lm-eval's, but what contexts share is computed once, logits only where one looks."""
        rows = [(context, continuation) for _, context, continuation in requests]
        longest = max(len(context) + len(continuation) - 1 for context, continuation in rows)
        if longest > self.max_length or limits.obstacle(self.config, longest):
            scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return scored
        found = {}
        budget = self.batch_size * longest
        for row, *answer in tqdm(
            likelihood.of_continuations(self.model, rows, budget=budget),
            total=len(rows),
            disable=disable_tqdm,
            desc="Choices",
        ):
            found[row] = tuple(answer)
            if (text := requests[row][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", text, found[row])
        return [found[row] for row in range(len(rows))]

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """As lm-eval's, but what prompts share is computed once, and who is ready leaves."""
        if not self.takes_likeliest(options) or limits.obstacle(self.config, max_length):
            chosen: Tensor = super()._model_generate(context, max_length, stop, **options)
            return chosen
        tokens = zip(context, options["attention_mask"].bool(), strict=True)
        found = greedy.answers(
            self.model,
            [ids[is_text].tolist() for ids, is_text in tokens],
            max_new_tokens=max_length - context.shape[1],
            is_over=self._stopped_by(stop),
        )
        answers = [torch.tensor(answer, device=context.device) for answer in found]
        padded = pad_sequence(answers, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return torch.cat([context, padded], dim=1)

    def takes_likeliest(self, options: dict[str, Any]) -> bool:
        """Whether the next token is the likeliest one, by the logits as they are."""
        own = self.model.generation_config.to_diff_dict()
        changed = {name for name, value in own.items() if value not in (None, False)}
        draws = options.get("do_sample") or options.get("temperature")
        asked = options.keys() - {"attention_mask"}
        return not draws and asked <= _OF_DRAWING and changed <= _HARMLESS

    def _stopped_by(self, texts: list[str]) -> Callable[[list[int]], bool]:
        """Whether an answer's last token ends it, or completes one of the texts."""
        lookback = 2 + max(len(self.tok_encode(text, add_special_tokens=False)) for text in texts)

        def is_over(answer: list[int]) -> bool:
            end = self.tokenizer.decode(answer[-lookback:])
            return answer[-1] in self._stops or any(text in end for text in texts)

        return is_over


def evaluate(
    model: ChatModel, weights: str, tasks: TaskManager, settings: Benchmark
) -> scored.Results:
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
        results: scored.Results = simple_evaluate(
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


def _way_of_computing(weights: str, settings: Benchmark) -> str:
    """What decides an answer and is not in the text of its request."""
    own = (
        conversation, generation, models, attention, greedy, head, layout, likelihood, limits, loss,
        onednn, planner,
    )  # fmt: skip
    modules = [files.sha256(Path(str(module.__file__))) for module in own]
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
