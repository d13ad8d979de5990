"""`siftune chat`: what is typed is answered as it is trained, token by token, until it ends."""

import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trained

from siftune import config, llama_cpp
from siftune.sections import Decoding, Samples
from siftune.stage import UserError
from siftune.talk import chat, weights
from siftune.talk.spelling import BROKEN, Spelling, harmless

NUM_NEW = trained.SAMPLES["max_new_tokens"]
SYSTEM = "Be brief."


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, default_params) -> Path:
    """What a training leaves, with a GGUF file; no test changes it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained.make(tiny_model, default_params)
        weights.GGUF.mkdir()
        llama_cpp.write(weights.MERGED, weights.GGUF, name="tiny", types=["f16"])
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(request, monkeypatch) -> None:
    if "made" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("made"))


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "siftune", "chat", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(typed: str | bytes, *arguments: str) -> tuple[list[str], str]:
    """The lines of the answers, and what else was said."""
    with start(*arguments) as process:
        typed = typed.encode() if isinstance(typed, str) else typed
        out, err = process.communicate(typed, timeout=300)
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines(), err.decode()


def answer_to(*turns: str, model: Path | None = None, **settings: object) -> str:
    """What the merged model (or another) answers, by the functions of the stage samples."""
    from siftune import generation, models
    from siftune.chat import conversation

    tokenizer = models.load_tokenizer()
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    prompt = conversation.prompt_text(tokenizer, messages, SYSTEM)
    place = int(settings.pop("place", 0))
    found = generation.answers(
        models.load_model(model or weights.MERGED), tokenizer, [prompt] * (place + 1),
        Decoding(**settings), max_new_tokens=NUM_NEW, seed=1,
    )  # fmt: skip
    return found[place]


def in_a_line(text: str) -> str:
    return "\n".join(harmless(text).splitlines())


class Recorder:
    """A voice that says the same tokens each time, and keeps what it was asked."""

    def __init__(self, tokenizer, ids: list[int], context: int = 100) -> None:
        self.asked: list[str] = []
        self.context, self.stops = context, {tokenizer.eos_token_id}
        self._tokenizer, self._ids = tokenizer, [*ids, tokenizer.eos_token_id]

    def tokens(self, text: str) -> list[int]:
        self.asked.append(text)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def forget(self) -> None:
        self._left = iter(self._ids)

    def logits_after(self, ids):
        import torch

        return torch.nn.functional.one_hot(torch.tensor(next(self._left)), len(self._tokenizer))


def talk(voice, tokenizer, **changes) -> chat.Talk:
    options = {"system": SYSTEM, "max_new_tokens": 50, "seed": 1} | changes
    return chat.Talk(voice, tokenizer, Decoding(), **options)


# A conversation, in a process


def test_a_piped_conversation_has_a_history_until_it_is_reset(made):
    questions = ["Who are you?", "And why?", "/reset", "And why?"]
    lines, notes = said("\n".join(questions), "--system", SYSTEM)
    first = answer_to("Who are you?")
    second = answer_to("Who are you?", in_a_line(first), "And why?")
    alone = answer_to("And why?")
    assert second != alone
    assert "\n".join(lines) == "\n".join(map(in_a_line, (first, second, alone)))
    assert notes.startswith("merged, models/merged: the likeliest token each time.")
    assert "A new conversation." in notes
    assert notes.count(f"(cut after {NUM_NEW} tokens; --max-new-tokens allows more)") == 3


@pytest.mark.parametrize("reader", ["llama.cpp", "transformers"])
def test_a_gguf_file_answers_like_the_model_that_it_was_made_from(
    made, reader, monkeypatch, capsys
):
    from siftune import models
    from siftune.talk import voices

    if reader == "llama.cpp" and not llama_cpp.has_library():
        pytest.skip("llama.cpp's library is not built: make llama")
    monkeypatch.setattr(llama_cpp, "has_library", lambda: reader == "llama.cpp")
    tokenizer = models.load_tokenizer()
    voice = voices.of(weights.find("f16", weights.all_here()), tokenizer)
    kind = voices.LlamaCppVoice if reader == "llama.cpp" else voices.ModelVoice
    assert isinstance(voice, kind)
    assert (voice.context, voice.stops) == (512, {2})
    conversation = talk(voice, tokenizer, max_new_tokens=NUM_NEW)
    conversation.answer("Who are you?")
    conversation.answer("And why?")
    first = answer_to("Who are you?")
    second = answer_to("Who are you?", in_a_line(first), "And why?")
    assert [turn["content"] for turn in conversation.messages[1::2]] == [
        in_a_line(first), in_a_line(second),
    ]  # fmt: skip


@pytest.mark.parametrize("wanted", ["base", "sft", "newest"])
def test_base_adapter_and_checkpoint_answer_themselves(made, wanted):
    from siftune import models
    from siftune.talk import voices

    tokenizer = models.load_tokenizer()
    voice = voices.of(weights.find(wanted, weights.all_here()), tokenizer)
    conversation = talk(voice, tokenizer, max_new_tokens=NUM_NEW)
    conversation.answer("Who are you?")
    # The adapter is merged, and is that of the newest checkpoint.
    base, merged = answer_to("Who are you?", model=Path("base")), answer_to("Who are you?")
    assert base != merged
    expected = base if wanted == "base" else merged
    assert conversation.messages[-1]["content"] == in_a_line(expected)


def test_drawn_answers_are_those_of_the_samples(made):
    from siftune import models
    from siftune.talk import voices

    tokenizer = models.load_tokenizer()
    voice = voices.of(weights.all_here()[0], tokenizer)
    conversation = talk(voice, tokenizer, max_new_tokens=NUM_NEW)
    conversation.decoding = Decoding(temperature=1.5, top_k=90)
    found = []
    for _ in range(2):
        conversation.messages.clear()
        conversation.answer("Who are you?")
        found.append(conversation.messages[-1]["content"])
    drawn = {"temperature": 1.5, "top_k": 90}
    expected = [in_a_line(answer_to("Who are you?", place=place, **drawn)) for place in (0, 1)]
    assert found == expected
    assert found[0] != found[1]


def test_ctrl_c_stops_the_answer_and_not_the_conversation(made):
    with start("base", "--max-new-tokens", "400") as process:
        os.write(process.stdin.fileno(), b"Who are you?\n")
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"And why?\n/exit\nnever read\n", timeout=300)
    assert process.returncode == 0, err.decode()
    notes = err.decode().splitlines()[1:]
    assert notes == ["(stopped)", "(cut after 400 tokens; --max-new-tokens allows more)"]
    assert b"Traceback" not in out + err


def test_input_that_is_no_utf8_is_no_crash(made):
    lines, notes = said("你".encode()[:2] + b" \xff hello\n\n   \n", "base")
    assert lines
    assert notes.count("(cut after") == 1


# The conversation itself


def test_the_prompt_is_that_of_the_training(tokenizer):
    from siftune.chat import conversation

    voice = Recorder(tokenizer, tokenizer("Fine.")["input_ids"])
    for system in (SYSTEM, None):
        once = talk(voice, tokenizer, system=system)
        once.answer("How are you?")
        once.answer("Really?")
        messages = [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": "Fine."},
            {"role": "user", "content": "Really?"},
        ]
        expected = [
            conversation.prompt_text(tokenizer, messages[:1], system),
            conversation.prompt_text(tokenizer, messages, system),
        ]
        assert voice.asked[-2:] == expected
        assert once.messages == [*messages, {"role": "assistant", "content": "Fine."}]


def test_a_command_that_there_is_not_asks_nothing(tokenizer, capsys):
    voice = Recorder(tokenizer, [])
    talk(voice, tokenizer).answer("/quit\x1b[2J")
    assert voice.asked == []
    err = capsys.readouterr().err
    assert "There is no command /quit" in err
    assert "\x1b" not in err


def test_a_conversation_longer_than_the_model_reads_is_told(tokenizer, capsys):
    once = talk(Recorder(tokenizer, [100], context=10), tokenizer)
    once.answer("A question of more than ten tokens, with its template around it.")
    assert "and the model reads at most 10. /reset begins anew." in capsys.readouterr().err
    assert once.messages == []


def test_an_answer_without_words_is_as_if_it_had_not_been_asked(tokenizer, capsys):
    once = talk(Recorder(tokenizer, []), tokenizer)
    once.answer("Hello?")
    assert "(no answer)" in capsys.readouterr().err
    assert once.messages == []


# Text as it comes


@pytest.mark.parametrize(
    "text",
    [
        "床前明月光,疑是地上霜。",
        "龘 🙂👩‍👩‍👧 café naïve",
        "  two blanks\n\n\ttab ",
        "plain words only",
    ],
)
def test_no_half_of_a_character_is_shown(tokenizer, text):
    spelling = Spelling(decode_of(tokenizer))
    ids = tokenizer(text)["input_ids"]
    pieces = [spelling.add(token) for token in ids]
    assert "".join(pieces) == text
    assert spelling.rest() == ""
    assert not any(BROKEN in piece for piece in pieces)
    if not text.isascii():
        assert len([piece for piece in pieces if piece]) < len(ids)


def test_a_character_whose_bytes_never_come_is_shown_at_the_end(tokenizer):
    spelling = Spelling(decode_of(tokenizer))
    ids = tokenizer("明龘")["input_ids"][:-1]
    assert "".join(map(spelling.add, ids)) == "明"
    assert spelling.rest() == BROKEN


def test_any_tokens_are_shown_as_they_are_decoded_at_once(tokenizer):
    draw = random.Random(5)
    decode = decode_of(tokenizer)
    for _ in range(200):
        ids = [draw.randrange(len(tokenizer)) for _ in range(30)]
        spelling = Spelling(decode)
        text = "".join(map(spelling.add, ids)) + spelling.rest()
        assert text == harmless(decode(ids))


def decode_of(tokenizer):
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_terminal_obeys_nothing_that_a_model_says():
    assert harmless("a\x1b[2Jb\x07\r\n\tc\x9b") == f"a{BROKEN}[2Jb{BROKEN}\n\tc{BROKEN}"


# What is refused


def test_which_models_there_are_is_told(made, monkeypatch):
    with pytest.raises(UserError, match=r"no 'q4_0' .* merged, sft, .*/8, .*/4, f16, base"):
        weights.find("q4_0", weights.all_here())


def test_where_nothing_is_trained_the_base_is_asked(made, tmp_path, monkeypatch):
    shutil.copytree("models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    for trained_folder in ("merged", "sft", "gguf"):
        shutil.rmtree(Path("models") / trained_folder)
    assert [one.name for one in weights.all_here()] == ["base"]


def wishes(name: str | None = None, **settings: object) -> chat.Wishes:
    return chat.Wishes(name, settings, max_new_tokens=None, seed=None, system=None)


@pytest.mark.parametrize(
    ("wished", "message"),
    [
        (wishes("hot"), r"--decoding hot: .*decodings has greedy, warm"),
        (wishes(top_p=1.5), r"siftune chat: --top-p: Input should be less than.* not 1\.5"),
        (wishes(top_k=9), r"siftune chat, from samples\.decodings\.greedy: top_k says"),
        (wishes("warm", num_beams=2), r"decodings\.warm: num_beams looks for the likeliest"),
        (wishes(num_beams=2), r"greedy has 2 beams, .* Add --num-beams 1"),
    ],
)
def test_impossible_settings_are_refused(wished, message):
    decodings = {"greedy": Decoding(), "warm": Decoding(temperature=0.9, top_k=50)}
    samples = Samples(num_prompts=1, max_new_tokens=1, seed=1, decodings=decodings)
    with pytest.raises(UserError, match=message):
        chat.settings(samples, wished)
    assert chat.settings(samples, wishes()) == Decoding()
    assert chat.settings(samples, wishes("warm", top_k=7)) == Decoding(temperature=0.9, top_k=7)


def test_a_wrong_flag_ends_in_one_message_and_78(made):
    with start("--top-p", "0.5") as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 78
    assert b"greedy: top_p says among which tokens" in err
    assert b"Traceback" not in err


def test_a_gguf_file_of_another_template_is_refused(made, monkeypatch):
    from siftune import models
    from siftune.talk import voices

    tokenizer = models.load_tokenizer()
    tokenizer.chat_template = "another"
    with pytest.raises(UserError, match=r"tiny-f16\.gguf has another chat template than"):
        voices.of(weights.find("f16", weights.all_here()), tokenizer)


def test_params_as_they_are_committed_can_be_talked_by(default_params, monkeypatch):
    monkeypatch.setattr(config, "PARAMS_FILE", default_params)
    assert chat.settings(config.load("samples").samples, wishes()) == Decoding()
