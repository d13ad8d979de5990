"""What is past a limit, and what is said."""

import re

import pytest

from siftune.gguf_limits import complaints, require
from siftune.sections import GgufLimit
from siftune.stage import UserError

LIMIT = GgufLimit(max_kl=0.01, min_top1_agreement=0.9)
GOOD = {
    "token_ids_equal": True,
    "first_difference": None,
    "chat_template_equal": True,
    "special_tokens_equal": True,
    "mean_kl": 0.01,
    "top1_agreement": 0.9,
}


def test_at_the_limits_is_within_them():
    assert complaints("f16", GOOD, LIMIT) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids_equal": False, "first_difference": "a  1"}, "'a  1'"),
        ({"chat_template_equal": False}, "chat template"),
        ({"special_tokens_equal": False}, "bos, eos or pad"),
        ({"mean_kl": 0.0123}, r"0\.0123 nats a token \(max_kl 0\.01\)"),
        ({"mean_kl": float("nan")}, "nan"),
        ({"top1_agreement": 0.89}, r"0\.8900 \(min_top1_agreement 0\.9\)"),
    ],
)
def test_each_difference_is_one_complaint_with_its_numbers(change, said):
    found = complaints("q8_0", GOOD | change, LIMIT)
    assert len(found) == 1
    assert found[0].startswith("q8_0: ")
    assert re.search(said, found[0])


def test_each_type_needs_a_limit():
    require(["f16"], {"f16": LIMIT})
    with pytest.raises(UserError, match=r"none for q4_0, .* It has f16"):
        require(["f16", "q4_0"], {"f16": LIMIT})
