import re
from pathlib import Path

import pytest
import yaml

from siftune import config
from siftune.stage import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def params(tmp_path, monkeypatch):
    """The committed params as a dictionary, and a function that writes them where `load` reads."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    target = tmp_path / "params.yaml"
    monkeypatch.setattr(config, "PARAMS_FILE", target)

    def write() -> None:
        target.write_text(yaml.safe_dump(raw))

    write()
    return raw, write


def test_sections_come_as_they_are_written(params):
    raw, _ = params
    loaded = config.load("sft", "merge")
    assert loaded.sft.learning_rate == raw["sft"]["learning_rate"]
    assert loaded.sft.lora.rank == raw["sft"]["lora"]["rank"]
    assert not hasattr(loaded, "model")


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "sft",
            "learning_rat",
            1.0,
            r"sft\.learning_rat: unknown key\. Valid keys: seed, learning",
        ),
        ("sft", "learning_rate", "1e-4", r"sft\.learning_rate: .*not '1e-4'\. YAML reads 1e-4 as"),
        ("sft", "learning_rate", -1.0, r"sft\.learning_rate: Input should be greater than 0"),
        ("sft", "global_batch", 1.5, r"sft\.global_batch: .*integer"),
        ("sft", "global_batch", True, r"sft\.global_batch: .*integer, not True"),
        ("sft", "lora", {"rank": 8}, r"sft\.lora\.alpha: missing\. Valid keys: rank, alpha"),
        (
            "samples",
            "decodings",
            {"warm": {"temprature": 1.0}},
            r"samples\.decodings\.warm\.temprature: unknown key\. Valid keys: temperature, top_k",
        ),
        (
            "samples",
            "decodings",
            {"warm": {"temperature": 1.0, "top_p": 1.5}},
            r"samples\.decodings\.warm\.top_p: Input should be less than or equal to 1, not 1\.5",
        ),
        ("sft", "micro_batch", 0, r"sft\.micro_batch: .* number of rows \(4\) or a token budget"),
        ("sft", "micro_batch", "4096", r"sft\.micro_batch: .* token budget .*, not '4096'"),
        ("samples", "decodings", {}, r"samples\.decodings: .* at least 1 item"),
        ("samples", "decodings", {"too warm": {}}, r"samples\.decodings\.too warm.*match pattern"),
        ("prepare", "test", 1.5, r"prepare\.test: Input should be less than or equal to 1"),
        ("encode", "too_long", "cut", r"encode\.too_long: Input should be 'error', 'drop'"),
        (
            "data",
            "sources",
            [{"source": "local", "colums": {}}],
            r"data\.sources\.0\.colums: unknown key\. Valid keys: source, revision, files",
        ),
        (
            "data",
            "sources",
            [{"source": "local", "columns": {"promt": "q"}}],
            r"data\.sources\.0\.columns\.promt.*: Input should be 'prompt'",
        ),
        ("to_gguf", "types", ["q9"], r"to_gguf\.types\.0: .*not 'q9'"),
        ("register", "name", "../up", r"register\.name: .*not '\.\./up'"),
    ],
)
def test_a_wrong_key_is_named_with_what_is_valid(params, section, key, value, message):
    raw, write = params
    raw[section][key] = value
    write()
    with pytest.raises(UserError, match=message):
        config.load(section)


def test_every_problem_is_told_at_once(params):
    raw, write = params
    raw["sft"]["learning_rate"] = "fast"
    raw["merge"]["typo"] = 1
    del raw["encode"]
    raw["sfft"] = {}
    write()
    with pytest.raises(UserError, match=r"sfft: unknown section\. Valid ones: data, prepare"):
        config.load_all()
    with pytest.raises(UserError) as caught:
        config.load("sft", "merge", "encode")
    assert len(re.findall(r"^  ", str(caught.value), flags=re.MULTILINE)) == 3


@pytest.mark.parametrize("text", ["sft: [", "", "- a", "sft: {x: .nan}", "sft: {x: 2020-01-01}"])
def test_what_is_no_mapping_of_sections_is_refused(params, text):
    config.PARAMS_FILE.write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml"):
        config.load("sft")


def test_a_missing_file_says_what_makes_it(params):
    config.PARAMS_FILE.unlink()
    with pytest.raises(UserError, match="make params"):
        config.load("sft")


def test_a_key_that_is_there_twice_is_refused(params):
    config.PARAMS_FILE.write_text("model:\n  name: a\n  source: b\n  name: c\n")
    with pytest.raises(UserError, match=r"(?s)the key name is there twice.*line 4"):
        config.load("model")
