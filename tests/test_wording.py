import pytest

from siftune import wording


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (343.1, "5 min 43 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(512, "0.5 KiB"), (270_885_568, "258.3 MiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")],
)
def test_size(num_bytes: int, words: str) -> None:
    assert wording.size(num_bytes) == words


def test_numbers() -> None:
    assert wording.percent(0.5808) == "58.1%"
    assert wording.count(9_768_960) == "9,768,960"
    assert wording.small(0.000414) == "0.000414"
    assert wording.probability(0.03124) == "0.0312"
    assert wording.probability(1e-38) == "< 0.0001"
