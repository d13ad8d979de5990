"""Long work shows how far it is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TypeVar

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 20


def shown(
    items: Iterable[Item], what: str, *, size: Callable[[Item], int], total: int | None = None
) -> Iterator[Item]:
    """The items themselves, while the sum of their sizes is shown, with rate and time left.

    Args:
        what: names the work, in the plural of what is counted: "rows checked".
        total: of the sizes, where it is known.
    """
    # A bundle is verified where no package is installed.
    if sys.stderr.isatty() and find_spec("tqdm"):
        from tqdm import tqdm

        with tqdm(desc=what, total=total, unit="", unit_scale=True) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(_line(what, done, total, last - start), flush=True)


def _line(what: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds
    if total is None:
        return f"{done:,} {what}  {rate:,.0f}/s"
    return f"{done:,} of {total:,} {what}  {rate:,.0f}/s  left {(total - done) / rate:,.0f} s"
