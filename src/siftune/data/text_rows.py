"""Rows of files that are text, from a stream of bytes: JSON lines, JSON, plain text.

A reader yields where a row is (":12" is a line, "#12" a row), and its values or what is wrong.
"""

import io
import itertools
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

from siftune.data.faults import Fault
from siftune.data.strict_json import LIMIT, Parser, Stream
from siftune.stage import UserError

TOO_LONG = f"line longer than {LIMIT >> 20} MiB"
WHOLE_TEXT = 1_000_000  # bytes; a longer .txt becomes several rows
PASSAGE = 100_000  # bytes of paragraphs in one of these rows
_CHUNK = 2**20


Element = tuple[Any, str, Fault | None]  # value, how its text begins, what makes it unfit


class Found(NamedTuple):
    """One row; `text` is how it begins where it is faulty."""

    at: str
    values: dict[str, Any] | Fault
    text: str = ""


def json_lines(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """One JSON object a line."""
    return objects(lines(file))


def json_rows(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """An array of objects, an object with one list of objects, or JSON lines after all."""
    num_blank = _skip_blank(file)
    first = file.readline(_CHUNK)
    if first.startswith(b"{") and Parser().is_whole(decode(first).strip()):
        between = _skip_blank(file)
        if _next_byte(file):
            blank = [b"\n"] * between
            return objects(itertools.chain([first], blank, lines(file)), start=num_blank + 1)
    chunks = itertools.chain([b"\n" * num_blank, first], iter(lambda: file.read(_CHUNK), b""))
    return _elements(Stream(chunks, name), name)


def passages(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """The whole text as one row, or a long one in paragraphs put together to `PASSAGE` bytes.

    Where no blank line comes for ten times that, a row ends with a line.
    """
    head = file.read(WHOLE_TEXT + 1)
    if len(head) <= WHOLE_TEXT:
        yield _passage([head], 1) or Found(":1", Fault("empty file"))
        return
    head += file.readline(LIMIT)
    waiting: list[bytes] = []
    size = 0
    for number, line in enumerate(itertools.chain(lines(io.BytesIO(head)), lines(file), [b""])):
        waiting.append(line)
        size += len(line)
        if not line or size >= 10 * PASSAGE or (size >= PASSAGE and line.isspace()):
            found = _passage(waiting, number - len(waiting) + 2)
            if found:
                yield found
            waiting, size = [], 0


def objects(numbered: Iterable[bytes], start: int = 1) -> Iterator[Found]:
    """The object on each line that is not blank; `start` is the number of the first line."""
    parser = Parser()
    for number, line in enumerate(numbered, start):
        if line.isspace():
            continue
        try:
            found = Found(f":{number}", _object(parser, line))
        except Fault as fault:
            found = Found(f":{number}", fault, begin(line))
        yield found


def _object(parser: Parser, line: bytes) -> dict[str, Any]:
    if len(line) > LIMIT:
        raise Fault(TOO_LONG)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    try:
        values = parser.parse(text)
    except Fault as fault:
        is_cut = text.startswith("{") and not text.endswith(("}", "\n"))
        if is_cut and fault.reason == "not JSON":
            raise Fault("truncated last line", fault.detail) from None
        raise
    if not isinstance(values, dict):
        raise Fault("not a JSON object", f"a {type(values).__name__}")
    return values


def _elements(stream: Stream, name: str) -> Iterator[Found]:
    first = stream.peek()
    if first == "[":
        yield from _numbered(_array(stream))
    elif first == "{":
        yield from _wrapped(stream, name)
    elif first:
        stream.skip("[{")
    stream.end()


def _array(stream: Stream) -> Iterator[Element]:
    stream.skip("[")
    if stream.peek() == "]":
        stream.skip("]")
        return
    yield stream.value()
    while stream.skip(",]") == ",":
        yield stream.value()


def _numbered(elements: Iterable[Element]) -> Iterator[Found]:
    for number, (value, text, fault) in enumerate(elements, start=1):
        if fault is None and not isinstance(value, dict):
            fault = Fault("not a JSON object", f"a {type(value).__name__}")
        yield Found(f"#{number}", fault or value, text)


def _wrapped(stream: Stream, name: str) -> Iterator[Found]:
    """The one list of objects in an object; without such a list, the object is itself a row."""
    values: dict[str, Any] = {}
    faults: list[Fault | None] = []
    rows = None
    for key, fault in _keys(stream):
        twice = Fault("key twice in one object", repr(key)[:80]) if key in values else None
        elements = _array(stream) if stream.peek() == "[" else None
        first = next(elements, None) if elements else stream.value()
        if elements and first and _is_row(first[0]):
            if rows is not None:
                raise UserError(
                    f"{name}: holds two lists of objects, {rows!r} and {key!r}. Which are the "
                    "rows? Please leave only these in the file."
                )
            rows = key
            yield from _numbered(itertools.chain([first], elements))
            continue
        items = [item for item in (first, *(elements or ())) if item is not None]
        values[key] = [value for value, _, _ in items] if elements else items[0][0]
        faults += [fault, twice, *(fault for _, _, fault in items)]
    if rows is None:
        fault = next((fault for fault in faults if fault), None)
        yield Found("#1", fault or values, str(values)[:200])


def _keys(stream: Stream) -> Iterator[tuple[str, Fault | None]]:
    stream.skip("{")
    if stream.peek() == "}":
        stream.skip("}")
        return
    while True:
        if stream.peek() != '"':
            stream.skip('"')
        key, _, fault = stream.value()
        stream.skip(":")
        yield key, fault
        if stream.skip(",}") == "}":
            return


def _is_row(value: Any) -> bool:
    """Whether a list that begins like this is one of rows, and not one row's messages."""
    return isinstance(value, dict) and not {"role", "from"} & value.keys()


def _passage(whole_lines: list[bytes], number: int) -> Found | None:
    text = b"".join(whole_lines)
    if not text.strip():
        return None
    try:
        if max(map(len, whole_lines)) > LIMIT:
            raise Fault(TOO_LONG)
        return Found(f":{number}", {"text": text.decode().replace("\r\n", "\n")})
    except UnicodeDecodeError as error:
        return Found(f":{number}", not_utf8(error), begin(text))
    except Fault as fault:
        return Found(f":{number}", fault, begin(text))


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long, only what shows that it is."""
    while line := file.readline(LIMIT + 1):
        if len(line) > LIMIT and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
        yield line


def _skip_blank(file: io.BufferedReader) -> int:
    """Go to the next byte that is no white space; how many lines lie before it."""
    num_lines = 0
    while (byte := _next_byte(file)).isspace():
        file.read(1)
        num_lines += byte == b"\n"
    return num_lines


def _next_byte(file: io.BufferedReader) -> bytes:
    return file.peek(1)[:1]


def decode(line: bytes) -> str:
    """Text in which bytes that are not UTF-8 stand as lone surrogates."""
    return line.decode(errors="surrogateescape")


def begin(line: bytes) -> str:
    """The first 200 characters."""
    return line[:800].decode(errors="replace")[:200]


def not_utf8(error: UnicodeDecodeError) -> Fault:
    """The fault of a line that does not decode."""
    return Fault("not UTF-8", f"byte 0x{error.object[error.start]:02x} at byte {error.start + 1}")
