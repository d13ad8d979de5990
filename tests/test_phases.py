"""Each phase begins with what all before it have learned; merging walks the same chain."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import chain
import pytest
import torch
import yaml
from safetensors.torch import load_file

from siftune import merging, models, tokens
from siftune.sections import PHASES, Pretrain, Sft
from siftune.stage import UserError
from siftune.training import left_out, phases

ROOT = Path(__file__).parent.parent
ROWS = [[5, 6, 7, 8, 9, 10], [50, 60, 70, 80]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, begin_attempt):
    """A function: the folder after pretrain and sft, and what sft logged."""
    known = {}

    def run(**of_pretrain) -> tuple[Path, chain.Sink]:
        key = repr(of_pretrain)
        if key not in known:
            folder = tmp_path_factory.mktemp("chain")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                chain.make_base(tokenizer)
                chain.train(chain.section(Pretrain, **of_pretrain), begin_attempt)
                # All rows in the first step.
                _, sink = chain.train(chain.section(Sft, global_batch=8), begin_attempt)
            known[key] = folder, sink
        return known[key]

    return run


def by_hand(base: Path, *adapters: Path) -> dict[str, torch.Tensor]:
    """The base's weights plus the product of each adapter's factors, scaled; no PEFT."""
    weights = models.load_model(base).state_dict()
    for folder in adapters:
        settings = json.loads((folder / "adapter_config.json").read_text())
        factors = load_file(folder / "adapter_model.safetensors")
        for name in [name for name in factors if ".lora_A." in name]:
            product = factors[name.replace("lora_A", "lora_B")] @ factors[name]
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            weights[target] = weights[target] + product * settings["lora_alpha"] / settings["r"]
    return weights


def logits(weights: dict[str, torch.Tensor], base: Path) -> merging.Logits:
    model = models.load_model(base)
    model.load_state_dict(weights)
    return merging.logits(model, ROWS)


def largest_difference(one: merging.Logits, other: merging.Logits) -> float:
    return merging.distance(one, other)["max_logit_difference"]


def test_merged_is_the_base_with_both_adapters(trained, monkeypatch):
    folder, _ = trained()
    monkeypatch.chdir(folder)
    base, both = Path("base"), phases.before()
    assert both == [Path("models/pretrain"), Path("models/sft")]
    merged = merging.logits(phases.merged(base, both, num_tokens=0), ROWS)
    assert largest_difference(merged, logits(by_hand(base, *both), base)) < 1e-4
    side_by_side = merging.load_trained(base, both, num_tokens=0)
    assert largest_difference(merged, merging.logits(side_by_side, ROWS)) < 1e-4
    # Each of them counts.
    for one in both:
        assert largest_difference(merged, logits(by_hand(base, one), base)) > 1e-2


@pytest.mark.parametrize("of_pretrain", [{}, {"lora": None}], ids=["adapter", "all weights"])
def test_the_second_phase_begins_where_the_first_ended(trained, of_pretrain, monkeypatch):
    folder, logged = trained(**of_pretrain)
    monkeypatch.chdir(folder)
    earlier = phases.before("sft")
    start = phases.merged(Path("base"), earlier, num_tokens=0).to(models.device())
    assert logged.logged[1]["train_loss"] == pytest.approx(chain.mean_loss(start), abs=1e-5)


def test_all_weights_of_the_first_phase_with_an_adapter_on_them(trained, monkeypatch):
    folder, _ = trained(lora=None)
    monkeypatch.chdir(folder)
    base, (whole, adapter) = Path("base"), phases.before()
    merged = merging.logits(phases.merged(base, [whole, adapter], num_tokens=0), ROWS)
    assert largest_difference(merged, logits(by_hand(whole, adapter), base)) < 1e-4
    assert largest_difference(merged, logits(by_hand(base, adapter), base)) > 1e-2


def test_the_base_keeps_its_dtype_from_phase_to_phase(trained, tmp_path, monkeypatch):
    folder, _ = trained()
    monkeypatch.chdir(folder)
    models.load_model(Path("base")).to(torch.bfloat16).save_pretrained(tmp_path)
    both = phases.before()
    merged = phases.merged(tmp_path, both, num_tokens=0)
    after_first = phases.merged(tmp_path, both[:1], num_tokens=0)
    after_first.save_pretrained(tmp_path / "first")
    assert merged.dtype == after_first.dtype == torch.bfloat16
    second = phases.merged(tmp_path / "first", both[1:], num_tokens=0)
    assert all(torch.equal(merged.state_dict()[n], w) for n, w in second.state_dict().items())


def test_what_can_only_be_loaded_from_a_folder_is_written_once(trained, tmp_path, monkeypatch):
    folder, _ = trained()
    monkeypatch.chdir(folder)
    target = tmp_path / "start"
    expected = phases.merged(Path("base"), phases.before(), num_tokens=0)
    phases.written(Path("base"), phases.before(), target, num_tokens=0)
    written = (target / "model.safetensors").stat().st_mtime_ns
    assert phases.written(Path("base"), phases.before(), target, num_tokens=0) == target
    assert (target / "model.safetensors").stat().st_mtime_ns == written
    assert largest_difference(
        merging.logits(models.load_model(target), ROWS), merging.logits(expected, ROWS)
    ) < 1e-6  # fmt: skip
    assert models.read_tokenizer(target).chat_template


def test_what_a_phase_left_must_be_there_and_fit(trained, tmp_path, monkeypatch):
    folder, _ = trained()
    shutil.copytree(folder / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_model", None)  # no weights are read
    settings = Path("models/pretrain/adapter_config.json")
    settings.write_text(settings.read_text().replace(str(folder / "base"), "another/model"))
    with pytest.raises(UserError, match=r"models/pretrain is an adapter for another/model, and"):
        phases.before("sft")
    shutil.rmtree("models/pretrain")
    with pytest.raises(UserError, match=r"models/pretrain is not there\. Run `dvc repro pretrain`"):
        phases.before("sft")
    Path("models/pretrain").mkdir()
    assert phases.before("sft") == []
    with pytest.raises(
        UserError, match=r"models/sft is an adapter for .* \+ pretrain, and sft beg"
    ):
        phases.before()


def test_a_later_phase_runs_no_earlier_one_again():
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    names = list(PHASES)
    assert [name for name in pipeline if name in PHASES] == names
    for number, name in enumerate(names):
        deps = pipeline[name]["deps"]
        assert pipeline[name]["params"] == [name]
        assert [dep for dep in deps if dep.startswith("data/")] == [f"data/tokens/{name}"]
        before = [f"models/{earlier}" for earlier in names[:number]]
        assert set(deps) & {f"models/{other}" for other in names} == set(before)
        assert f"models/{name}" in pipeline["merge"]["deps"]


def test_a_phase_that_is_left_out_leaves_nothing_and_imports_no_torch(tmp_path, tokenizer):
    code = (
        "import sys\n"
        "from siftune import tokens\n"
        "from siftune.training import left_out\n"
        "folder = tokens.folder_of('pretrain'); folder.mkdir(parents=True)\n"
        "with tokens.write('train', folder): pass\n"
        "assert not left_out.is_trained('pretrain', None)\n"
        "assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
    assert list((tmp_path / "models/pretrain").iterdir()) == [
        tmp_path / "models/pretrain/left_out.txt"
    ]
    assert not left_out.holds_weights(tmp_path / "models/pretrain")
    assert (tmp_path / "metrics/pretrain.json").read_text() == "{}\n"
    assert (tmp_path / "plots/pretrain.csv").read_text() == "step,train_loss\n"


def test_rows_and_phases_must_agree(tmp_path, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain.make_base(tokenizer)
    with pytest.raises(UserError, match=r"pretrain: null, but .* plain text .*pretrain-lora"):
        left_out.is_trained("pretrain", None)
    for split in tokens.SPLITS:
        with tokens.write(split, tokens.folder_of("sft")):
            pass
    with pytest.raises(UserError, match=r"sft: this section is set, but .*conversations"):
        left_out.is_trained("sft", chain.section(Sft))
