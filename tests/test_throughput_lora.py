import packs
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from siftune.throughput import lora


class Small(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.layer = nn.Linear(12, 20, bias=bias)

    def forward(self, x):
        return self.layer(x)


def pair(*, bias: bool = False, **options) -> list[nn.Module]:
    """PEFT's own and ours, of the same weights."""
    made = []
    for use in (lambda _config: None, lora.use_in):
        torch.manual_seed(0)
        config = LoraConfig(
            r=4, lora_alpha=10, target_modules=["layer"], init_lora_weights=False, **options
        )
        use(config)
        made.append(get_peft_model(Small(bias), config).double())
    assert made[0].state_dict().keys() == made[1].state_dict().keys()
    return made


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]


CASES = {
    "plain": {},
    "bias": {"bias": True},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dropout": {"lora_dropout": 0.5},
    "lora-bias": {"bias": True, "lora_bias": True},
}


@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_pefts(case, monkeypatch):
    options = dict(CASES[case])
    theirs, ours = pair(**options)
    calls = []
    apply = lora._Function.apply
    monkeypatch.setattr(lora._Function, "apply", lambda *given: calls.append(1) or apply(*given))
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    for found, wanted in zip(results(ours, x), results(theirs, x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert len(calls) == (case in ("plain", "bias", "rslora"))


def test_without_the_adapter_and_merged_it_is_pefts():
    theirs, ours = pair()
    x = torch.randn(3, 12, dtype=torch.float64)
    with theirs.disable_adapter(), ours.disable_adapter():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    wanted = theirs(x)
    ours.merge_adapter()
    torch.testing.assert_close(ours(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_models_adapter_is_the_same_file():
    one, other = packs.model("llama"), packs.model("llama", own_lora=True)
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=0, atol=0)
