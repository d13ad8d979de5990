"""What the report shows of a reinforced model beside its curves: completions to read."""

from pathlib import Path
from typing import Any

from siftune.rewards import completions

NUM_EVALUATIONS = 5


def evaluations(path: Path = completions.PUBLISHED) -> dict[int, list[dict[str, Any]]]:
    """Step → completions, of some evaluations from the first to the last."""
    found = completions.read(path)
    return {step: found[step] for step in completions.spread(list(found), NUM_EVALUATIONS)}
