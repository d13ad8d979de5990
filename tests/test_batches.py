import pytest

from siftune.batches import accumulation
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
