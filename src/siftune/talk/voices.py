"""Weights that answer token by token: by transformers, or a GGUF file by llama.cpp."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from siftune import generation, gguf_tokenizer, llama_cpp, merging, models
from siftune.stage import UserError
from siftune.talk.weights import BASE, MERGED, Weights
from siftune.throughput import onednn
from siftune.training import phases

LONGEST_CONTEXT = 8192  # of a GGUF file: its memory is taken at once


class ModelVoice:
    """A model of transformers, with a cache of what it has read."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._cache: Any = None
        self.context: int = model.config.get_text_config().max_position_embeddings
        self.stops = set(generation.stop_token_ids(model, tokenizer))

    def tokens(self, text: str) -> list[int]:
        """Token ids of rendered text; none are added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def forget(self) -> None:
        """Begin a new text."""
        self._cache = None

    @torch.inference_mode()
    def logits_after(self, ids: Sequence[int]) -> Tensor:
        """(vocabulary,) logits of the token after `ids`, which follow what was read before."""
        read = self._model(
            input_ids=torch.tensor([list(ids)], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = read.past_key_values
        logits: Tensor = read.logits[0, -1]
        return logits


class LlamaCppVoice:
    """A GGUF file in llama.cpp's library, on the CPU; its methods are those of ModelVoice."""

    def __init__(self, path: Path, *, context: int, stops: set[int]) -> None:
        import llama_cpp as library  # llama.cpp's own package, not our module of that name

        # A Slurm job may have fewer cores than the machine.
        cores = len(os.sched_getaffinity(0))
        self._library = library
        self.context, self.stops = min(context, LONGEST_CONTEXT), stops
        self._model = library.Llama(
            str(path), n_ctx=self.context, n_threads=cores, n_threads_batch=cores, verbose=False
        )

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def forget(self) -> None:
        self._model.reset()

    def logits_after(self, ids: Sequence[int]) -> Tensor:
        self._model.eval(ids)
        last = self._library.llama_get_logits_ith(self._model.ctx, -1)
        found = np.ctypeslib.as_array(last, shape=(self._model.n_vocab(),))
        return torch.from_numpy(found.copy())


Voice = ModelVoice | LlamaCppVoice


def of(weights: Weights, tokenizer: PreTrainedTokenizerBase) -> Voice:
    """Load the weights; a GGUF file by transformers where llama.cpp's library is not installed.

    Raises:
        UserError: they do not belong to the base and the tokenizer that are here, are broken, or
            were dropped meanwhile.
    """
    if weights.path.suffix == ".gguf":
        return _of_gguf(weights.path, tokenizer)
    return ModelVoice(load(weights, tokenizer), tokenizer)


def load(weights: Weights, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The weights, but of no GGUF file, as a model; errors as for `of`."""
    base = models.base_folder()
    if weights.path == BASE:
        return onednn.used_in(models.load_model(base, num_tokens=len(tokenizer)))
    if weights.path == MERGED:
        models.load_tokenizer(MERGED)  # which refuses another chat template
        return onednn.used_in(models.load_model(MERGED))
    weights.refuse_strange()
    with weights.while_read():
        weights.refuse_broken()
        trained = [*phases.before(weights.phase), weights.path]
        return merging.load_trained(base, trained, num_tokens=len(tokenizer))


def _of_gguf(path: Path, tokenizer: PreTrainedTokenizerBase) -> Voice:
    header = gguf_tokenizer.Header(path)
    if gguf_tokenizer.metadata(header, "tokenizer.chat_template") != tokenizer.chat_template:
        raise UserError(
            f"{path} has another chat template than {models.TOKENIZER}: it was made from an "
            "earlier model. Run `dvc repro to_gguf` to make it anew."
        )
    if not llama_cpp.has_library():
        model = models.load_gguf(header, models.device_dtype()).to(models.device()).eval()
        return ModelVoice(onednn.used_in(model), tokenizer)
    architecture = gguf_tokenizer.metadata(header, "general.architecture")
    roles = [f"tokenizer.ggml.{role}_token_id" for role in ("eos", "eot", "eom")]
    stops = {tokenizer.eos_token_id, *(gguf_tokenizer.metadata(header, role) for role in roles)}
    return LlamaCppVoice(
        path,
        context=gguf_tokenizer.metadata(header, f"{architecture}.context_length"),
        stops=stops - {None},
    )
