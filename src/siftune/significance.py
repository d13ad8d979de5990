"""Is the tuned model better than its base, or is that chance? Paired tests, item by item.

Right-or-wrong scores: McNemar's exact test, and Tango's score interval of the paired difference
(Statist. Med. 17, 1998). All other scores: the symmetric bootstrap-t of paired differences (Hall,
J. R. Statist. Soc. B 50, 1988); on skewed and on sparse differences it kept closer to the nominal
error than percentile and BCa bootstraps, sign flips and the t test.

The verdict follows p. The interval agrees with it at alpha = 0.05: the bootstrap's by construction;
Tango's is sometimes narrower than the exact test allows, and is then extended to 0.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from siftune.sections import Compare
from siftune.stage import UserError

Scores = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
Z = 1.959964  # two-sided LEVEL of the normal distribution
BLOCK = 2_000_000  # numbers that are resampled at once


def compare(
    base: Mapping[str, float],
    tuned: Mapping[str, float],
    settings: Compare,
    *,
    higher_is_better: bool = True,
) -> dict[str, Any]:
    """Compare the mean scores of two models on the same items, paired by item id.

    Returns:
        n, base, base_stderr, tuned, tuned_stderr, difference (tuned - base), ci95 (its interval), p
        (two-sided), verdict (better, same or worse) and test, for metrics/compare.json.

    Raises:
        UserError: the items are not the same, are fewer than two, or a score is no number.
    """
    before, after = paired(base, tuned)
    right_or_wrong = bool(np.isin([before, after], (0.0, 1.0)).all())
    if right_or_wrong:
        p, interval = mcnemar(before, after)
    else:
        p, interval = bootstrap_t(
            after - before, num_resamples=settings.num_resamples, seed=settings.seed
        )
    difference = float(after.mean() - before.mean())
    gain = difference if higher_is_better else -difference
    return {
        "n": len(before),
        "base": float(before.mean()),
        "base_stderr": stderr(before),
        "tuned": float(after.mean()),
        "tuned_stderr": stderr(after),
        "difference": difference,
        "ci95": list(interval),
        "p": p,
        "verdict": "same" if p >= settings.alpha else "better" if gain > 0 else "worse",
        "test": "mcnemar_exact" if right_or_wrong else "paired_bootstrap_t",
    }


def paired(base: Mapping[str, float], tuned: Mapping[str, float]) -> tuple[Scores, Scores]:
    """Both models' scores (num_items,) in the same order of items.

    Raises:
        UserError: as for `compare`.
    """
    for name, lacking in (
        ("base", tuned.keys() - base.keys()),
        ("tuned", base.keys() - tuned.keys()),
    ):
        if lacking:
            shown = ", ".join(sorted(lacking)[:5]) + (", …" if len(lacking) > 5 else "")
            raise UserError(
                f"The answers are not of the same items: {len(lacking)} have no score of the "
                f"{name} model: {shown}. Run `dvc repro --force benchmark`."
            )
    for name, scores in (("base", base), ("tuned", tuned)):
        bad = [item for item, score in scores.items() if not math.isfinite(score)]
        if bad:
            raise UserError(f"The {name} model's score of item {bad[0]} is {scores[bad[0]]}.")
    if len(base) < 2:
        raise UserError("A comparison needs at least two items: raise benchmark.limit.")
    items = sorted(base)
    return np.array([base[i] for i in items]), np.array([tuned[i] for i in items])


def stderr(scores: Scores) -> float:
    """Standard error of the mean, with Bessel's correction as in lm-eval."""
    return float(scores.std(ddof=1) / math.sqrt(len(scores)))


def mcnemar(before: Scores, after: Scores) -> tuple[float, Interval]:
    """p and 95 % interval of mean(after) - mean(before), for scores (num_items,) of 0 and 1."""
    gained, lost = int((after > before).sum()), int((after < before).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return p, _agreeing(tango(gained, lost, len(before)), p)


def tango(gained: int, lost: int, n: int) -> Interval:
    """The 95 % score interval of the difference (gained - lost) / n of two paired proportions.

    Args:
        gained: items that only the second model has right.
        lost: items that only the first has right.
        n: all items.
    """

    def accepted(delta: float) -> bool:
        # The share of lost items is its maximum-likelihood estimate if the difference were delta.
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        return bool(
            (gained - lost - n * delta) ** 2 <= Z**2 * n * (2 * share + delta * (1 - delta))
        )

    estimate = (gained - lost) / n
    return _edge(accepted, estimate, -1.0), _edge(accepted, estimate, 1.0)


def bootstrap_t(differences: Scores, *, num_resamples: int, seed: int) -> tuple[float, Interval]:
    """p and 95 % interval of the mean of paired differences (num_items,)."""
    mean, error = float(differences.mean()), stderr(differences)
    if np.allclose(differences, differences[0], rtol=1e-9, atol=0.0):
        # No spread to resample: what is left is the sign test.
        p = 2.0 ** (1 - len(differences)) if mean else 1.0
        return p, _agreeing((mean, mean), p)
    ts = np.sort(np.abs(_resampled_ts(differences, num_resamples, seed)))
    as_far = num_resamples - int(np.searchsorted(ts, abs(mean) / error))
    p = (1 + as_far) / (num_resamples + 1)
    # The rank that puts 0 outside exactly when p < 1 - LEVEL.
    reach = float(ts[math.floor(LEVEL * (num_resamples + 1))]) * error
    if math.isinf(reach):
        # Too few items differ for an estimate: all that was seen is possible.
        return p, _agreeing((float(differences.min()), float(differences.max())), p)
    return p, (mean - reach, mean + reach)


def _resampled_ts(differences: Scores, num_resamples: int, seed: int) -> Scores:
    """The t statistic of each resample around the observed mean; infinite without spread."""
    rng = np.random.default_rng(seed)
    n, mean, error = len(differences), differences.mean(), stderr(differences)
    ts = []
    for start in range(0, num_resamples, rows := max(1, BLOCK // n)):
        drawn = differences[rng.integers(n, size=(min(rows, num_resamples - start), n))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        flat = errors < 1e-9 * error
        ts.append(np.where(flat, np.inf, (drawn.mean(axis=1) - mean) / np.where(flat, 1.0, errors)))
    return np.concatenate(ts)


def _agreeing(interval: Interval, p: float) -> Interval:
    """`interval`, extended to 0 where the test does not reject 0."""
    low, high = interval
    return (min(low, 0.0), max(high, 0.0)) if p >= 1 - LEVEL else (low, high)


def _edge(accepted: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where acceptance ends between an accepted value and a bound, by bisection."""
    if accepted(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
    return inside
