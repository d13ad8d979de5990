"""Two ways to read a GGUF file back: llama.cpp itself, or transformers where it is not built."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from siftune import llama_cpp, models
from siftune.gguf_tokenizer import Header, load_gguf_tokenizer


class LlamaCppReader:
    """llama.cpp's tokenizer and logits, on the CPU."""

    name = "llama.cpp"

    def __init__(self, header: Header, *, context: int) -> None:
        from llama_cpp import Llama

        self.header = header
        # A Slurm job may have fewer cores than the machine.
        cores = len(os.sched_getaffinity(0))
        self._model = Llama(
            str(header.path),
            n_ctx=context,
            logits_all=True,
            n_threads=cores,
            n_threads_batch=cores,
            verbose=False,
        )

    def tokens(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised, none are added."""
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def logits(self, ids: list[int]) -> torch.Tensor:
        """(len(ids), vocabulary), fp32."""
        self._model.reset()
        self._model.eval(ids)
        return torch.from_numpy(self._model.scores[: len(ids)].copy())

    def close(self) -> None:
        """Free the memory; left to the interpreter's end, the library complains."""
        self._model.close()


class TransformersReader:
    """The weights as transformers dequantises them, and the tokenizer in the file's header."""

    name = "transformers"

    def __init__(self, header: Header) -> None:
        self.header = header
        self._tokenizer = load_gguf_tokenizer(header)
        self._model = models.load_gguf(header, torch.float32).eval()

    def tokens(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised, none are added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(len(ids), vocabulary), fp32."""
        logits: torch.Tensor = self._model(torch.tensor([ids])).logits[0]
        return logits


Reader = LlamaCppReader | TransformersReader


@contextmanager
def open_gguf(path: Path, *, context: int) -> Iterator[Reader]:
    """llama.cpp's own reading when its library is installed, else transformers'.

    Args:
        path: A GGUF file that we wrote (the gguf package can hang on a malformed one).
        context: The longest sequence in tokens.
    """
    header = Header(path)
    if not llama_cpp.has_library():
        yield TransformersReader(header)
        return
    reader = LlamaCppReader(header, context=context)
    try:
        yield reader
    finally:
        reader.close()
