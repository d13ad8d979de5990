"""Answers and log-probabilities are those of each prompt alone, and bugs would show."""

from collections.abc import Callable

import packs
import pytest
import torch

from siftune.throughput import greedy, likelihood, planner

NEW = 9  # tokens; with the prompts more than any window
STOP = 5
TOLERANCE = 1e-5  # relative, in fp32


def prompts() -> list[list[int]]:
    """Some begin alike, one is the beginning of another, two are the same, all begin with six."""
    draw = torch.Generator().manual_seed(3)
    some = [
        torch.randint(6, packs.VOCABULARY, (n,), generator=draw).tolist() for n in (6, 9, 5, 12)
    ]
    header, example, one, other = some
    return [
        [*header, *example, *one], [*header, *example, *other], [*header, *example],
        [*header, *one], [*header, *one], [*header, *other, *example],
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _share_all(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)


@torch.no_grad()
def alone(model, prompt: list[int], num_tokens: int = NEW) -> list[int]:
    """Each token from a pass over all before it; no cache."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == STOP:
            break
    return ids[len(prompt) :]


def together(model, rows: list[list[int]], num_tokens: int = NEW) -> list[list[int]]:
    def is_over(answer: list[int]) -> bool:
        return answer[-1] == STOP

    return greedy.answers(model, rows, max_new_tokens=num_tokens, is_over=is_over)


@pytest.mark.parametrize("shape", packs.SHAPES)
def test_logits_after_any_tokens_are_those_of_each_prompt_alone(shape, monkeypatch):
    monkeypatch.setattr(greedy, "_ROOM", 2)
    model = packs.model(shape).eval()
    assert difference_from_alone(model) < TOLERANCE
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
def difference_from_alone(model) -> float:
    """The largest of all steps, relative; half of the rows leave on the way."""
    rows = prompts()
    logits, kept = greedy.read(model, rows)
    draw = torch.Generator().manual_seed(4)
    worst = 0.0
    for step in range(NEW):
        wanted = torch.stack([model(input_ids=torch.tensor([ids])).logits[0, -1] for ids in rows])
        worst = max(worst, ((logits - wanted).abs().max() / wanted.abs().max()).item())
        tokens = torch.randint(6, packs.VOCABULARY, (len(rows),), generator=draw)
        if step == NEW // 2:
            kept.keep([0, 2, 5])
            rows, tokens = [rows[0], rows[2], rows[5]], tokens[:3]
        rows = [[*ids, token] for ids, token in zip(rows, tokens.tolist(), strict=True)]
        with greedy.in_use(model):
            logits = kept.after(model, tokens)
    return worst


def test_answers_are_those_of_each_prompt_alone():
    model = packs.model("llama").eval()
    wanted = [alone(model, prompt) for prompt in prompts()]
    assert together(model, prompts()) == wanted
    assert len({tuple(answer) for answer in wanted}) > 3


@pytest.mark.parametrize(
    "choose", [lambda rows: rows[:1], lambda rows: rows[3:5], lambda rows: [rows[0], rows[1][7:]]],
    ids=["one", "two of the same", "nothing in common"],
)  # fmt: skip
def test_whatever_the_batch(choose: Callable[[list], list]):
    model = packs.model("llama").eval()
    rows = choose(prompts())
    assert together(model, rows) == [alone(model, prompt) for prompt in rows]


def test_who_is_ready_leaves(monkeypatch):
    model = packs.model("llama").eval()
    rows = prompts()
    wanted = [alone(model, prompt) for prompt in rows]
    # Each answer ends with its second, third, … token.
    ends = {tuple(answer[: 2 + number]) for number, answer in enumerate(wanted)}
    sizes = []
    after = greedy.Kept.after

    def spy(self, model, tokens):
        sizes.append(len(tokens))
        return after(self, model, tokens)

    monkeypatch.setattr(greedy.Kept, "after", spy)
    found = greedy.answers(
        model, rows, max_new_tokens=NEW, is_over=lambda answer: tuple(answer) in ends
    )
    assert found == [
        answer[: min(len(end) for end in ends if tuple(answer[: len(end)]) == end)]
        for answer in wanted
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(rows)
    assert sizes[-1] < 3


def choices() -> list[likelihood.Row]:
    """Contexts with several continuations, of one token and of more."""
    rows = prompts()
    return [
        (prompt, continuation)
        for prompt in rows[:4]
        for continuation in ([7], [8], rows[0][:4], rows[1][-6:], rows[0][:2])
    ]


@pytest.mark.parametrize("budget", [1000, 45])
@pytest.mark.parametrize("shape", packs.SHAPES)
def test_log_probabilities_are_those_of_each_row_alone(shape, budget, monkeypatch):
    monkeypatch.setattr("siftune.throughput.head.CHUNK", 7)
    model = packs.model(shape).eval()
    rows = choices()
    # One of which all tokens are the likeliest.
    rows.append((prompts()[0], alone(model, prompts()[0], 3)))
    found = {}
    for row, nats, is_top in likelihood.of_continuations(model, rows, budget=budget):
        assert row not in found
        found[row] = nats, is_top
    assert set(found) == set(range(len(rows)))
    for row, (context, continuation) in enumerate(rows):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + continuation])).logits[0]
        scores = logits[len(context) - 1 : -1].log_softmax(-1)
        wanted = torch.tensor(continuation)
        nats = scores.gather(1, wanted[:, None]).sum().item()
        assert found[row] == (
            pytest.approx(nats, rel=TOLERANCE),
            bool((scores.argmax(-1) == wanted).all()),
        )
    assert found[len(rows) - 1][1]


def wrong_place(monkeypatch) -> None:
    """A new token stands where its row would be with padding."""
    after = greedy.Kept.after

    def padded(self, model, tokens):
        lengths = self._lengths
        self._lengths = torch.full_like(lengths, int(lengths.max()))
        logits = after(self, model, tokens)
        self._lengths = lengths + 1
        return logits

    monkeypatch.setattr(greedy.Kept, "after", padded)


def all_seen(monkeypatch) -> None:
    """What lies behind a row's own tokens is seen, too."""
    seen = greedy.Kept.seen
    monkeypatch.setattr(
        greedy.Kept, "seen", lambda self, window: torch.ones_like(seen(self, window))
    )


def mixed_rows(monkeypatch) -> None:
    """The rows that go on get what is kept of the others."""
    keep = greedy.Kept.keep
    monkeypatch.setattr(greedy.Kept, "keep", lambda self, places: keep(self, places[::-1]))


@pytest.mark.parametrize("bug", [wrong_place, all_seen, mixed_rows])
def test_bugs_are_seen(bug, monkeypatch):
    model = packs.model("llama").eval()
    bug(monkeypatch)
    assert difference_from_alone(model) > 100 * TOLERANCE
