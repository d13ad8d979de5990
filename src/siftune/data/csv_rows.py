"""Rows of CSV and TSV files, from a stream of bytes; every value is text."""

import csv
import io
from collections.abc import Iterator

from siftune.data.faults import Fault
from siftune.data.strict_json import LIMIT
from siftune.data.text_rows import TOO_LONG, Found, begin, decode, lines, not_utf8
from siftune.stage import UserError


def comma_separated(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """CSV as RFC 4180 has it, with a header."""
    return _table(file, name, ",")


def tab_separated(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """CSV with tabs."""
    return _table(file, name, "\t")


def _table(file: io.BufferedReader, name: str, delimiter: str) -> Iterator[Found]:
    records = _records(_CsvLines(file), delimiter)
    number, header, _ = next(records, (0, [], ""))
    if isinstance(header, Fault):
        raise UserError(f"{name}:{number}: the header cannot be read: {header}.")
    header = [cell.strip() for cell in header]
    twice = {cell for cell in header if header.count(cell) > 1}
    if twice:
        raise UserError(
            f"{name}:{number}: the header has a column twice: {', '.join(sorted(twice))!r}. "
            "Give each column its own name."
        )
    if len(header) == 1 and any(mark in header[0] for mark in ",;|\t"):
        raise UserError(
            f"{name}:{number}: one column, {header[0]!r}. Columns are separated by commas in .csv "
            "and by tabs in .tsv: save it like that, or name the file so."
        )
    for number, cells, text in records:
        if isinstance(cells, list) and len(cells) != len(header):
            cells = Fault("wrong number of columns", f"{len(cells)}, the header has {len(header)}")
        values = cells if isinstance(cells, Fault) else dict(zip(header, cells, strict=True))
        yield Found(f":{number}", values, text)


def _records(source: "_CsvLines", delimiter: str) -> Iterator[tuple[int, list[str] | Fault, str]]:
    """Line, cells and first text of each record; after a faulty one, its next line is read anew.

    A quote that is never closed would otherwise swallow all rows up to the end of the file.
    """
    csv.field_size_limit(LIMIT)  # Python's own limit is 128 kB
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.begin_record()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            source.go_back()
            too_long = len(source.record[0]) > LIMIT
            fault = Fault(TOO_LONG) if too_long else Fault("broken quoting", str(error))
            yield source.number, fault, begin(source.record[0])
        else:
            if len(cells) > 1 or "".join(cells).strip():
                yield source.number, source.fault or cells, begin(source.record[0])


class _CsvLines:
    """Lines of a CSV file as text; those of the record being read are kept, to go back to."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._lines = lines(file)
        self._again: list[bytes] = []  # the next one is the last
        self._size = 0
        self.record: list[bytes] = []
        self.number = 1
        self.fault: Fault | None = None

    def begin_record(self) -> None:
        self.number += len(self.record)
        self.record = []
        self._size = 0
        self.fault = None

    def go_back(self) -> None:
        self._again += reversed(self.record[1:])
        del self.record[1:]

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.record.append(line)
        self._size += len(line)
        if self._size > LIMIT:
            raise csv.Error(f"a quoted field has no end within {LIMIT >> 20} MiB")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.fault = not_utf8(error)
            return decode(line)
