import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from siftune import generation, models
from siftune.chat import conversation
from siftune.sections import Samples

GREEDY = Samples(num_prompts=3, max_new_tokens=12, temperature=0.0, top_p=1.0, seed=1)
DRAWN = replace(GREEDY, temperature=1.0)
QUESTIONS = ["How much is 2 + 2?", "Ana has 34 apples and gives 3 to each of her 5 friends.", "Hi"]


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a random output head: with its own it repeats the last token."""
    model = models.load_model(tiny_model)
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [
        conversation.prompt_text(tokenizer, [{"role": "user", "content": q}]) for q in QUESTIONS
    ]


def test_an_answer_does_not_depend_on_its_neighbours(model, tokenizer, prompts):
    together = generation.answers(model, tokenizer, prompts, GREEDY)
    alone = [generation.answers(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    assert together == alone
    assert len(set(together)) == len(prompts)


def test_greedy_answers_are_the_likeliest_tokens(model, tokenizer, prompts):
    ids = tokenizer(prompts[1], add_special_tokens=False, return_tensors="pt")["input_ids"]
    for _ in range(GREEDY.max_new_tokens):
        likeliest = model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = likeliest.new_tensor([[*ids[0], *likeliest[0]]])
    expected = tokenizer.decode(ids[0, -GREEDY.max_new_tokens :], skip_special_tokens=True)
    assert generation.answers(model, tokenizer, prompts[1:2], GREEDY) == [expected]


def test_drawn_answers_come_from_the_seed(model, tokenizer, prompts):
    first = generation.answers(model, tokenizer, prompts, DRAWN)
    assert generation.answers(model, tokenizer, prompts, DRAWN) == first
    assert generation.answers(model, tokenizer, prompts, replace(DRAWN, seed=2)) != first
    greedy = generation.answers(model, tokenizer, prompts, GREEDY)
    assert first != greedy
    # So little of the probability that only the likeliest token is left.
    assert generation.answers(model, tokenizer, prompts, replace(DRAWN, top_p=1e-6)) == greedy


def test_every_token_can_be_drawn(model, tokenizer, prompts):
    hot = replace(DRAWN, temperature=1000.0, max_new_tokens=1)
    ids = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    likeliest = model(ids).logits[0, -1].topk(50).indices
    drawn = generation.answers(model, tokenizer, prompts[:1] * 8, hot)
    assert not set(drawn) <= {tokenizer.decode(token) for token in likeliest}


def test_nothing_is_put_before_a_rendered_prompt(model, tokenizer, prompts):
    eager = copy.deepcopy(tokenizer)
    eager.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert eager("x")["input_ids"] == [0, *tokenizer("x")["input_ids"]]
    expected = generation.answers(model, tokenizer, prompts, GREEDY)
    assert generation.answers(model, eager, prompts, GREEDY) == expected


def test_answers_end_where_the_model_stops(model, tokenizer, prompts, monkeypatch):
    ids = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    stop = written[4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [stop])
    expected = tokenizer.decode(written[: written.index(stop) + 1])
    assert generation.answers(model, tokenizer, prompts[:1], GREEDY) == [expected]


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
