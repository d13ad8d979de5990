"""JSON as the standard has it: what Python's own parser lets pass, or means two things, is a fault.

That is NaN, a key twice in one object, half a surrogate pair, and nesting that other code could
not walk through. orjson is four times as fast, but sees no key twice and rounds large integers.
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any

from siftune.data.faults import Fault
from siftune.stage import UserError

MAX_DEPTH = 100
LIMIT = 64 * 2**20  # bytes of a line, characters of a row
_CHUNK = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class Parser:
    """Parses JSON text. Not for two threads at a time."""

    def __init__(self) -> None:
        self._odd: list[Fault] = []
        decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float
        )
        self._scan = decoder.scan_once  # type: ignore[attr-defined]

    def parse(self, text: str) -> Any:
        """The one value that `text` is.

        Raises:
            Fault: it is none, more than one, or one that is not strict JSON.
        """
        text = text.strip()
        try:
            value, end, fault = self.value_at(text, 0)
        except json.JSONDecodeError as error:
            reason = "NUL character" if "\0" in text else "not JSON"
            raise Fault(reason, f"{error.msg}, character {error.pos + 1}") from None
        if end < len(text):
            raise self._more(text, end)
        if fault is not None:
            raise fault
        return value

    def value_at(self, text: str, start: int) -> tuple[Any, int, Fault | None]:
        """The value that begins at `start`, its end, and what makes it unfit in spite of that.

        Raises:
            json.JSONDecodeError: there is none, or it has no end.
            Fault: its end cannot be found.
        """
        self._odd.clear()
        try:
            value, end = self._scan(text, start)
        except StopIteration as stop:
            raise json.JSONDecodeError("Expecting value", text, stop.value) from None
        except RecursionError:
            raise Fault("nested too deeply", f"over {MAX_DEPTH} levels") from None
        except json.JSONDecodeError:
            raise
        except ValueError as error:  # Python's own limit
            raise Fault("a number too long", str(error).split(";")[0]) from None
        return value, end, self._unfit(value, text, start, end)

    def is_whole(self, text: str) -> bool:
        """Whether `text` is one JSON value, fit or not."""
        try:
            return self.value_at(text, 0)[1] == len(text)
        except ValueError:
            return False

    def _unfit(self, value: Any, text: str, start: int, end: int) -> Fault | None:
        if self._odd:
            return self._odd[0]
        num_open = text.count("{", start, end) + text.count("[", start, end)
        if num_open > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            return Fault("nested too deeply", f"over {MAX_DEPTH} levels")
        if text.find("\\u", start, end) >= 0 and _HALF_PAIR.search(text, start, end):
            found = surrogate(value)
            if found:
                return Fault("lone surrogate", f"\\u{ord(found):04x}")
        return None

    def _more(self, text: str, end: int) -> Fault:
        rest = text[end:].lstrip()
        if self.is_whole(rest) or rest[0] in "{[":
            return Fault("several JSON values on one line", f"the second at character {end + 1}")
        hint = " (a line of a JSON array? then name the file .json)" if rest == "," else ""
        return Fault("not JSON", f"more after its end, character {end + 1}{hint}")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            self._odd.append(Fault("key twice in one object", repr(twice)[:80]))
        return values

    def _constant(self, name: str) -> None:
        self._odd.append(Fault("NaN or Infinity", name))

    def _float(self, text: str) -> float:
        number = float(text)
        if math.isinf(number):
            self._odd.append(Fault("NaN or Infinity", f"{text[:40]} is beyond what a float holds"))
        return number


class Stream:
    """JSON text read from a file as it is asked for, so that the file may be larger than memory."""

    def __init__(self, chunks: Iterator[bytes], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._parser = Parser()
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0
        self._lines = 0  # before self._text
        self._column = 0  # characters of its first line before it
        self._ended = False
        self._not_utf8 = False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def skip(self, wanted: str) -> str:
        """Go past the next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            problem = f"{found!r} in place" if found else "the file ends in place"
            raise self._broken(f"{problem} of {' or '.join(map(repr, wanted))}", self._at)
        self._at += 1
        return found

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            raise self._broken("a second value follows the first", self._at)

    def value(self) -> tuple[Any, str, Fault | None]:
        """The next value, its text's first 200 characters, and what makes it unfit."""
        self.peek()
        while True:
            try:
                value, end, fault = self._parser.value_at(self._text, self._at)
                if end < len(self._text) or self._ended:
                    break
            except json.JSONDecodeError as error:
                # A word or an escape that is cut has its fault in the last characters.
                is_cut = "Unterminated" in error.msg or error.pos > len(self._text) - 10
                if self._ended or not is_cut:
                    raise self._broken(error.msg, error.pos) from None
                if len(self._text) - self._at > LIMIT:
                    too_long = f"a value of over {LIMIT >> 20} MiB"
                    raise self._broken(too_long, self._at) from None
            except Fault as endless:
                raise self._broken(str(endless), self._at) from None
            self._read()  # only its end is not there yet
        if self._not_utf8 and fault is None and surrogate(value):
            fault = Fault("not UTF-8")
        text = self._text[self._at : min(end, self._at + 200)]
        self._at = end
        return value, text.encode(errors="surrogateescape").decode(errors="replace"), fault

    def _read(self) -> bool:
        """Read on, at least as much as is waiting; False at the end of the file."""
        self._lines, self._column = self._place(self._at)
        parts = [self._text[self._at :]]
        wanted = max(_CHUNK, len(parts[0]))
        self._at = 0
        while wanted > 0 and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            parts.append(self._decoder.decode(chunk or b"", final=self._ended))
            self._not_utf8 = self._not_utf8 or bool(surrogate(parts[-1]))
            wanted -= len(parts[-1])
        self._text = "".join(parts)
        return len(self._text) > len(parts[0])

    def _place(self, at: int) -> tuple[int, int]:
        """Lines before a character of self._text, and characters before it in its line."""
        newline = self._text.rfind("\n", 0, at)
        column = at - newline - 1 if newline >= 0 else self._column + at
        return self._lines + self._text.count("\n", 0, at), column

    def _broken(self, problem: str, at: int) -> UserError:
        line, column = self._place(at)
        cut = " (the file ends there)" if at >= len(self._text) else ""
        return UserError(
            f"{self._name}:{line + 1}: not JSON: {problem}, column {column + 1}{cut}. What follows "
            "cannot be read either: mend that place, or write one JSON object a line (.jsonl), "
            "where a bad line spoils only itself."
        )


def surrogate(value: Any) -> str:
    """Half of a surrogate pair without its other half, in any text of a value; else ""."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def _depth(value: Any) -> int:
    depth = 0
    level = [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    return depth
