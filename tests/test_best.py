"""The weights that were best are kept; so are they, and the patience, over a kill."""

import math

import torch
from torch import nn

from siftune.resume.best import Best


def layer(value: float) -> nn.Module:
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, value)
    made.bias.requires_grad = False
    return made


def test_it_counts_evaluations_without_a_better_one():
    best = Best(keep=False, patience=2)
    over = []
    for step, loss in enumerate([3.0, 2.0, 2.0, 1.0, 1.5, math.nan], start=1):
        best.seen(loss, step, layer(0))
        over.append(best.is_over)
    assert over == [False, False, False, False, False, True]
    assert (best.loss, best.step) == (1.0, 4)


def test_without_patience_it_is_never_over():
    best = Best(keep=False, patience=None)
    for step in range(1, 50):
        best.seen(1.0, step, layer(0))
    assert not best.is_over


def test_the_weights_are_of_the_best_step_also_from_a_checkpoint(tmp_path):
    best, model = Best(keep=True, patience=None), layer(0)
    best.save(tmp_path)  # before any evaluation
    best.load(tmp_path)
    for step, loss in enumerate([3.0, 1.0, 2.0], start=1):
        nn.init.constant_(model.weight, float(step))
        best.seen(loss, step, model)
    best.save(tmp_path)
    other = Best(keep=True, patience=None)
    other.load(tmp_path)
    assert (other.loss, other.step, other.num_worse) == (1.0, 2, 1)
    other.put_back(model)
    assert torch.equal(model.weight, torch.full((1, 2), 2.0))


def test_a_checkpoint_has_nothing_of_it_unless_asked(tmp_path):
    best = Best(keep=False, patience=None)
    best.seen(1.0, 1, layer(0))
    best.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
