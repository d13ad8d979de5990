import copy
from dataclasses import replace
from itertools import islice

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from siftune import generation, models
from siftune.chat import conversation
from siftune.decoding import words as decoding_words
from siftune.sections import Decoding, Samples

GREEDY, DRAWN, BEAMS = Decoding(), Decoding(temperature=1.0), Decoding(num_beams=4)
ANSWER = {"role": "assistant", "content": "4"}
QUESTIONS = ["How much is 2 + 2?", "Ana has 34 apples and gives 3 to each of her 5 friends.", "Hi"]
NUM_NEW = 12
SAID = " red green blue"  # three tokens that the parrot likes


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a random output head: with its own it repeats the last token."""
    model = models.load_model(tiny_model)
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    return model


@pytest.fixture
def parrot(model, tokenizer):
    """The same, inclined to a few tokens: it says the same again and again."""
    bias = torch.zeros(model.config.vocab_size)
    bias[tokenizer(SAID)["input_ids"]] = torch.tensor([60.0, 59.5, 59.0])
    model.lm_head.bias = torch.nn.Parameter(bias)
    yield model
    model.lm_head.bias = None


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [
        conversation.prompt_text(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS
    ]


@pytest.fixture
def ask(tokenizer):
    """A function: the answers of a model to prompts by a decoding."""

    def answers(model, prompts, decoding, *, seed=1, max_new_tokens=NUM_NEW, tokenizer=tokenizer):
        return generation.answers(
            model, tokenizer, prompts, decoding, max_new_tokens=max_new_tokens, seed=seed
        )

    return answers


class Ids:
    """A tokenizer whose answers stay token ids."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, *args, **kwargs):
        return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def batch_decode(self, output, **_):
        return output.tolist()


def likeliest_first(model, tokenizer, prompt):
    """The token ids by their logit as the first of an answer, and the logits."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(ids).logits[0, -1].float().detach().sort(descending=True)[::-1]


@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        Decoding(repetition_penalty=1.5),
        Decoding(no_repeat_ngram=1),
        Decoding(num_beams=3),
    ],
    ids=decoding_words,
)
def test_an_answer_does_not_depend_on_its_neighbours(parrot, prompts, ask, decoding, monkeypatch):
    together = ask(parrot, prompts, decoding)
    assert together == [ask(parrot, [prompt], decoding)[0] for prompt in prompts]
    monkeypatch.setattr(generation, "BATCH", 2)
    assert together == ask(parrot, prompts, decoding)


def test_a_drawn_answer_depends_on_its_place_and_not_on_its_neighbours(
    model, prompts, ask, monkeypatch
):
    together = ask(model, prompts, DRAWN)
    assert ask(model, [prompts[0], *prompts[:0:-1]], DRAWN)[0] == together[0]
    assert ask(model, prompts[:1] * 2, DRAWN)[0] != ask(model, prompts[:1] * 2, DRAWN)[1]
    monkeypatch.setattr(generation, "BATCH", 2)
    assert ask(model, prompts, DRAWN) == together


def test_greedy_answers_are_the_likeliest_tokens(model, tokenizer, prompts, ask):
    ids = tokenizer(prompts[1], add_special_tokens=False, return_tensors="pt")["input_ids"]
    for _ in range(NUM_NEW):
        likeliest = model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = likeliest.new_tensor([[*ids[0], *likeliest[0]]])
    expected = tokenizer.decode(ids[0, -NUM_NEW:], skip_special_tokens=True)
    assert ask(model, prompts[1:2], GREEDY) == [expected]


def test_drawn_answers_come_from_the_seed(model, tokenizer, prompts, ask):
    first = ask(model, prompts, DRAWN)
    assert ask(model, prompts, DRAWN) == first
    assert ask(model, prompts, DRAWN, seed=2) != first
    greedy = ask(model, prompts, GREEDY)
    assert first != greedy
    # So little of the probability that only the likeliest token is left.
    assert ask(model, prompts, replace(DRAWN, top_p=1e-6)) == greedy


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    num_draws = 4000
    for temperature in (0.5, 1.0, 2.0):
        rules = generation._rules(
            Decoding(temperature=temperature), 0, [(7, i) for i in range(num_draws)], logits.device
        )
        drawn = rules(torch.empty(num_draws, 0, dtype=torch.long), logits.repeat(num_draws, 1))
        share = drawn.argmax(-1).bincount(minlength=5) / num_draws
        expected = torch.softmax(logits / temperature, -1)
        deviation = (expected * (1 - expected) / num_draws).sqrt()
        assert ((share - expected).abs() < 4 * deviation + 1e-9).all(), temperature


def test_top_k_draws_among_the_likeliest(model, tokenizer, prompts, ask):
    one = Decoding(temperature=5.0, top_k=1)
    assert ask(model, prompts, one) == ask(model, prompts, GREEDY)
    best, _ = likeliest_first(model, tokenizer, prompts[0])
    three = Decoding(temperature=1000.0, top_k=3)
    drawn = ask(model, prompts[:1] * 40, three, max_new_tokens=1, tokenizer=Ids(tokenizer))
    assert {token for [token] in drawn} == set(best[:3].tolist())


def test_top_p_draws_among_those_that_make_up_the_share(model, tokenizer, prompts, ask):
    best, logits = likeliest_first(model, tokenizer, prompts[0])
    temperature = 0.2 * float(logits[0] - logits[20])  # many tokens are likely
    shares = torch.softmax(logits / temperature, -1).cumsum(-1)
    num_kept = int((shares < 0.5).sum()) + 1  # the one that passes the share belongs to them
    assert 2 <= num_kept <= 40
    nucleus = Decoding(temperature=temperature, top_p=0.5)
    drawn = ask(model, prompts[:1] * 200, nucleus, max_new_tokens=1, tokenizer=Ids(tokenizer))
    found = {token for [token] in drawn}
    assert found <= set(best[:num_kept].tolist())
    assert len(found) >= 2


def test_every_token_can_be_drawn(model, tokenizer, prompts, ask):
    hot = replace(DRAWN, temperature=1000.0)
    ids = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    likeliest = model(ids).logits[0, -1].topk(50).indices
    drawn = ask(model, prompts[:1] * 8, hot, max_new_tokens=1)
    assert not set(drawn) <= {tokenizer.decode(token) for token in likeliest}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_so_many_tokens_in_a_row_never_come_twice(parrot, tokenizer, prompts, ask, size):
    def repeated(decoding):
        for ids in ask(parrot, prompts, decoding, max_new_tokens=40, tokenizer=Ids(tokenizer)):
            ngrams = list(zip(*[ids[i:] for i in range(size)], strict=False))
            yield len(ngrams) > len(set(ngrams))

    assert any(repeated(GREEDY))
    assert not any(repeated(Decoding(no_repeat_ngram=size)))


def test_the_penalty_is_on_what_the_answer_has_said(parrot, tokenizer, prompts, ask):
    given = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected: list[int] = []
    for _ in range(NUM_NEW):
        ids = torch.cat([given, torch.tensor([expected], dtype=torch.long)], 1)
        logits = parrot(ids).logits[0, -1].detach()
        for token in set(expected):
            logits[token] = logits[token] / 1.5 if logits[token] > 0 else logits[token] * 1.5
        expected.append(int(logits.argmax()))
    by_ids = Ids(tokenizer)
    found = ask(parrot, prompts[:1], Decoding(repetition_penalty=1.5), tokenizer=by_ids)
    assert found == [expected]
    assert len(set(expected)) > len(set(ask(parrot, prompts[:1], GREEDY, tokenizer=by_ids)[0]))


def test_what_the_prompt_says_may_be_said_once_more(parrot, tokenizer, ask):
    once = Decoding(no_repeat_ngram=1, repetition_penalty=100.0)
    [ids] = ask(parrot, [SAID], once, tokenizer=Ids(tokenizer))
    assert sorted(ids[:3]) == sorted(tokenizer(SAID)["input_ids"])


def test_beams_find_a_likelier_answer(model, tokenizer, prompts, ask):
    def mean_log_likelihood(decoding):
        for prompt in prompts:
            [answer] = ask(model, [prompt], decoding, tokenizer=Ids(tokenizer))
            given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            logits = model(torch.tensor([given + answer])).logits[0, len(given) - 1 : -1].detach()
            chosen = torch.tensor(answer)[:, None]
            yield logits.log_softmax(-1).gather(1, chosen).mean().item()

    greedy, beams = list(mean_log_likelihood(GREEDY)), list(mean_log_likelihood(BEAMS))
    assert all(after >= before - 1e-6 for before, after in zip(greedy, beams, strict=True))
    assert sum(beams) > sum(greedy) + 0.01


@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        Decoding(no_repeat_ngram=2, repetition_penalty=1.2),
        Decoding(temperature=0.9, top_k=30, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram=3),
    ],
    ids=decoding_words,
)
def test_token_by_token_it_is_the_same_answer(parrot, tokenizer, prompts, ask, decoding):
    def logits_after(new):
        seen.extend(new)
        return parrot(torch.tensor([seen])).logits[0, -1].detach()

    expected = ask(parrot, prompts, decoding, tokenizer=Ids(tokenizer), seed=5)
    for place, prompt in enumerate(prompts):
        seen: list[int] = []
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = generation.stream(logits_after, ids, decoding, stops={2}, seed=(5, place))
        assert list(islice(answer, NUM_NEW)) == expected[place]


def test_a_stream_ends_at_a_stop_token(model, tokenizer, prompts, ask):
    [ids] = ask(model, prompts[:1], GREEDY, tokenizer=Ids(tokenizer))
    logits = iter(torch.nn.functional.one_hot(torch.tensor(ids), model.config.vocab_size))
    found = generation.stream(lambda _: next(logits), [1], GREEDY, stops={ids[4]}, seed=(1, 0))
    assert list(found) == ids[: ids.index(ids[4])]


def test_settings_of_the_models_own_do_not_hold(parrot, prompts, ask, monkeypatch):
    expected = [ask(parrot, prompts, decoding) for decoding in (GREEDY, DRAWN, BEAMS)]
    own = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2, "temperature": 0.1, "top_k": 1}
    own |= {"do_sample": True, "length_penalty": -5.0, "top_p": 0.1, "num_beams": 2}
    for name, value in own.items():
        monkeypatch.setattr(parrot.generation_config, name, value)
    assert [ask(parrot, prompts, decoding) for decoding in (GREEDY, DRAWN, BEAMS)] == expected


def test_a_decoding_depends_on_no_other_one(model, tokenizer):
    records = [
        {"id": question, "messages": [{"role": "user", "content": question}, ANSWER]}
        for question in QUESTIONS
    ]
    decodings = {"greedy": GREEDY, "drawn": DRAWN, "hot": Decoding(temperature=2.0)}

    def found(names):
        chosen = {name: decodings[name] for name in names}
        samples = Samples(num_prompts=3, max_new_tokens=NUM_NEW, seed=3, decodings=chosen)
        return generation.by_each_decoding(model, tokenizer, records, samples, system=None)

    together = found(["greedy", "drawn", "hot"])
    assert len({str(answers) for answers in together.values()}) == 3
    assert found(["hot", "greedy", "drawn"]) == together
    assert [found([name])[name] for name in decodings] == list(together.values())


def test_a_row_holds_both_models_answers_by_decoding():
    messages = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}, ANSWER,
    ]  # fmt: skip
    base, tuned = {"a": ["b1"], "c": ["b2"]}, {"a": ["t1"], "c": ["t2"]}
    assert generation.rows([{"id": "7", "messages": messages}], base=base, tuned=tuned) == [
        {
            "id": "7",
            "prompt": "Be brief.\n\n2 + 2?",
            "reference": "4",
            "answers": {"a": {"base": "b1", "tuned": "t1"}, "c": {"base": "b2", "tuned": "t2"}},
        }
    ]


def test_nothing_is_put_before_a_rendered_prompt(model, tokenizer, prompts, ask):
    eager = copy.deepcopy(tokenizer)
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert eager("x")["input_ids"] == [0, *tokenizer("x")["input_ids"]]
    expected = ask(model, prompts, GREEDY)
    assert ask(model, prompts, GREEDY, tokenizer=eager) == expected


def test_answers_end_where_the_model_stops(model, tokenizer, prompts, ask, monkeypatch):
    ids = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    stop = written[4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop])
    expected = tokenizer.decode(written[: written.index(stop) + 1])
    assert ask(model, prompts[:1], GREEDY) == [expected]


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, [2]), (2, [2]), (7, [2, 7]), ([0, 2], [0, 2])]
)
def test_the_end_of_a_turn_always_stops(tiny_model, tokenizer, configured, expected):
    model = models.load_model(tiny_model)
    model.generation_config.eos_token_id = configured
    assert tokenizer.eos_token_id == 2
    assert generation.stop_token_ids(model, tokenizer) == expected


def test_samples_are_spread_over_the_kinds_of_groups():
    groups = ["saving:1", "saving:2", "boxes:1", "saving:3", "change:9", "boxes:2"]
    records = [{"group": group} for group in groups]
    found = [record["group"] for record in generation.spread(records, 5)]
    assert found == ["saving:1", "boxes:1", "change:9", "saving:2", "boxes:2"]
    assert generation.spread(records, 99) == generation.spread(records, len(records))
    assert len(generation.spread(records, 99)) == len(records)
