"""Answers to read: which prompts, and how one model answers them."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from siftune.sections import Samples


def spread(records: Iterable[dict[str, Any]], num_records: int) -> list[dict[str, Any]]:
    """The first record of each kind, then the second of each, and so on, up to `num_records`.

    The kind is what stands before the colon of a record's group: a template in the embedded data.
    """
    seen: Counter[str] = Counter()
    ranked = []
    for record in records:
        kind = record["group"].partition(":")[0]
        ranked.append((seen[kind], record))
        seen[kind] += 1
    return [record for _, record in sorted(ranked, key=lambda pair: pair[0])][:num_records]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    decoding: Samples,
) -> list[str]:
    """What the model answers to each rendered prompt, without special tokens.

    Temperature 0 takes the likeliest token each time; else tokens are drawn from the seed.
    """
    batch = tokenizer(
        prompts,
        padding=True,
        padding_side="left",  # answers continue the prompts' last tokens
        add_special_tokens=False,  # the template has written them
        return_tensors="pt",
    ).to(model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if decoding.temperature > 0:
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
        sampling["top_k"] = 0  # transformers would keep only the 50 likeliest
    torch.manual_seed(decoding.seed)
    with torch.inference_mode():
        output = cast(Any, model).generate(
            **batch,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=stop_token_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    prompt_length = batch["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of a turn, and whatever else the model's own configuration stops at."""
    configured = model.generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *stops} - {None})
