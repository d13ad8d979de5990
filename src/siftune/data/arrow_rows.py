"""Rows of Parquet and Arrow files, with values that JSON can hold."""

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from siftune.data.faults import Fault
from siftune.data.text_rows import Found
from siftune.stage import UserError

_ROWS_AT_ONCE = 1024


def parquet(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """Rows of a Parquet file."""
    import pyarrow.parquet

    with (
        _explained(name, "Parquet"),
        pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table,
    ):
        batches = table.iter_batches(batch_size=_ROWS_AT_ONCE)
        yield from _rows(batches, table.schema_arrow, name)


def arrow(file: io.BufferedReader, name: str) -> Iterator[Found]:
    """Rows of an Arrow file, or of a stream of batches as `datasets` saves it."""
    import pyarrow

    if file.peek(6).startswith(b"ARROW1"):
        with _explained(name, "Arrow"), pyarrow.ipc.open_file(file) as table:
            batches = map(table.get_batch, range(table.num_record_batches))
            yield from _rows(map(_validated, batches), table.schema, name)
    else:
        with _explained(name, "Arrow"), pyarrow.ipc.open_stream(file) as stream:
            yield from _rows(map(_validated, stream), stream.schema, name)


@contextmanager
def _explained(name: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except UserError:
        raise
    # A damaged file may also ask for impossible memory, or name its columns in broken UTF-8.
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{name}: cannot be read as {kind}: {str(error) or 'it makes no sense'}. It may be cut "
            "off, or be another kind of file: fetch or write it again."
        ) from None


def _validated(batch: Any) -> Any:
    # Arrow reads its files as they are: a wrong offset would crash the process.
    batch.validate(full=True)
    return batch


def _rows(batches: Iterable[Any], schema: Any, name: str) -> Iterator[Found]:
    twice = {column for column in schema.names if schema.names.count(column) > 1}
    if twice:
        raise UserError(f"{name}: has a column twice: {', '.join(sorted(twice))!r}.")
    odd = [field.name for field in schema if not _is_plain(field.type)]
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for values in _values(batch.slice(start, _ROWS_AT_ONCE), odd):
                number += 1
                text = str(values.detail) if isinstance(values, Fault) else ""
                yield Found(f"#{number}", values, text)


def _values(batch: Any, odd: list[str]) -> Iterator[dict[str, Any] | Fault]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # one value of one row; which one?
        for index in range(batch.num_rows):
            yield _row(batch.slice(index, 1), odd)
        return
    for values in rows:
        yield _as_json(values, odd) if odd else values


def _row(batch: Any, odd: list[str]) -> dict[str, Any] | Fault:
    try:
        return _as_json(batch.to_pylist()[0], odd)
    except UnicodeDecodeError as error:
        return Fault("not UTF-8", str(error))
    except (ValueError, OverflowError) as error:
        return Fault("a value that Python cannot hold", str(error))


def _as_json(values: dict[str, Any], odd: list[str]) -> dict[str, Any]:
    return values | {column: _plain(values[column]) for column in odd}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


def _is_plain(kind: Any) -> bool:
    """Whether all values of an Arrow type are such as JSON holds: no dates, bytes or NaN."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    return any(test(kind) for test in tests) or types.is_null(kind)
