"""Chat templates: the named ones of `jinja/`, and the proof that any of them is fit for training.

Each file of `jinja/` writes what its family's published template writes; what differs is said at
its top. None of them knows the date, so a conversation is the same text on every day.
"""

import copy
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from siftune.chat import conversation, trial
from siftune.chat.families import FAMILIES, Family
from siftune.data.faults import Fault
from siftune.stage import UserError

FOLDER = Path(__file__).parent / "jinja"
# Where users put theirs: a dependency of encode.
OWN = Path("train/templates")
MAX_FILE_BYTES = 64 * 1024
TRIAL_SECONDS = 60  # of wall time: a busy machine gives its trial.CPU_SECONDS late

END_OF_TEXT = "</s>"  # where a tokenizer has no end-of-sequence token at all

# What the probe renders.
QUESTIONS = ("Is this the first question?", "Is this the second question?")
ANSWERS = ("It is the first answer.", "It is the second answer.")
SYSTEM = "This is the system message."
PLAIN, REASONED = (
    [
        {"role": role, "content": content}
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        for role, content in (("user", question), ("assistant", reasoning + answer))
    ]
    for reasoning in ("", "<think>\nIt is so.\n</think>\n\n")
)
WITH_SYSTEM = [{"role": "system", "content": SYSTEM}, *PLAIN[:2]]


def choose(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    """A copy of `tokenizer` with one chat template and the tokens that it needs.

    Args:
        template: None for the tokenizer's own, a name of FAMILIES, or a .jinja file in OWN.

    Raises:
        UserError: there is no such template, or a file's does not compile.
    """
    require(template)
    chosen = _copy(tokenizer, FAMILIES.get(template or ""))
    if template is None:
        chosen.chat_template = _own(tokenizer)
    elif template in FAMILIES:
        chosen.chat_template = named(template)
    else:
        chosen.chat_template = _read(OWN / template)
        _try(chosen)
    return chosen


def require(template: str | None) -> None:
    """Refuse a template that `choose` would refuse whatever the tokenizer."""
    if template is not None and template not in FAMILIES:
        if not template.endswith(".jinja"):
            raise _refusal(f"there is no template {template!r}.")
        if Path(template).name != template:
            raise _refusal(f"{template} is not in {OWN}, where DVC sees that a file changes.")
        _read(OWN / template)


def named(name: str) -> str:
    """The text of a named template."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def probe(tokenizer: PreTrainedTokenizerBase, stop_ids: set[int]) -> str | None:
    """Render two exchanges and look whether a model can be trained on them.

    Templates that open a reasoning in the prompt need answers that have one: fit for either kind
    of answer is fit.

    Args:
        stop_ids: the tokens that end an answer when the model is used.

    Returns:
        A warning, when the template leaves out system messages without a word.

    Raises:
        UserError: the template does not render in a few seconds, leaves out a turn, writes two
            BOS or no stop token after an answer, or the prompt of an answer is not the beginning
            of the trained text, as text and as tokens.
    """
    refuses_system = _try(tokenizer)
    problem = _problem(tokenizer, PLAIN, stop_ids)
    if problem and _problem(tokenizer, REASONED, stop_ids):
        raise _refusal(problem)
    if not refuses_system and SYSTEM not in _rendered(tokenizer, WITH_SYSTEM):
        return "the chat template leaves out system messages"
    return None


def settle_stop_token(tokenizer: PreTrainedTokenizerBase, stop_ids: set[int]) -> str | None:
    """Make the token that the template writes after an answer the tokenizer's end of sequence.

    Some models end a turn with a token of its own, and name it only in their generation settings.
    From here on, there is one.

    Returns:
        The warning of `probe`, which this calls.
    """
    own = tokenizer.eos_token_id
    stop_ids = {*stop_ids, own} - {None}  # a named template's may be new to the model
    warning = probe(tokenizer, stop_ids)
    for stop in sorted(stop_ids, key=lambda token: token != own):
        if not (_problem(tokenizer, PLAIN, {stop}) and _problem(tokenizer, REASONED, {stop})):
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
            break
    return warning


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several, by name
        own = own.get("default")
    if not own:
        raise _refusal("it is null, and the model's tokenizer has no chat template of its own.")
    text: str = own
    return text


def _copy(tokenizer: PreTrainedTokenizerBase, family: Family | None) -> PreTrainedTokenizerBase:
    """A copy with the tokens of a family, of which the stop token ends an answer."""
    needed = [*family.markers, family.stop or tokenizer.eos_token or END_OF_TEXT] if family else []
    found_whole = tokenizer.added_tokens_encoder
    missing = [token for token in needed if token not in found_whole]
    # The vocabulary takes long to copy, and changes only where tokens are added.
    shares = tokenizer.is_fast and not missing
    shared = {id(tokenizer.backend_tokenizer): tokenizer.backend_tokenizer} if shares else {}
    chosen = copy.deepcopy(tokenizer, shared)
    if missing:
        chosen.add_special_tokens(
            {"extra_special_tokens": missing}, replace_extra_special_tokens=False
        )
    if needed:
        chosen.eos_token = needed[-1]
    return chosen


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise _refusal(f"{path} has more than {MAX_FILE_BYTES // 1024} kB.")
        return text.decode("utf-8")
    except OSError as error:
        raise _refusal(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise _refusal(f"{path} is not UTF-8: {error}.") from None


def _try(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Render all that the probe renders, where it can do no harm; whether a system message fails.

    Raises:
        UserError: one of the exchanges fails.
    """
    asked = {
        "template": tokenizer.chat_template,
        "conversations": [
            {
                "messages": messages,
                "add_generation_prompt": messages[-1]["role"] == "user",
                "tools": None,
                "documents": None,
                **tokenizer.special_tokens_map,
            }
            for messages in (*_beginnings(PLAIN), *_beginnings(REASONED), WITH_SYSTEM)
        ],
    }
    is_ours = any(named(name) == tokenizer.chat_template for name in FAMILIES)
    *errors, with_system = trial.errors(asked) if is_ours else _tried(json.dumps(asked))
    for error in errors:
        if error:
            raise _refusal(f"the chat template cannot be rendered: {error}.")
    return with_system is not None


@lru_cache(maxsize=8)
def _tried(conversations: str) -> list[str | None]:
    command = [sys.executable, "-P", str(Path(trial.__file__))]
    try:
        child = subprocess.run(
            command, input=conversations, capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        child = None
    if child is None or child.returncode < 0 or "MemoryError" in child.stderr:
        raise _refusal(
            f"two exchanges take the chat template more than {trial.CPU_SECONDS} seconds or "
            f"{trial.MEMORY_BYTES >> 20} MB."
        )
    assert child.returncode == 0, child.stderr
    errors: list[str | None] = json.loads(child.stdout)
    return errors


def _problem(
    tokenizer: PreTrainedTokenizerBase, messages: conversation.Messages, stop_ids: set[int]
) -> str | None:
    """Why a model cannot be trained on this conversation, in one sentence."""
    rendered = [_rendered(tokenizer, turns) for turns in _beginnings(messages)]
    whole = rendered[-1]
    for said in (*QUESTIONS, *ANSWERS):
        if said not in whole:
            return f"the chat template leaves out a turn: {said!r} is not in {whole!r}."
    ids = [_tokens(tokenizer, text) for text in rendered]
    bos = tokenizer.bos_token
    if bos and ids[-1][:2] == [tokenizer.bos_token_id] * 2:
        return f"the chat template writes two beginning-of-sequence tokens: {whole[:40]!r}."
    for prompt, answered in ((0, 1), (2, 3)):
        if not rendered[answered].startswith(rendered[prompt]):
            return (
                "the prompt of an answer is not the beginning of the text that is trained.\n"
                f"  prompt: {rendered[prompt][-200:]!r}\n  text:   {rendered[answered][-200:]!r}"
            )
        if ids[answered][: len(ids[prompt])] != ids[prompt]:
            return (
                "this tokenizer merges the end of the prompt with the beginning of the answer: "
                f"after {rendered[prompt][-20:]!r} the model would read other tokens than it was "
                "trained on."
            )
    for answer, following in zip(ANSWERS, (QUESTIONS[1], None), strict=True):
        after = whole[whole.index(answer) + len(answer) :]
        after = after[: after.index(following)] if following else after
        if not stop_ids.intersection(_tokens(tokenizer, after)):
            stops = " or ".join(tokenizer.convert_ids_to_tokens(sorted(stop_ids)))
            return (
                f"the chat template writes no stop token ({stops}) after an answer, but {after!r}: "
                "a model trained so would never stop."
            )
    return None


def _beginnings(messages: conversation.Messages) -> list[conversation.Messages]:
    """The prompt of the first answer, that with its answer, and so on."""
    return [messages[:end] for end in range(1, len(messages) + 1)]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: conversation.Messages) -> str:
    try:
        return conversation.render(tokenizer, messages, answer_next=messages[-1]["role"] == "user")
    except Fault as fault:
        raise _refusal(f"{fault}.") from None


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _refusal(what: str) -> UserError:
    return UserError(
        f"params.yaml: encode.template: {what}\n"
        f"  Valid: null (the model's own), a .jinja file in {OWN}, {', '.join(FAMILIES)}."
    )
