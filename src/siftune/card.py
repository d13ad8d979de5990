"""The model card: what the model is, where it came from, how it was measured; with hub metadata."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from siftune import provenance, rendering, results
from siftune.sections import PHASES

CARD = Path("report/card.md")
SECTIONS = ("model", "data", "encode", *PHASES, "benchmark", "card", "register")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def render(params: dict[str, Any]) -> str:
    """The card in Markdown, from `SECTIONS` of params.yaml and what the stages measured."""
    metrics = results.read()
    comparisons = results.comparisons(metrics)
    phases = trained(params)
    text = rendering.render(
        "card.md.j2",
        params=params,
        phases=phases,
        phases_yaml=yaml.safe_dump(phases, sort_keys=False, allow_unicode=True),
        metrics=dict.fromkeys(results.STAGES) | metrics,
        comparisons=comparisons,
        headline=results.headline(comparisons, params["register"]["metric"]),
        origins=results.origins(),
        tags=provenance.tags(params),
        versions=provenance.stack(),
    )
    # Read back by the hub's own parser: metadata that it does not take must not be written.
    return str(ModelCard(f"---\n{metadata(params, comparisons).to_yaml()}\n---\n\n{text}"))


def trained(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of the phases that are set, in their order."""
    return {name: params[name] for name in PHASES if params[name] is not None}


def metadata(params: dict[str, Any], comparisons: list[results.Comparison]) -> ModelCardData:
    """What the hub reads from a card, as in its model card specification."""
    phases = trained(params)
    with_lora = any(section["lora"] for section in phases.values())
    return ModelCardData(
        model_name=params["card"]["title"],
        language=params["card"]["language"],
        license=params["model"]["license"],
        base_model=hub_id(params["model"]["source"]) or params["model"]["name"],
        # GGUF files beside the weights would make the hub guess "quantized".
        base_model_relation="finetune",
        datasets=[
            hub_id(one["source"].removeprefix("hub:")) or params["data"]["name"]
            for one in params["data"]["sources"]
        ],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["siftune", *phases, *(["lora"] if with_lora else [])],
        eval_results=[_eval_result(one) for one in comparisons] or None,
    )


def hub_id(source: str) -> str | None:
    """`source` where it is an id on the Hugging Face hub (owner/name), else None."""
    return source if HUB_ID.fullmatch(source) else None


def _eval_result(comparison: results.Comparison) -> EvalResult:
    task, metric, *filters = comparison.name.split("/")
    return EvalResult(
        task_type="text-generation",
        dataset_type=task,
        dataset_name=task,
        metric_type=metric,
        metric_name=" ".join([metric, *filters]),
        metric_value=round(comparison.tuned, 4),
    )
