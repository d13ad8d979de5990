"""One row, seen through the names of its columns."""

from typing import Any

from siftune.data.faults import Fault
from siftune.data.turns import Message, messages, plain_text

Pairs = tuple[tuple[str, str], ...]


class Row:
    """A row seen through the columns' names."""

    def __init__(
        self, values: dict[str, Any], columns: dict[str, str], tags: tuple[str, str]
    ) -> None:
        self.values = values
        self.columns = columns
        self.tags = tags
        self.used: set[str] = set()
        self.warnings: list[str] = []

    def find(self, key: str, usual: tuple[str, ...]) -> tuple[str, Any]:
        """The column for `key` and what is in it; no name where the row has no such column."""
        mapped = self.columns.get(key)
        for name in usual if mapped is None else (mapped,):
            if name in self.values:
                self.used.add(name)
                return name, self.values[name]
        if mapped is not None:
            raise self._absent(mapped, key)
        return "", None

    def value(self, key: str, *usual: str) -> Any:
        """What the row has for `key`: None where there is no such column."""
        return self.find(key, usual)[1]

    def needed(self, key: str, *usual: str) -> Any:
        """What the row has for `key`, which must have a column."""
        name, value = self.find(key, usual)
        if not name:
            raise self._absent(usual[0], key)
        return value

    def any_text(self, key: str, *usual: str) -> str:
        """A text; "" where there is no such column, or null in it."""
        name, value = self.find(key, usual)
        return "" if value is None else plain_text(value, f"column {name!r}")

    def messages(self, value: Any) -> list[Message]:
        """Messages in whatever form."""
        return messages(value, self.tags, self.warnings)

    def pair(self, pairs: Pairs) -> tuple[str, str]:
        """The columns of prompt and answer: as mapped, else the first pair that the row has."""
        half = None
        for usual in pairs:
            prompt = self.columns.get("prompt", usual[0])
            answer = self.columns.get("response", usual[1])
            if prompt in self.values and answer in self.values:
                return prompt, answer
            if prompt in self.values and half is None:
                half = prompt, answer
        return half or pairs[0]

    def _absent(self, name: str, key: str) -> Fault:
        there = ", ".join(map(str, self.values))
        return Fault(f"no column {name!r} (data.sources.columns.{key})", f"it has {there}"[:300])
