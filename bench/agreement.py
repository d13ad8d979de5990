"""Do the contenders make the same tokens, and train the same of them?"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

IGNORED = -100  # the label that no loss looks at

Encoded = dict[tuple[int, ...], list[int]]  # token ids → labels


def read(folder: Path) -> Encoded:
    """What a contender showed."""
    rows = json.loads((folder / "encoded.json").read_text())
    return {tuple(ids): labels for ids, labels in rows}


def differences(first: Encoded, other: Encoded, decode: Callable[[list[int]], str]) -> str:
    """One sentence on how `other` differs from `first`."""
    common = first.keys() & other.keys()
    trained: Counter[str] = Counter()
    for ids in common:
        for token, ours, theirs in zip(ids, first[ids], other[ids], strict=True):
            if ours != theirs:
                trained[("-" if theirs == IGNORED else "+") + repr(decode([token]))] += 1
    same = sum(first[ids] == other[ids] for ids in common)
    text = f"token ids equal in {len(common)} of {len(first)} rows, labels in {same}"
    found = ", ".join(f"{count} times {what}" for what, count in trained.most_common(3))
    return f"{text} (trained more +, less -: {found})" if found else text
