import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from siftune import config, report
from siftune.rewards import completions
from siftune.sections import SECTIONS

ROOT = Path(__file__).parents[1]


def render() -> str:
    return report.render(config.raw_sections(*SECTIONS))


def rewrite(path: str, **changes: object) -> None:
    """Change the first line of a JSON-lines file."""
    first, *rest = Path(path).read_text(encoding="utf-8").splitlines()
    lines = [json.dumps({**json.loads(first), **changes}), *rest]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_shows_the_verdict_with_its_intervals(finished_run: Path) -> None:
    page = render()
    assert "The tuned model is better than its base." in page
    assert "+55.0 points, 95% interval +48.9 to +61.2, p &lt; 0.0001" in page
    assert "95% interval 52.0% to 63.9%" in page  # Wilson, 151 of 260
    assert page.index("3.1%") < page.index("58.1%")


def test_headline_is_the_registered_metric(finished_run: Path) -> None:
    path = Path("metrics/compare.json")
    compared = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(compared.items()))))
    assert '<span class="tuned"><b>58.1%</b>' in render()


def test_shows_facts_of_every_part(finished_run: Path) -> None:
    page = render()
    for fact in (
        "1,000 rows in, 998 kept, 2 rejected",
        "Rejected: empty response (2).",
        "9,768,960 parameters were trained",
        "GGUF q8_0",
        "138.1 MiB",
        "5 min 43 s",
        "c0ffee",
        "learning_rate: 0.001",
        "mlflow 3.",
    ):
        assert fact in page, fact


def test_answers_are_marked_by_their_score(finished_run: Path) -> None:
    page = render()
    assert page.count("✓ right") == 4
    assert page.count("✗ wrong") == 6


def test_an_answer_that_was_not_scored_has_no_mark(finished_run: Path) -> None:
    another = {"base": "", "tuned": "Another text than the one that was scored."}
    rewrite("data/samples.jsonl", answers={"greedy": another})
    assert render().count("✓ right") == 3
    rewrite("data/samples.jsonl", id="not in the benchmark")
    assert render().count("✗ wrong") == 5


def test_an_answer_that_the_benchmark_cut_is_marked(finished_run: Path) -> None:
    longer = "34 + 17 = 51\n51 - 6 = 45\n#### 45\n\nQuestion: and so on"
    rewrite("data/samples.jsonl", answers={"greedy": {"base": "", "tuned": longer}})
    assert render().count("✓ right") == 4


def test_several_decodings_are_side_by_side(finished_run: Path) -> None:
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    warm = {"temperature": 0.8, "top_p": 0.9}
    params["samples"]["decodings"] = {"greedy": {"temperature": 0.0}, "warm": warm}
    path.write_text(yaml.safe_dump(params))
    both = {"base": "said by base", "tuned": "34 + 17 = 51\n51 - 6 = 45\n#### 45"}
    rewrite("data/samples.jsonl", answers={"greedy": both, "warm": {"base": "", "tuned": "warm!"}})
    page = render()
    assert "answered by both models in 2 ways" in page
    assert "<dt>warm</dt><dd>drawn, temperature 0.8, top-p 0.9</dd>" in page
    first = page.partition('<article class="sample">')[2].partition("</article>")[0]
    headings = re.findall(r'<span class="(base|tuned)">\w+</span> · (\w+)</span>', first)
    assert headings == [
        ("base", "greedy"),
        ("tuned", "greedy"),
        ("base", "warm"),
        ("tuned", "warm"),
    ]
    assert "grid-row: span 2" in first
    assert first.index("said by base") < first.index("no answer") < first.index("warm!")
    assert first.count("✓ right") == 1  # of greedy; what was said warmly has no score


def test_text_from_data_stays_text(finished_run: Path) -> None:
    page = render()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;console.error(&#39;not escaped&#39;)&lt;/script&gt;" in page


@pytest.mark.parametrize(
    ("left_out", "section"),
    [
        ("metrics/compare.json", "The tuned model is"),
        ("metrics/prepare.json", "<h2>Data</h2>"),
        ("metrics/encode.json", "training rows"),
        ("metrics/sft.json", "optimiser steps"),
        ("metrics/to_gguf.json", "GGUF f16"),
        ("metrics/gguf_check.json", "equal"),
        ("metrics/merge.json", "Merged model"),
        ("metrics/fetch.json", "<th scope=\"row\">Base model</th>"),
        ("data/samples.jsonl", "<h2>Before and after</h2>"),
        ("data/answers/tuned.jsonl", "✓ right"),
        ("plots/token_lengths.csv", "by length in tokens"),
        ("plots/sft.csv", "<h2>Training</h2>"),
        ("models/base.json", "c0ffee"),
    ],
)  # fmt: skip
def test_what_a_pipeline_left_out_is_left_out(
    finished_run: Path, left_out: str, section: str
) -> None:
    assert section in render().partition("<body>")[2]
    Path(left_out).unlink()
    assert section not in render().partition("<body>")[2]


def test_without_any_result_there_is_still_provenance(finished_run: Path) -> None:
    for folder in ("metrics", "plots", "data", "models"):
        shutil.rmtree(folder)
    assert "<h2>Provenance</h2>" in render()


def test_a_run_too_short_for_validation_has_curves(finished_run: Path) -> None:
    header = "step,train_loss,validation_loss,learning_rate,grad_norm,tokens_per_second\n"
    Path("plots/sft.csv").write_text(f"{header}2,1.5,,0.001,0.9,80\n4,1.1,,0.0005,,\n")
    page = render()
    assert 'class="mark train_loss"' in page
    assert 'class="mark validation_loss"' not in page


def test_an_adapter_that_it_began_from_is_named(finished_run: Path) -> None:
    params = config.raw_sections(*SECTIONS)
    params["model"]["adapter"] = {"source": "./before", "revision": None}
    named = "<dt>Adapter it began from</dt><dd>./before; the base was measured without it</dd>"
    assert named in report.render(params)
    assert "Adapter it began from" not in render()


def test_image_and_job_are_named_when_known(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Slurm job" not in render()
    monkeypatch.setenv("SIFTUNE_IMAGE_SHA256", "ab" * 32)
    monkeypatch.setenv("SLURM_JOB_ID", "91823")
    page = render()
    assert "ab" * 32 in page
    assert "91823" in page


class Outline(HTMLParser):
    """Tags that are not closed, charts without words, tables' cells without a header."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if (
            tag == "svg"
            and "svg" not in self.open
            and not {"aria-label", "aria-hidden"} & set(found)
        ):
            self.problems.append(f"chart without words: {found}")
        if tag == "th" and "scope" not in found:
            self.problems.append(f"header without scope: {found}")
        if tag not in ("meta", "link", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.problems.append(f"</{tag}> at line {self.getpos()[0]}")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass


def test_is_well_formed_and_accessible(finished_run: Path) -> None:
    outline = Outline(render())
    assert outline.problems == []
    assert outline.open == []


def test_the_script_writes_the_page(finished_run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(ROOT / "export/report.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "The tuned model is better than its base." in report.PAGE.read_text(encoding="utf-8")


REWARDS = """step,train_loss,reward,validation_reward,rewards/length,share_cut,entropy
0,,,0.25,,,
1,0.1,0.5,,0.75,0.125,2.5
2,0.1,1.5,1.25,0.5,0.0,2.0
"""


def test_shows_what_rewards_paid_for(finished_run: Path) -> None:
    assert "<h2>Rewards</h2>" not in render()
    Path("plots/grpo.csv").write_text(REWARDS)
    log = completions.Completions(Path("data"))
    log.add(0, [{"prompt": "How <b>", "completion": "", "reward": 0.25, "scores": {"length": 1}}])
    log.add(
        2, [{"prompt": "Why?", "completion": "So & so", "reward": 1.25, "scores": {"length": 0}}]
    )
    page = render()
    titles = re.findall(r'class="title">([^<]*)</span></figcaption>', page)
    assert titles[-4:] == [
        "Reward, all parts by their weights",
        "length",
        "Share that does not end by itself",
        "Entropy, in nats a token",
    ]
    assert "train mean from 0.5 to 1.5; validation mean from 0.25 to 1.25" in page
    assert page.index("Step 0") < page.index("How &lt;b&gt;") < page.index("Step 2")
    assert "So &amp; so" in page
    # The loss of GRPO says nothing, and is not drawn.
    assert page.count("Loss over steps") == 1


PREFERENCES = """step,train_loss,validation_loss,reward_margin,validation_reward_margin
1,0.69,,0.0,
2,0.68,0.67,0.1,0.2
"""


def test_the_margin_of_preferences_is_drawn_with_the_training(finished_run: Path) -> None:
    assert "Reward margin" not in render()
    Path("plots/dpo.csv").write_text(PREFERENCES)
    section = render().partition("<h2>Training: dpo</h2>")[2].partition("</section>")[0]
    assert "Reward margin, chosen less rejected" in section
    assert "train mean from 0 to 0.1; validation mean from 0.2 to 0.2" in section
    assert "Share of pairs" not in section  # of which there are no numbers


def test_lengths_are_drawn_phase_by_phase(finished_run: Path) -> None:
    rows = ["split,tokens,rows", "sft train,64,5", "sft validation,64,1", "dpo train,72,3"]
    Path("plots/token_lengths.csv").write_text("\n".join(rows))
    page = render()
    assert "Rows of sft by length in tokens" in page
    assert "Rows of dpo by length in tokens" in page
    assert page.count('<rect class="bar train" width="14"') == 2  # in the keys
