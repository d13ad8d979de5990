import pytest

from siftune import charts


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.17, 1.39), (0, 0.5, 1.0, 1.5)),
        ((21.4, 26.5), (20, 22, 24, 26, 28)),
        ((0, 1e-3), (0, 0.0005, 0.001)),
        ((-3, 4), (-4, -2, 0, 2, 4)),
        ((5, 5), (4.5, 5.0, 5.5)),
    ],
)
def test_round_scale_holds_all_values_between_round_ticks(
    values: tuple[float, float], ticks: tuple[float, ...]
) -> None:
    scale = charts.round_scale(values, num_steps=2 if values[1] in (1e-3, 5) else 4)
    assert scale.ticks == pytest.approx(ticks)
    assert (scale.low, scale.high) == (ticks[0], ticks[-1])


def test_tight_scale_ends_where_the_values_end() -> None:
    scale = charts.tight_scale(3, 43)
    assert (scale.low, scale.high) == (3, 43)
    assert scale.ticks == (10, 20, 30, 40)
    assert scale.at(3) == 0
    assert scale.at(43) == 100


@pytest.mark.parametrize(
    ("high", "labels"),
    [(1.5, ["0.0", "0.5", "1.0", "1.5"]), (2e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"])],
)
def test_labels_tell_neighbours_apart(high: float, labels: list[str]) -> None:
    scale = charts.round_scale((0, high))
    assert [scale.label(tick) for tick in scale.ticks] == labels


def test_small_steps_far_from_zero_are_told_apart() -> None:
    scale = charts.round_scale((0.69312, 0.6932))
    labels = [scale.label(tick) for tick in scale.ticks]
    assert labels == ["0.69312", "0.69314", "0.69316", "0.69318", "0.6932"]


def test_a_short_training_has_no_half_steps() -> None:
    assert charts.steps_scale(2, num_steps=6).ticks == (0, 1, 2)
    assert charts.steps_scale(40, num_steps=4).ticks == (0, 10, 20, 30, 40)


def test_each_phase_has_its_own_histogram() -> None:
    counts = {"sft train": {64: 3}, "sft validation": {64: 1}, "dpo train": {8: 2}, "dpo test": {}}
    found = charts.histograms(counts, bin_width=8)
    assert {phase: one.names for phase, one in found.items()} == {
        "sft": ["train", "validation"],
        "dpo": ["train", "test"],
    }
    assert [bar.name for bar in found["sft"].bars] == ["train", "validation"]
    assert list(charts.histograms({"train": {64: 3}}, bin_width=8)) == [""]
    assert charts.histograms({"train": {}}, bin_width=8) == {}


def test_lines_are_drawn_upwards() -> None:
    line = [(0.0, 1.0), (5.0, 0.0), (10.0, 2.0)]
    scales = {"x": charts.tight_scale(0, 10), "y": charts.round_scale((0, 2))}
    chart = charts.LineChart({"train_loss": line}, **scales)
    assert chart.polyline("train_loss") == "0,50 50,100 100,0"
    assert chart.summary() == "train loss from 1 to 2"


def test_histogram_stacks_the_parts_of_a_bin() -> None:
    chart = charts.histogram({"train": {64: 30, 80: 10}, "validation": {64: 10}}, bin_width=8)
    train, far, validation = chart.bars
    assert (train.left, train.width, train.top, train.height) == (0, 33.333, 25, 75)
    assert (validation.left, validation.top, validation.height) == (0, 0, 25)
    assert far.left == 66.667
    assert far.title == "80 to 87: 10 train"
    assert chart.x.ticks == (64, 72, 80, 88)


def test_histogram_of_many_bins_becomes_coarser_and_loses_no_row() -> None:
    counts = {edge: 1 + edge % 7 for edge in range(24, 2048, 8)}
    chart = charts.histogram({"train": counts}, bin_width=8)
    assert len(chart.bars) <= charts.MAX_BINS + 1
    num_rows = sum(bar.height for bar in chart.bars) * chart.y.high / 100
    assert num_rows == pytest.approx(sum(counts.values()), rel=1e-4)
    assert all(0 <= bar.left <= bar.left + bar.width <= 100.01 for bar in chart.bars)
