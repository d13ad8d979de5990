"""An adapter that is given with the base: what it must be; the first phase goes on from it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chain
import pytest
import yaml
from safetensors.torch import load_file, save_file

from siftune import files, merging, models, sources
from siftune.sections import Adapter, Model, Pretrain, Sft
from siftune.stage import UserError
from siftune.training import adapters, origin, phases

ROOT = Path(__file__).parent.parent
ROWS = [[5, 6, 7, 8, 9, 10], [50, 60, 70, 80]]
GIVEN = Path("given")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer, begin_attempt) -> Path:
    """A base, and in `given` the adapter of a first training, on it alone."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        chain.make_base(tokenizer)
        chain.train(chain.section(Sft), begin_attempt)
        shutil.move("models/sft", GIVEN)
        Path("models/sft").mkdir()
    return folder


@pytest.fixture
def model(made, tmp_path, monkeypatch) -> Model:
    """Of a copy of `made`, which is the current folder; the base is where it was."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    adapter = Adapter(f"./{GIVEN}", revision=None)
    return Model("m", str(made / "base"), None, "mit", gated=False, stop_tokens=[], adapter=adapter)


def fetch(model: Model) -> None:
    """As the stage does."""
    folder = origin.fetch(model)
    adapters.require_fit(folder, model)
    described = {"adapter": origin.describe(model.adapter, folder)}
    files.write_json(models.MANIFEST, models.fetch_base(model) | described)


def merged(*trained: Path) -> merging.Logits:
    return merging.logits(phases.merged(models.base_folder(), trained, num_tokens=0), ROWS)


def largest_difference(one: merging.Logits, other: merging.Logits) -> float:
    return merging.distance(one, other)["max_logit_difference"]


def test_the_first_phase_goes_on_from_it_and_merged_holds_both(model, begin_attempt):
    fetch(model)
    # All rows in the first step.
    _, logged = chain.train(chain.section(Sft, global_batch=8), begin_attempt)
    start = phases.merged(models.base_folder(), [GIVEN], num_tokens=0)
    bare = models.load_model(models.base_folder())
    first = logged.logged[1]["train_loss"]
    assert first == pytest.approx(chain.mean_loss(start.to(models.device())), abs=1e-5)
    assert abs(first - chain.mean_loss(bare)) > 1e-3
    both = phases.before()
    assert both == [GIVEN, Path("models/sft")]
    side_by_side = merging.load_trained(models.base_folder(), both, num_tokens=0)
    assert largest_difference(merged(*both), merging.logits(side_by_side, ROWS)) < 1e-4
    for one in both:
        assert largest_difference(merged(*both), merged(one)) > 1e-2


def test_the_stage_fetch_describes_it_and_check_looks_at_it(model, default_params):
    params = yaml.safe_load(default_params.read_text())
    params["model"] |= {"source": model.source, "revision": None}
    params["model"]["adapter"] = {"source": f"./{GIVEN}", "revision": None}
    Path("params.yaml").write_text(yaml.safe_dump(params))

    def run(script: str) -> str:
        command = [sys.executable, "-P", ROOT / script]
        done = subprocess.run(command, capture_output=True, text=True)
        return f"{done.returncode} {done.stderr}"

    assert run("train/fetch.py").startswith("0 ")
    described = files.read_json(models.MANIFEST)["adapter"]
    assert (described["source"], sorted(described["files"])) == (
        f"./{GIVEN}", [origin.SETTINGS, origin.WEIGHTS]
    )  # fmt: skip
    assert origin.given() == GIVEN
    shutil.rmtree(GIVEN)
    for script in ("train/check.py", "train/fetch.py"):
        told = run(script)
        assert told.startswith("78 ")
        assert "params.yaml: model.adapter.source: ./given does not exist." in told


def test_what_a_phase_trained_names_all_that_it_stands_on(model, begin_attempt):
    """PEFT would put it on the bare base without a word."""
    fetch(model)
    chain.train(chain.section(Pretrain), begin_attempt)
    chain.train(chain.section(Sft), begin_attempt)
    settings = files.read_json(Path("models/sft") / origin.SETTINGS)
    assert settings["base_model_name_or_path"] == f"{model.source} + ./given + pretrain"
    assert len(phases.before()) == 3
    # Given to another training of the same base, it is refused: its own start is not there.
    later = replace(model, adapter=Adapter("./models/sft", None))
    with pytest.raises(UserError, match=r"was trained on .* \+ \./given \+ pretrain, and model\.s"):
        origin.check(later)
    # Without the adapter that it was trained after, it does not fit.
    files.write_json(models.MANIFEST, models.fetch_base(model))
    with pytest.raises(UserError, match=r"models/pretrain is an adapter for .* \+ \./given, and"):
        phases.before("sft")


def test_one_for_another_base_is_refused_unless_it_is_only_another_name(model):
    settings = files.read_json(GIVEN / origin.SETTINGS)
    files.write_json(GIVEN / origin.SETTINGS, settings | {"base_model_name_or_path": "org/other"})
    with pytest.raises(UserError) as refusal:
        origin.check(model)
    told = str(refusal.value)
    assert told.startswith("params.yaml: model.adapter: ./given was trained on org/other, and")
    assert told.endswith("model.adapter.trained_on: org/other")
    known = replace(model, adapter=replace(model.adapter, trained_on="org/other"))
    origin.check(known)
    fetch(known)
    with pytest.raises(UserError, match=r"and model\.adapter\.trained_on is org/third"):
        origin.check(replace(model, adapter=replace(model.adapter, trained_on="org/third")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "IA3"}, r"\./given is IA3\. What can be gone on from is LoRA"),
        ({"peft_type": None}, r"\./given is None\."),
        (None, r"\./given has no adapter_config\.json that names"),
    ],
)
def test_what_is_no_lora_is_refused_by_check(model, changed, message):
    settings = files.read_json(GIVEN / origin.SETTINGS)
    text = "{" if changed is None else json.dumps(settings | changed)
    (GIVEN / origin.SETTINGS).write_text(text)
    with pytest.raises(UserError, match=message):
        origin.check(model)


def test_pickled_weights_are_refused(model):
    (GIVEN / origin.WEIGHTS).rename(GIVEN / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors\. Pickled weights"):
        origin.fetch(model)


def deeper(weights: dict) -> dict:
    return weights | {name.replace("layers.1.", "layers.2."): one for name, one in weights.items()}


def shallower(weights: dict) -> dict:
    return {name: one for name, one in weights.items() if "layers.1." not in name}


def wider(weights: dict) -> dict:
    return {name: one.repeat(1, 2) if "lora_A" in name else one for name, one in weights.items()}


def with_embedding(weights: dict) -> dict:
    return weights | {"base_model.model.model.embed_tokens.weight": weights[min(weights)]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            deeper,
            r"layers\.2\..*lora_A\.weight is \(\d+, \d+\), and this base takes no such weight",
        ),
        (shallower, r"layers\.1\..* is not there, and this base takes \("),
        (wider, r"lora_A\.weight is \(\d+, (64|128)\), and this base takes \(\d+, (32|64)\)"),
        (with_embedding, r"embed_tokens\.weight is .* takes no such weight.*has to be merged"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_weights_of_another_shape_are_refused_before_any_is_loaded(model, change, message):
    """PEFT leaves out what it has no place for, and says nothing."""
    weights = load_file(GIVEN / origin.WEIGHTS)
    save_file({name: one.clone() for name, one in change(weights).items()}, GIVEN / origin.WEIGHTS)
    with pytest.raises(UserError, match=message):
        adapters.require_fit(GIVEN, model)


def test_a_broken_file_and_layers_that_are_not_there_are_refused(model):
    settings = files.read_json(GIVEN / origin.SETTINGS)
    files.write_json(GIVEN / origin.SETTINGS, settings | {"target_modules": ["c_attn"]})
    with pytest.raises(UserError, match=r"does not fit .*c_attn"):
        adapters.require_fit(GIVEN, model)
    files.write_json(GIVEN / origin.SETTINGS, settings)
    (GIVEN / origin.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not fit"):
        adapters.require_fit(GIVEN, model)


def test_another_file_than_was_fetched_is_refused(model):
    fetch(model)
    with (GIVEN / origin.WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(UserError, match=r"is not the file that models/base\.json describes"):
        phases.before()


def test_one_of_a_hub_is_its_two_files_at_one_commit(model, hub):
    names = (origin.SETTINGS, origin.WEIGHTS)
    repository = {name: (GIVEN / name).read_bytes() for name in names}
    hub.publish("models", "org/lora", repository | {"optimizer.pt": b"", "other.safetensors": b""})
    code = (
        "from siftune.sections import Adapter, Model\n"
        "from siftune.training import origin\n"
        f"adapter = Adapter('org/lora', {hub.commit!r})\n"
        f"model = Model('m', {model.source!r}, None, 'mit', False, [], adapter)\n"
        "print(origin.fetch(model))"
    )
    command = [sys.executable, "-P", "-c", code]
    for offline in ("0", "1"):
        environment = os.environ | {"HF_HUB_OFFLINE": offline}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.strip())
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    with pytest.raises(UserError, match=r"params\.yaml: model\.adapter\.revision: org/lora needs"):
        sources.check_model(replace(model, adapter=Adapter("org/lora", None)))
