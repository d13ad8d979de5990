"""`siftune samples`: which checkpoints are here, and what they answer; nothing is changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trained

from siftune import files
from siftune.stage import UserError
from siftune.talk import samples, weights

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, default_params) -> Path:
    """What a training leaves; tests that change it use a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained.make(tiny_model, default_params)
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


def siftune(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "siftune", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def contents() -> dict[str, tuple[bytes, int]]:
    paths = [path for path in Path().rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def expected(place: Path | None) -> dict[str, list[str]]:
    """What base (None) or base + the adapter at `place` answer, by the functions of the stage."""
    from siftune import config, generation, merging, models

    tokenizer = models.load_tokenizer()
    base = models.base_folder()
    model = (
        merging.load_trained(base, [place], num_tokens=len(tokenizer))
        if place
        else models.load_model(base)
    )
    records = list(files.read_jsonl(Path("data/prepared/test.jsonl")))
    return generation.by_each_decoding(
        model, tokenizer, records, config.load("samples").samples, system=None
    )


def test_checkpoints_are_listed_the_newest_first(folder):
    lines = list(samples.listing())
    assert [line.split()[0] for line in lines[:3]] == ["01234567/8", "01234567/4", "sft"]
    assert "step 8 of 12  saved" in lines[0]
    assert lines[-1].startswith("`siftune samples --checkpoint 01234567/8` asks it")


def test_what_was_not_published_is_not_listed(folder):
    (trained.CHECKPOINTS / "step-00000008" / "published").write_text("another")
    shutil.copytree(trained.CHECKPOINTS / "step-00000004", trained.CHECKPOINTS / ".step-9.x.tmp")
    (trained.CHECKPOINTS / "step-00000012").mkdir()
    assert [one.name for one in weights.of_checkpoints()] == ["01234567/4"]


def test_where_nothing_was_trained_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(samples.listing()) == [
        "No training has saved a checkpoint here yet; `dvc repro sft` trains."
    ]
    with pytest.raises(UserError, match=r"models/base\.json is not there.*dvc repro encode"):
        weights.all_here()


def test_the_list_needs_no_torch(folder):
    code = (
        "import sys; from siftune.talk import samples; list(samples.listing());"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_is_asked_next_to_the_base_and_the_reference(folder):
    before = contents()
    done = siftune("samples", "--checkpoint", "newest", "--output", "out.jsonl")
    assert done.returncode == 0, done.stderr
    after = contents()
    rows = [json.loads(line) for line in after.pop("out.jsonl")[0].decode().splitlines()]
    assert after == before
    base, tuned = expected(None), expected(trained.CHECKPOINTS / "step-00000008")
    assert base != tuned
    assert len(rows) == 3
    for number, (row, (question, reference)) in enumerate(zip(rows, trained.TEST, strict=True)):
        assert (row["prompt"], row["reference"]) == (question, reference)
        assert row["answers"] == {
            name: {"base": base[name][number], "tuned": tuned[name][number]} for name in base
        }
        assert question in done.stdout
        assert reference in done.stdout
    for title in ("base · greedy", "01234567/8 · warm", "reference", "prompt"):
        assert done.stdout.count(f"── {title}\n") == 3


def test_only_so_many_prompts_are_asked_and_the_answers_stay_the_same(folder, capsys):
    samples.ask("sft", num_prompts=1, output=Path("one.jsonl"))
    samples.ask("01234567/8", num_prompts=None, output=Path("all.jsonl"))
    one, three = (list(files.read_jsonl(Path(name))) for name in ("one.jsonl", "all.jsonl"))
    assert (len(one), len(three)) == (1, 3)
    assert one[0] == three[0]  # the adapter is that of step 8


def test_a_checkpoint_of_full_weights_is_asked(folder):
    from siftune import models
    from siftune.talk import voices

    shutil.copytree("models/merged", "full", ignore=lambda *_: ["tokenizer.json"])
    trained.checkpoint(Path("full"), 11)
    found = weights.find("01234567/11", weights.all_here())
    model = voices.load(found, models.load_tokenizer())
    merged = models.load_model(Path("models/merged")).state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == merged.keys()
    assert all(loaded[name].equal(weight) for name, weight in merged.items())


@pytest.mark.parametrize(
    "wanted", ["01234567/4", "0123456789abcdef/4", f"{trained.CHECKPOINTS}/step-00000004"]
)
def test_a_checkpoint_has_several_names(folder, wanted):
    assert weights.find(wanted, weights.all_here()).path.name == "step-00000004"


def test_an_unknown_name_is_answered_by_those_that_are_here(folder):
    done = siftune("samples", "--checkpoint", "01234567/5")
    assert done.returncode == 78
    assert "merged, sft, 01234567/8, 01234567/4, base" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_with_other_bytes_is_refused(folder):
    adapter = trained.CHECKPOINTS / "step-00000008/adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is not what was saved"):
        samples.ask("newest", num_prompts=1, output=None)


@pytest.mark.parametrize("wanted", ["newest", "sft"])
def test_weights_of_another_base_are_refused_before_torch_is_there(folder, wanted):
    manifest = files.read_json(Path("models/base.json"))
    files.write_json(Path("models/base.json"), manifest | {"source": "another"})
    code = (
        "import sys; from siftune.talk import samples; from siftune.stage import UserError\n"
        f"try: samples.ask({wanted!r}, num_prompts=1, output=None)\n"
        "except UserError as error: assert 'another base model' in str(error)\n"
        "else: raise AssertionError\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_of_another_chat_template_is_refused(folder):
    (Path("models/tokenizer") / "chat_template.jinja").write_text("another")
    with pytest.raises(UserError, match="with another tokenizer or chat template"):
        samples.ask("newest", num_prompts=1, output=None)


def test_a_checkpoint_that_is_dropped_while_it_is_read_is_told_kindly(folder, monkeypatch):
    from siftune import merging

    load = merging.load_trained

    def beside_a_training(base, places, **options):
        shutil.rmtree(places[-1])
        return load(base, places, **options)

    monkeypatch.setattr(merging, "load_trained", beside_a_training)
    with pytest.raises(UserError, match="01234567/8 is gone: its training has dropped it"):
        samples.ask("newest", num_prompts=1, output=None)
