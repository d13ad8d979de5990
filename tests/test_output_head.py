import pytest
import torch
from torch.nn import functional

from siftune.output_head import CpuLogProb


@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(None, 1.0, 1.0), (30.0, 0.5, 0.7)])
def test_loss_and_gradient_are_those_of_the_full_head(softcap, scale, temperature):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 10, 5, 5, 1])
    found, entropy, squares, mean, is_top1 = CpuLogProb.apply(
        hidden, weight, None, targets, temperature, 0, softcap, scale,
        ("log_sum_sq_probs", "mean_logits"),
    )  # fmt: skip
    logits = hidden @ weight.T * scale
    logits = (softcap * torch.tanh(logits / softcap) if softcap else logits) / temperature
    expected = -functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert is_top1.tolist() == (logits.argmax(-1) == targets).tolist()
    full_entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy.double(), full_entropy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean.double(), logits.mean(-1), rtol=1e-5, atol=1e-6)
    probs = logits.softmax(-1)
    torch.testing.assert_close(squares.double(), (probs**2).sum(-1).log(), rtol=1e-5, atol=1e-6)
    for own, full in zip(
        torch.autograd.grad((found - 0.1 * entropy).sum(), [hidden, weight]),
        torch.autograd.grad((expected - 0.1 * full_entropy).sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(own, full, rtol=1e-4, atol=1e-6)
