"""Token ids as text while they come: no half of a character is shown."""

import re
from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are not a whole character
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey


class Spelling:
    """The text of one answer, token by token.

    Decoded is a window that begins one piece earlier: some decoders strip the blank at the
    beginning of a text (as in vLLM's and TGI's detokenisers).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window, self._shown = 0, 0

    def add(self, token: int) -> str:
        """What the token adds to the text; nothing while a character waits for its other bytes."""
        self._ids.append(token)
        text = self._new()
        if text.endswith(BROKEN):
            return ""
        self._window, self._shown = self._shown, len(self._ids)
        return harmless(text)

    def rest(self) -> str:
        """What is left at the end: characters whose bytes never came, each as one sign."""
        return harmless(self._new())

    def _new(self) -> str:
        before = self._decode(self._ids[self._window : self._shown])
        return self._decode(self._ids[self._window :]).removeprefix(before)


def harmless(text: str) -> str:
    """Text without the control characters that a terminal obeys."""
    return _CONTROL.sub(BROKEN, text.replace("\r", ""))
