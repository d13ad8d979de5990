"""`siftune chat`: a conversation in the terminal, with what was trained or what it began from."""

import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from siftune import config, decoding
from siftune.sections import Decoding, Samples
from siftune.stage import UserError
from siftune.talk import weights
from siftune.talk.spelling import Spelling, harmless

COMMANDS = "/reset begins anew, /exit or the end of the input ends, Ctrl-C stops an answer"


@dataclass(frozen=True)
class Wishes:
    """What was said on the command line; None: what params say."""

    decoding: str | None
    settings: dict[str, Any]  # of sections.Decoding, over the named one's
    max_new_tokens: int | None
    seed: int | None
    system: str | None


def main(wanted: str | None, wishes: Wishes) -> None:
    """Answer what is typed, or comes through a pipe line by line, until it ends.

    Args:
        wanted: as for `weights.find`; None: the most finished that is here.

    Raises:
        UserError: there are no such weights, or the settings contradict each other.
    """
    params = config.load("samples", "encode")
    chosen = settings(params.samples, wishes)
    here = weights.all_here()
    voiced = weights.find(wanted, here) if wanted else here[0]
    voiced.refuse_strange()
    from siftune import models
    from siftune.talk import voices

    tokenizer = models.load_tokenizer()
    talk = Talk(
        voices.of(voiced, tokenizer),
        tokenizer,
        chosen,
        system=params.encode.system if wishes.system is None else wishes.system,
        max_new_tokens=wishes.max_new_tokens or params.samples.max_new_tokens,
        seed=params.samples.seed if wishes.seed is None else wishes.seed,
    )
    note(f"{voiced.name}, {voiced.path}: {decoding.words(chosen)}. {COMMANDS}.")
    # A stage would end at Ctrl-C; here it ends an answer.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for question in questions():
        talk.answer(question)


def settings(samples: Samples, wishes: Wishes) -> Decoding:
    """The decoding of params that was named, or the first, changed as was wished.

    Raises:
        UserError: there is no such name, or what was wished is impossible.
    """
    name = wishes.decoding or next(iter(samples.decodings))
    if name not in samples.decodings:
        raise UserError(
            f"siftune chat: --decoding {name}: params.yaml: samples.decodings has "
            f"{', '.join(samples.decodings)}."
        )
    try:
        found = Decoding(**{**asdict(samples.decodings[name]), **wishes.settings})
    except ValidationError as error:
        problem = error.errors()[0]
        flag = f"--{str(problem['loc'][0]).replace('_', '-')}"
        raise UserError(
            f"siftune chat: {flag}: {problem['msg']}, not {problem['input']}."
        ) from None
    decoding.refuse_contradictions(found, f"siftune chat, from samples.decodings.{name}")
    if found.num_beams > 1:
        raise UserError(
            f"siftune chat: samples.decodings.{name} has {found.num_beams} beams, which know their "
            "answer only at its end; here it is shown as it comes. Add --num-beams 1, or choose "
            "another one by --decoding."
        )
    return found


def questions() -> Iterator[str]:
    """What is typed, line by line; an empty line asks nothing."""
    is_person = sys.stdin.isatty()
    if is_person:
        import readline  # noqa: F401 (gives input() a history, and arrow keys)
    while True:
        try:
            line = input("> " if is_person else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            note(f"\n{COMMANDS}.")
            continue
        # Bytes that are no UTF-8 come as lone surrogates, which no tokenizer takes.
        line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()
        if line == "/exit":
            return
        if line:
            yield line


def note(text: str) -> None:
    """Say something that is no answer."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Talk:
    """One conversation; its prompts are those of the training."""

    voice: Any  # talk.voices.Voice, which would import torch here
    tokenizer: Any
    decoding: Decoding
    system: str | None
    max_new_tokens: int
    seed: int
    messages: list[dict[str, str]] = field(default_factory=list)
    _num_answers: int = 0

    def answer(self, question: str) -> None:
        """Print the answer as it comes, and remember both; or obey a command."""
        if question == "/reset":
            self.messages.clear()
            note("A new conversation.")
            return
        if question.startswith("/"):
            note(f"There is no command {harmless(question)}: {COMMANDS}.")
            return
        self.messages.append({"role": "user", "content": question})
        text = self._answer(self._prompt())
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:  # nothing was said: the question is as if it had not been asked
            self.messages.pop()

    def _prompt(self) -> list[int]:
        from siftune.chat import conversation
        from siftune.data.faults import Fault

        messages = conversation.with_system(self.messages, self.system)
        try:
            text = conversation.render(self.tokenizer, messages, answer_next=True)
        except Fault as fault:
            raise UserError(f"{fault}: the model's template cannot say this.") from None
        ids: list[int] = self.voice.tokens(text)
        return ids

    def _answer(self, prompt: list[int]) -> str:
        room = self.voice.context - len(prompt)
        if room < 1:
            note(
                f"The conversation has {len(prompt)} tokens, and the model reads at most "
                f"{self.voice.context}. /reset begins anew."
            )
            return ""
        return self._show(prompt, min(room, self.max_new_tokens))

    def _show(self, prompt: list[int], num_tokens: int) -> str:
        """Print the answer as it comes, at most so many tokens of it."""
        from siftune import generation

        said: list[str] = []
        end = ""
        spelling = Spelling(
            partial(
                self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        seed = (self.seed, self._num_answers)
        self._num_answers += 1
        self.voice.forget()
        answer = generation.stream(
            self.voice.logits_after, prompt, self.decoding, stops=self.voice.stops, seed=seed
        )
        try:
            for number, token in enumerate(answer, start=1):
                said.append(spelling.add(token))
                print(said[-1], end="", flush=True)
                if number == num_tokens:
                    end = f"(cut after {number} tokens; --max-new-tokens allows more)"
                    break
        except KeyboardInterrupt:
            end = "(stopped)"
        said.append(spelling.rest())
        print(said[-1])
        text = "".join(said)
        if end or not text:
            note(end or "(no answer)")
        return text
