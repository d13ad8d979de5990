"""Plans against brute force, on many small random batches whose rows often begin alike."""

from itertools import combinations, pairwise

import numpy as np
import packs
import pytest
import torch

from siftune.throughput import flex, layout, planner

SEEDS = range(60)


def random_rows(seed: int) -> list[np.ndarray]:
    """Up to eight rows over three letters, some the beginning of others, some equal."""
    generator = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    for _ in range(generator.integers(1, 9)):
        start = found[generator.integers(len(found))] if found else np.array([], dtype=int)
        start = start[: generator.integers(0, len(start) + 1)]
        own = generator.integers(0, 3, generator.integers(0 if len(start) else 1, 9))
        found.append(np.concatenate([start, own]))
    return found


def prefixes(rows: list[np.ndarray]) -> set[tuple[int, ...]]:
    """All distinct beginnings: what has to be computed when everything is shared."""
    return {tuple(row[: end + 1].tolist()) for row in rows for end in range(len(row))}


@pytest.fixture(params=SEEDS)
def rows(request, monkeypatch) -> list[np.ndarray]:
    monkeypatch.setattr(planner, "MIN_SAVED", 1)
    return random_rows(request.param)


def test_each_distinct_beginning_is_computed_once(rows):
    (pack,) = planner.plan(rows, 1000)
    assert pack.num_tokens == len(prefixes(rows))
    assert sorted(pack.rows) == list(range(len(rows)))


@pytest.mark.parametrize("share", [True, False])
def test_a_row_is_where_its_places_say_and_sees_exactly_itself(rows, share):
    budget = max(map(len, rows)) + 6
    plan = planner.plan(rows, budget, share=share)
    assert sorted(row for pack in plan for row in pack.rows) == list(range(len(rows)))
    for pack in plan:
        made = layout.lay_out(pack, rows, rows)
        assert pack.num_tokens <= budget
        assert made.input_ids.shape == (1, pack.num_tokens)
        paths = paths_of(pack)
        for row, place in zip(pack.rows, pack.places, strict=True):
            assert made.input_ids[0, place].tolist() == rows[row].tolist()
            assert made.position_ids[0, place].tolist() == list(range(len(place)))
            for i, token in enumerate(place):
                assert paths[token] == place[: i + 1].tolist()
    if not share:
        assert sum(pack.num_tokens for pack in plan) == sum(map(len, rows))


def paths_of(pack: planner.Pack) -> list[list[int]]:
    """For each token of a pack, the tokens that it sees by its segments, first to last."""
    paths: list[list[int]] = []
    for segment in pack.segments:
        parent = pack.segments[segment.parent] if segment.parent >= 0 else None
        before = paths[parent.end - 1] if parent else []
        assert len(before) == segment.position
        paths += [
            before + list(range(segment.start, token + 1))
            for token in range(segment.start, segment.end)
        ]
    return paths


@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_sees_what_the_segments_say(rows, window):
    (pack,) = planner.plan(rows, 1000)
    made = layout.lay_out(pack, rows, rows)
    mask_mod = flex.visible(made, window)
    index = torch.arange(pack.num_tokens)
    seen = mask_mod(None, None, index[:, None], index[None, :])
    for token, path in enumerate(paths_of(pack)):
        assert seen[token].nonzero().flatten().tolist() == path[-(window or len(path)) :]


def test_cuts_compute_the_fewest_tokens_that_runs_of_sorted_rows_allow(rows, monkeypatch):
    monkeypatch.setattr(planner, "PACK_COST", 1)
    budget = max(map(len, rows)) + 4
    ordered = sorted(rows, key=lambda row: row.tolist())

    def cost(cuts: tuple[int, ...]) -> float:
        runs = [ordered[low:high] for low, high in pairwise((0, *cuts, len(rows)))]
        sizes = [len(prefixes(run)) for run in runs]
        return sum(sizes) + len(sizes) if max(sizes) <= budget else np.inf

    inner = range(1, len(rows))
    least = min(cost(cuts) for size in range(len(rows)) for cuts in combinations(inner, size))
    plan = planner.plan(rows, budget)
    assert sum(pack.num_tokens for pack in plan) + len(plan) == least


def test_every_trained_token_is_predicted_once_for_each_of_its_rows(rows):
    generator = np.random.default_rng(0)
    labels = [np.where(generator.random(len(row)) < 0.5, row, -100) for row in rows]
    wanted, found = [], []
    for row, (ids, label) in enumerate(zip(rows, labels, strict=True)):
        for i in range(1, len(ids)):
            if label[i] != -100:
                wanted.append((row, tuple(ids[:i].tolist()), int(label[i])))
    for pack in planner.plan(rows, max(map(len, rows)) + 6):
        made = layout.lay_out(pack, rows, labels)
        paths = paths_of(pack)
        for row, source, target in zip(made.row_of, made.source_of, made.targets, strict=True):
            path = paths[made.sources[source]]
            found.append((int(row), tuple(made.input_ids[0, path].tolist()), int(target)))
        assert len(made.sources) == len(set(made.sources.tolist()))
    assert sorted(found) == sorted(wanted)


def test_a_short_prefix_is_not_shared_and_a_long_one_is():
    num = planner.MIN_SAVED

    def two_with(common: int) -> list[list[int]]:
        return [[1] * common + [2, 3], [1] * common + [4, 5, 6]]

    assert planner.plan(two_with(num), 1000)[0].num_tokens == num + 5
    assert planner.plan(two_with(num - 1), 1000)[0].num_tokens == 2 * (num - 1) + 5
    four = [[1] * (num // 3 + 1) + [i] for i in range(2, 6)]
    assert planner.plan(four, 1000)[0].num_tokens == num // 3 + 1 + 4


def test_rows_of_one_prefix_stay_together_where_the_budget_cuts():
    """Two documents with three questions each, in turns; a pack has room for four rows."""
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, 50, 100).tolist() for _ in range(2)]
    batch = [documents[i % 2] + generator.integers(0, 50, 20).tolist() for i in range(6)]
    plan = planner.plan(batch, 280)
    assert [sorted(pack.rows) for pack in plan] in ([[0, 2, 4], [1, 3, 5]], [[1, 3, 5], [0, 2, 4]])
    assert [pack.num_tokens for pack in plan] == [160, 160]


def test_a_budget_that_a_row_exceeds_is_refused():
    with pytest.raises(ValueError, match=r"a row has 5 tokens, and the budget is 4"):
        planner.plan([[1, 2], [1, 2, 3, 4, 5]], 4)


def test_the_rows_of_the_exactness_tests_have_all_shapes(monkeypatch):
    monkeypatch.setattr(planner, "MIN_SAVED", 1)
    ids, labels = packs.rows()
    (pack,) = planner.plan(ids, 1000)
    depths = [0] * len(pack.segments)
    for i, segment in enumerate(pack.segments):
        depths[i] = depths[segment.parent] + 1 if segment.parent >= 0 else 1
    made = layout.lay_out(pack, ids, labels)
    pairs = list(zip(made.source_of.tolist(), made.targets.tolist(), strict=True))
    assert max(depths) >= 3
    assert pack.num_tokens < sum(map(len, ids)) / 2
    assert len(set(pairs)) < len(pairs), "no shared token is trained"
    assert len({source for source, _ in pairs}) < len(set(pairs)), "no token predicts two"
