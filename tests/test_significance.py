import math

import numpy as np
import pytest
from scipy import stats

from siftune import significance
from siftune.sections import Compare
from siftune.stage import UserError

SETTINGS = Compare(alpha=0.05, num_resamples=999, seed=1)


def table(both: int, lost: int, gained: int, neither: int) -> tuple[dict, dict]:
    """Scores by item of base and tuned, from the counts of a paired 2 x 2 table."""
    counts = (both, lost, gained, neither)
    base = np.repeat([1.0, 1.0, 0.0, 0.0], counts)
    tuned = np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    return by_item(base), by_item(tuned)


def by_item(scores) -> dict[str, float]:
    return {f"item-{number:05}": float(score) for number, score in enumerate(scores)}


def test_mcnemar_and_tango_give_the_textbooks_values():
    # Complete response before and after consolidation therapy (Cavo et al. 2012), computed by the
    # authors of "Statistical Analysis of Contingency Tables" (2017): exact p 0.052479, Tango's
    # interval -0.1240 to -0.0054. The test does not reject 0, so the interval must hold it.
    found = significance.compare(*table(59, 6, 16, 80), SETTINGS)
    assert found["p"] == pytest.approx(0.052479, abs=1e-6)
    assert significance.tango(16, 6, 161) == pytest.approx((0.0054, 0.1240), abs=5e-5)
    assert found["ci95"] == pytest.approx([0.0, 0.1240], abs=5e-5)
    assert found["verdict"] == "same"
    # Two media for culturing tuberculosis (Armitage and Berry 1994, p. 127): exact p 0.0129.
    found = significance.compare(*table(20, 12, 2, 16), SETTINGS)
    assert found["p"] == pytest.approx(0.0129, abs=5e-5)
    assert found["verdict"] == "worse"


def test_pairs_decide_where_the_two_means_alone_would_not():
    found = significance.compare(*table(110, 0, 10, 120), SETTINGS)
    assert found["p"] == pytest.approx(2 * 0.5**10)
    assert (found["verdict"], found["test"]) == ("better", "mcnemar_exact")
    # The two shares, taken as unrelated samples.
    z = found["difference"] / math.hypot(found["base_stderr"], found["tuned_stderr"])
    assert 2 * stats.norm.sf(z) > 0.3


def test_a_model_against_itself_is_the_same():
    for scores in (by_item([1, 0, 1, 1]), by_item([0.2, 0.7, 0.4])):
        found = significance.compare(scores, dict(scores), SETTINGS)
        assert (found["difference"], found["p"], found["verdict"]) == (0.0, 1.0, "same")
        assert found["ci95"][0] <= 0 <= found["ci95"][1]


def test_swapping_the_models_turns_the_result_around():
    rng = np.random.default_rng(3)
    for base, tuned in (
        (rng.integers(2, size=60).astype(float), rng.integers(2, size=60).astype(float)),
        (rng.normal(size=60), rng.normal(0.3, size=60)),
    ):
        there = significance.compare(by_item(base), by_item(tuned), SETTINGS)
        back = significance.compare(by_item(tuned), by_item(base), SETTINGS)
        assert back["p"] == pytest.approx(there["p"])
        assert back["difference"] == pytest.approx(-there["difference"])
        assert back["ci95"] == pytest.approx([-there["ci95"][1], -there["ci95"][0]])


def test_where_lower_is_better_a_rise_is_worse():
    base, tuned = table(10, 2, 40, 10)
    assert significance.compare(base, tuned, SETTINGS)["verdict"] == "better"
    found = significance.compare(base, tuned, SETTINGS, higher_is_better=False)
    assert found["verdict"] == "worse"
    assert found["difference"] > 0


def test_items_are_paired_by_name_not_by_place():
    base, tuned = table(30, 0, 12, 30)
    turned = dict(reversed(tuned.items()))
    assert significance.compare(base, turned, SETTINGS) == significance.compare(
        base, tuned, SETTINGS
    )


@pytest.mark.parametrize("n", [7, 40, 240])
def test_interval_and_p_agree_on_every_table(n):
    for gained in range(min(n, 30)):
        for lost in range(min(n - gained, 30)):
            found = significance.compare(*table(0, lost, gained, n - gained - lost), SETTINGS)
            low, high = found["ci95"]
            assert low <= found["difference"] <= high
            assert (low <= 0 <= high) == (found["p"] >= 0.05), (n, gained, lost)


def test_the_bootstraps_interval_and_p_agree():
    rng = np.random.default_rng(5)
    ps = []
    for _ in range(1000):
        # So few resamples that p is 0.05 exactly now and then.
        p, (low, high) = significance.bootstrap_t(
            rng.exponential(size=30) - 0.7, num_resamples=99, seed=1
        )
        assert (low <= 0 <= high) == (p >= 0.05)
        ps.append(round(p, 2))
    assert {0.04, 0.05, 0.06} < set(ps)


def test_few_different_items_prove_nothing():
    zeros = np.zeros(50)
    one, two = zeros.copy(), zeros.copy()
    one[0], two[:2] = 0.3, (0.4, 0.6)
    for differences in (one, two):
        p, interval = significance.bootstrap_t(differences, num_resamples=999, seed=1)
        assert p > 0.05
        assert interval == (0.0, differences.max())
    # The same gain on each of four items: the sign test's p.
    assert significance.bootstrap_t(np.full(4, 0.1), num_resamples=999, seed=1) == (
        0.125,
        (0.0, 0.1),
    )


def test_mcnemar_rejects_true_nulls_no_more_often_than_alpha():
    rng = np.random.default_rng(7)
    rejected = 0
    for _ in range(2000):
        base = rng.random(240) < 0.3
        # The answers change on 30 % of the items, in either direction alike.
        after = np.where(rng.random(240) < 0.3, rng.random(240) < 0.3, base)
        p, _ = significance.mcnemar(base.astype(float), after.astype(float))
        rejected += p < 0.05
    assert rejected / 2000 <= 0.05


def test_the_bootstrap_rejects_true_nulls_about_as_often_as_alpha():
    rng = np.random.default_rng(8)
    draw = {
        "normal": lambda: rng.normal(size=60),
        "skewed": lambda: rng.exponential(size=60) - 1,
        "sparse": lambda: (rng.random(60) < 0.3) * rng.normal(size=60),
    }
    for name, differences in draw.items():
        ps = [
            significance.bootstrap_t(differences(), num_resamples=499, seed=seed)[0]
            for seed in range(500)
        ]
        # 0.05 and three standard errors of 500 trials.
        assert np.mean(np.array(ps) < 0.05) <= 0.08, name


def test_intervals_cover_the_true_difference():
    rng = np.random.default_rng(9)
    covered = {"shares": 0, "numbers": 0}
    for seed in range(500):
        base = rng.random(120) < 0.1
        tuned = np.where(base, rng.random(120) < 0.9, rng.random(120) < 0.6)
        truth = 0.1 * 0.9 + 0.9 * 0.6 - 0.1
        _, (low, high) = significance.mcnemar(base.astype(float), tuned.astype(float))
        covered["shares"] += low <= truth <= high
        _, (low, high) = significance.bootstrap_t(
            rng.exponential(size=60), num_resamples=499, seed=seed
        )
        covered["numbers"] += low <= 1.0 <= high
    assert all(count / 500 > 0.92 for count in covered.values()), covered


def test_standard_errors_are_those_of_lm_eval():
    from lm_eval.api.metrics import mean_stderr

    scores = [0.0, 1.0, 1.0, 0.0, 1.0]
    found = significance.compare(by_item(scores), by_item(reversed(scores)), SETTINGS)
    assert found["base_stderr"] == pytest.approx(mean_stderr(scores))


def test_unequal_items_are_refused_by_name():
    with pytest.raises(UserError, match=r"1 have no score of the tuned model: b\. "):
        significance.compare({"a": 1.0, "b": 0.0}, {"a": 1.0}, SETTINGS)
    many = by_item(range(9))
    with pytest.raises(UserError, match=r"9 have no score of the base model: item-00000, .*, …"):
        significance.compare({}, many, SETTINGS)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(UserError, match="tuned model's score of item b"):
        significance.compare({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": bad}, SETTINGS)


def test_one_item_is_no_comparison():
    with pytest.raises(UserError, match=r"benchmark\.limit"):
        significance.compare({"a": 1.0}, {"a": 0.0}, SETTINGS)
