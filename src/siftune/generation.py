"""Answers to read: which prompts, and how one model answers them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from siftune.chat import conversation
from siftune.data import kinds
from siftune.sections import Decoding, Samples

BATCH = 16  # prompts that are answered at once; changes no answer

Answers = dict[str, list[str]]  # by the decoding's name, one for each prompt


def spread(records: Iterable[dict[str, Any]], num_records: int) -> list[dict[str, Any]]:
    """The first record of each kind, then the second of each, and so on, up to `num_records`.

    All are conversations that end with an answer; plain text asks nothing, and is left out. The
    kind is what stands before the colon of a record's group: a template in the embedded data.
    """
    seen: Counter[str] = Counter()
    ranked = []
    for record in filter(None, map(kinds.as_conversation, records)):
        kind = record["group"].partition(":")[0]
        ranked.append((seen[kind], record))
        seen[kind] += 1
    return [record for _, record in sorted(ranked, key=lambda pair: pair[0])][:num_records]


def by_each_decoding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: list[dict[str, Any]],
    samples: Samples,
    *,
    system: str | None,
) -> Answers:
    """What the model answers to the records' prompts, by each of `samples.decodings`."""
    prompts = [
        conversation.prompt_text(tokenizer, record["messages"], system, tools=record.get("tools"))
        for record in records
    ]
    return {
        name: answers(
            model,
            tokenizer,
            prompts,
            decoding,
            max_new_tokens=samples.max_new_tokens,
            seed=samples.seed,
        )
        for name, decoding in samples.decodings.items()
    }


def rows(records: list[dict[str, Any]], *, base: Answers, tuned: Answers) -> list[dict[str, Any]]:
    """A row a record: id, prompt, reference, and both models' answers by decoding."""
    return [
        {
            "id": record["id"],
            "prompt": "\n\n".join(turn["content"] for turn in record["messages"][:-1]),
            "reference": record["messages"][-1]["content"],
            "answers": {
                name: {"base": base[name][number], "tuned": tuned[name][number]} for name in base
            },
        }
        for number, record in enumerate(records)
    ]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    decoding: Decoding,
    *,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """What the model answers to each rendered prompt, without special tokens.

    An answer depends on its prompt, the decoding, the seed and its place, and on no other answer.
    """
    found: list[str] = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(
            prompts[start : start + BATCH],
            padding=True,
            padding_side="left",  # answers continue the prompts' last tokens
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
        ).to(model.device)
        num_rows, prompt_length = batch["input_ids"].shape
        places = range(start, start + num_rows)
        with torch.inference_mode():
            output = cast(Any, model).generate(
                **batch,
                max_new_tokens=max_new_tokens,
                eos_token_id=stop_token_ids(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                num_beams=decoding.num_beams,
                logits_processor=_rules(
                    decoding, prompt_length, [(seed, place) for place in places], model.device
                ),
                # All is in the rules. Not said here, the model's own settings would hold.
                do_sample=False,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                length_penalty=1.0,
                early_stopping=False,
            )
        found += tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)
    return found


def stream(
    logits_after: Callable[[Sequence[int]], Tensor],
    prompt: Sequence[int],
    decoding: Decoding,
    *,
    stops: set[int],
    seed: tuple[int, ...],
) -> Iterator[int]:
    """The answer's tokens one by one, as `answers` would choose them, without the one that stops.

    Args:
        logits_after: takes the tokens that follow those it has had, and gives the logits of the
            next one, (vocabulary,).
        seed: `(seed, place)` gives what `answers` draws at that place.
    """
    logits = logits_after(prompt).float()
    rules = _rules(decoding, 0, [seed], logits.device)
    answer: list[int] = []
    while True:
        ids = torch.tensor([answer], dtype=torch.long, device=logits.device)
        token = int(rules(ids, logits[None]).argmax())
        if token in stops:
            return
        yield token
        answer.append(token)
        logits = logits_after([token]).float()


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of a turn, and whatever else the model's own configuration stops at."""
    configured = model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *stops} - {None})


def _rules(
    decoding: Decoding,
    prompt_length: int,
    seeds: Sequence[tuple[int, ...]],
    device: torch.device,
) -> LogitsProcessorList:
    """What changes the logits (rows, vocabulary) so that the likeliest token is the one to take.

    Repetitions are looked for in the answer alone: a prompt holds the stop token, which must stay
    as likely as it is, and beside longer ones it holds padding.
    """
    rules = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        rules.append(
            RepetitionPenaltyLogitsProcessor(
                decoding.repetition_penalty, prompt_ignore_length=prompt_length
            )
        )
    if decoding.no_repeat_ngram:
        rules.append(_NoRepeatInAnswer(decoding.no_repeat_ngram, prompt_length))
    if decoding.temperature > 0:
        rules.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            rules.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            rules.append(TopPLogitsWarper(decoding.top_p))
        rules.append(_Draw(seeds, device))
    return rules


class _NoRepeatInAnswer(NoRepeatNGramLogitsProcessor):
    """As it is, but what the prompt says may be said once more."""

    def __init__(self, ngram_size: int, prompt_length: int) -> None:
        super().__init__(ngram_size)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        found: Tensor = super().__call__(input_ids[:, self._prompt_length :], scores)
        return found


class _Draw(LogitsProcessor):
    """Makes the likeliest token one that is drawn, from dice of each row's own.

    The Gumbel-max trick (Yellott 1977): the largest of logits + Gumbel noise is a draw from their
    softmax.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self._dice = []
        for seed in seeds:
            mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
            self._dice.append(torch.Generator(device).manual_seed(mixed))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores)
        for row, dice in zip(noise, self._dice, strict=True):
            row.exponential_(generator=dice)
        return scores - noise.log()
