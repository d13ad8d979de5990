"""The likeliest answers to many prompts; tokens that the prompts share are computed and kept once.

What a batch of prompts leaves in memory are keys and values: of the tokens that all of them begin
with one copy, of each prompt's own tokens and its answer's a row beside the others. The scores of
both are put together before the softmax, so nothing is approximated. A prompt whose answer is over
leaves the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from siftune.chat.masking import IGNORED
from siftune.throughput import attention, layout, loss, planner

NAME = "siftune_kept"
# Share of the rows. To move what is kept of the others costs as much as some steps of those that
# are over.
LEAVE = 1 / 8
_ROOM = 64  # tokens of answers for which there is room at once


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    is_over: Callable[[list[int]], bool],
) -> list[list[int]]:
    """After each prompt its likeliest next token, and so on, until the answer is over.

    Args:
        prompts: token ids, at least one each.
        is_over: is asked after each token with all of an answer's tokens.

    Returns:
        The answers' tokens, with the one that ended each.
    """
    found: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # of the batch
    logits, kept = read(model, prompts)
    with in_use(model):
        while True:
            tokens = logits.argmax(dim=-1)
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if row >= 0:
                    found[row].append(token)
            rows = [
                row if row >= 0 and len(found[row]) < max_new_tokens and not is_over(found[row])
                else -1
                for row in rows
            ]  # fmt: skip
            going = [place for place, row in enumerate(rows) if row >= 0]
            if not going:
                return found
            if len(going) <= (1 - LEAVE) * len(rows):
                kept.keep(going)
                tokens, rows = tokens[going], [rows[place] for place in going]
            logits = kept.after(model, tokens)


def read(model: Any, prompts: Sequence[list[int]]) -> tuple[Tensor, "Kept"]:
    """Logits [rows, vocabulary] after each prompt, and what is kept of it."""
    [pack] = planner.plan(prompts, sum(map(len, prompts)))
    ends = [[IGNORED] * len(prompt) + [0] for prompt in prompts]  # something is to come there
    laid = layout.lay_out(pack, prompts, ends).to(model.device)
    cache = DynamicCache()
    with attention.instead(model, attention.NAME):
        out = model(**loss.inputs(laid) | {"use_cache": True, "past_key_values": cache})
    return out.logits[0, laid.source_of[laid.row_of.argsort()]], Kept(pack, cache, model.device)


def in_use(model: Any) -> AbstractContextManager[None]:
    """Within, the model attends to what is kept: `Kept.after` needs that."""
    AttentionInterface.register(NAME, kept_attention)
    return attention.instead(model, NAME)


class Kept:
    """Keys and values in each layer."""

    def __init__(self, pack: planner.Pack, cache: DynamicCache, device: torch.device) -> None:
        first = pack.segments[0]
        self.num_shared = first.end if first.subtree_end == pack.num_tokens else 0
        own = [
            torch.from_numpy(places[self.num_shared :])
            for _, places in sorted(zip(pack.rows, pack.places, strict=True))
        ]
        self._lengths = torch.tensor([len(places) for places in own], device=device)  # [rows]
        places = torch.nn.utils.rnn.pad_sequence(own, batch_first=True).to(device)
        layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # [heads, N, width]
        self.shared = [[states[:, : self.num_shared] for states in both] for both in layers]
        self._own = [[states[:, places].transpose(0, 1) for states in both] for both in layers]
        self._masks: dict[int | None, Tensor] = {}

    def keep(self, places: list[int]) -> None:
        """Only the rows at these places."""
        self._lengths = self._lengths[places]
        self._own = [[states[places] for states in both] for both in self._own]

    def after(self, model: Any, tokens: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after one more token of each row, [rows], which is kept."""
        longest = int(self._lengths.max()) + 1
        if longest > self._own[0][0].shape[2]:
            self._own = [
                [functional.pad(states, (0, 0, 0, _ROOM)) for states in both] for both in self._own
            ]
        self._masks = {}
        positions = (self.num_shared + self._lengths)[:, None]
        out = model(input_ids=tokens[:, None], position_ids=positions, use_cache=False, kept=self)
        self._lengths = self._lengths + 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def own(self, layer: int, new: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Keys and values of the rows' own tokens, [rows, heads, longest, width], with new ones."""
        longest = int(self._lengths.max()) + 1
        rows = torch.arange(len(self._lengths), device=self._lengths.device)
        for states, one in zip(self._own[layer], new, strict=True):
            states[rows, :, self._lengths] = one[:, :, 0]
        return [states[:, :, :longest] for states in self._own[layer]]

    def seen(self, window: int | None) -> Tensor:
        """Which tokens the new one sees, [rows, 1, 1, shared + longest]: shared, then own."""
        if window not in self._masks:
            own = torch.arange(int(self._lengths.max()) + 1, device=self._lengths.device)
            shared = torch.arange(-self.num_shared, 0, device=own.device)
            distance = self._lengths[:, None] - torch.cat([shared, own])
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


def kept_attention(
    module: Any,
    query: Tensor,  # [rows, H, 1, D]
    key: Tensor,  # [rows, H / groups, 1, D]
    value: Tensor,
    _attention_mask: None,
    *,
    scaling: float,
    kept: Kept,
    dropout: float = 0.0,
    sliding_window: int | None = None,  # tokens that a token sees, itself included
    softcap: float | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one more token of each row: [rows, 1, H, D]."""
    assert dropout == 0.0
    keys, values = kept.own(module.layer_idx, (key, value))
    shared_keys, shared_values = kept.shared[module.layer_idx]
    num_rows, num_heads, _, width = query.shape
    grouped = query.view(num_rows, key.shape[1], -1, width)
    scores = torch.cat([_of_all(grouped, shared_keys.mT), grouped @ keys.mT], dim=-1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~kept.seen(sliding_window), -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    of_shared, of_own = weights[..., : kept.num_shared], weights[..., kept.num_shared :]
    found = _of_all(of_shared, shared_values) + of_own @ values
    return found.reshape(num_rows, 1, num_heads, width), None


def _of_all(rows: Tensor, shared: Tensor) -> Tensor:
    """[rows, heads, groups, I] times one [heads, I, J] for all rows, as one product a head."""
    num_rows, num_heads, groups, inner = rows.shape
    product = rows.transpose(0, 1).reshape(num_heads, num_rows * groups, inner) @ shared
    return product.view(num_heads, num_rows, groups, -1).transpose(0, 1)
