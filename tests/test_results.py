from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from siftune import results

ROOT = Path(__file__).parents[1]
SHARE = results.Comparison(
    name="task/acc",
    n=10,
    base=0.0,
    base_stderr=0.0,
    tuned=0.8,
    tuned_stderr=0.13,
    difference=0.8,
    ci95=[0.5, 1.0],
    p=0.0078,
    verdict="better",
    test="mcnemar_exact",
)
PERPLEXITY = replace(
    SHARE,
    name="task/word_perplexity",
    base=21.3342,
    base_stderr=1.204,
    tuned=24.0,
    tuned_stderr=1.3,
    difference=2.6658,
    ci95=[1.9, 3.4],
    verdict="worse",
    test="paired_bootstrap",
)


def test_shares_have_wilson_intervals_also_at_their_ends() -> None:
    # Values of R's binom::binom.wilson(c(0, 8), 10).
    assert SHARE.interval(0.0, 0.0) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert SHARE.interval(0.8, 0.13) == pytest.approx((0.49016, 0.94332), abs=1e-5)


def test_other_scores_have_normal_intervals() -> None:
    assert PERPLEXITY.interval(24.0, 1.3) == pytest.approx((21.452, 26.548), abs=1e-3)


def test_shares_are_worded_in_percent_and_other_scores_as_they_are() -> None:
    assert SHARE.words() == {
        "n": "10",
        "base": "0.0%",
        "base_stderr": "0.0",
        "tuned": "80.0%",
        "tuned_stderr": "13.0",
        "difference": "+80.0",
        "ci95": "+50.0 to +100.0",
        "p": "0.0078",
        "verdict": "better",
    }
    words = PERPLEXITY.words()
    assert (words["base"], words["base_stderr"]) == ("21.33", "1.2")
    assert (words["difference"], words["ci95"]) == ("+2.666", "+1.9 to +3.4")


def test_evidence_names_the_unit_and_p() -> None:
    assert SHARE.evidence() == (
        "+80.0 points, 95% interval +50.0 to +100.0, p = 0.0078, on the same 10 items"
    )
    assert "points" not in PERPLEXITY.evidence()
    assert "p < 0.0001" in replace(SHARE, p=1e-9).evidence()
    assert "= <" not in replace(SHARE, p=1e-9).evidence()


def test_every_stage_of_the_pipeline_is_known() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert tuple(pipeline["stages"]) == results.STAGES


def test_metrics_come_in_the_order_of_the_pipeline(finished_run: Path) -> None:
    metrics = results.read()
    assert list(metrics)[:5] == ["fetch", "prepare", "encode", "sft", "merge"]
    assert [one.stage for one in results.costs(metrics)] == list(metrics)
    assert results.costs(metrics)[0].memory == pytest.approx((300 + 6 * 9.4) * 2**20)
    assert len(results.comparisons(metrics)) == 2


def test_headline_is_the_named_comparison_else_the_first() -> None:
    both = [SHARE, PERPLEXITY]
    assert results.headline(both, "task/word_perplexity") is PERPLEXITY
    assert results.headline(both, "another/metric") is SHARE
    assert results.headline([], "task/acc") is None
