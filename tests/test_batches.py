import pytest

from siftune.batches import accumulation, budget, rows_at_once
from siftune.stage import UserError


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world_size", "expected"),
    [(16, 4, 1, 4), (16, 4, 2, 2), (8, 8, 1, 1)],
)
def test_accumulation_is_derived(global_batch, micro_batch, world_size, expected):
    found = accumulation(
        "sft", global_batch=global_batch, micro_batch=micro_batch, world_size=world_size
    )
    assert found == expected


def test_a_batch_that_does_not_divide_shows_the_arithmetic():
    with pytest.raises(UserError, match=r"16 / 12 = 1\.33\. Choose a multiple of 12"):
        accumulation("sft", global_batch=16, micro_batch=4, world_size=3)


@pytest.mark.parametrize(("micro_batch", "world_size", "rows"), [(4, 2, 4), ("900 tokens", 2, 8)])
def test_with_a_token_budget_a_process_takes_all_its_rows_at_once(micro_batch, world_size, rows):
    assert budget(micro_batch) == {4: None, "900 tokens": 900}[micro_batch]
    asked = {"global_batch": 16, "world_size": world_size}
    assert rows_at_once("sft", micro_batch=micro_batch, **asked) == rows


def test_processes_that_cannot_share_a_step_are_refused():
    with pytest.raises(UserError, match=r"sft\.global_batch: 3 processes .* 16 .* multiple of 3"):
        rows_at_once("sft", global_batch=16, micro_batch="900 tokens", world_size=3)
