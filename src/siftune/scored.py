"""What lm-eval returns, as our rows: metrics with their errors, and each item with its scores."""

import math
from collections.abc import Iterator
from typing import Any

Results = dict[str, Any]


def metrics(results: Results) -> dict[str, dict[str, float | int | None]]:
    """value, stderr (None where lm-eval has none) and n of every metric of a task or group."""
    found: dict[str, dict[str, float | int | None]] = {}
    for task, entries in results["results"].items():
        for key, value in entries.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = entries.get(f"{metric}_stderr,{filter_name}")
            found[f"{task}/{_name(metric, filter_name)}"] = {
                "value": value,
                "stderr": error if isinstance(error, float) else None,
                "n": entries["sample_len"],
            }
    return found


def directions(results: Results) -> dict[str, bool]:
    """Whether a higher value is better, by the names of `metrics`."""
    found: dict[str, bool] = {}
    for task, entries in results["samples"].items():
        higher = results["higher_is_better"][task]
        for entry in entries:
            for metric in entry["metrics"]:
                # None: lm-eval does not know.
                found[f"{task}/{_name(metric, entry['filter'])}"] = higher.get(metric) is not False
    return found


def items(results: Results) -> Iterator[dict[str, Any]]:
    """One row an item: task, id, prompt, target, answer, and scores by metric and filter.

    Only metrics that are the mean of their items' scores are among them: the items of a perplexity
    or a corpus BLEU have no score of their own.
    """
    for task, entries in results["samples"].items():
        scored = _mean_metrics(results["results"][task], entries)
        rows: dict[int, dict[str, Any]] = {}
        for entry in entries:
            row = rows.setdefault(entry["doc_id"], {"task": task, **_item(entry), "scores": {}})
            for metric in entry["metrics"]:
                if (metric, entry["filter"]) in scored:
                    row["scores"][_name(metric, entry["filter"])] = float(entry[metric])
        named = {row["id"] for row in rows.values()}
        for number, row in rows.items():
            # Not every data set names its items, or names each differently.
            yield row if len(named) == len(rows) else {**row, "id": str(number)}


def _mean_metrics(values: dict[str, Any], entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    scores: dict[tuple[str, str], list[Any]] = {}
    for entry in entries:
        for metric in entry["metrics"]:
            scores.setdefault((metric, entry["filter"]), []).append(entry[metric])
    return {
        (metric, filter_name)
        for (metric, filter_name), found in scores.items()
        if all(isinstance(score, int | float) for score in found)
        and math.isclose(sum(found) / len(found), values[f"{metric},{filter_name}"], abs_tol=1e-9)
    }


def _item(entry: dict[str, Any]) -> dict[str, str]:
    prompt, *_ = entry["arguments"][0]
    target, answer = entry["target"], ""
    first = entry["resps"][0][0]
    if isinstance(first, str):
        answer = first
    elif isinstance(first, tuple):
        # A choice: the likeliest continuation.
        choices = [continuation for _, continuation in entry["arguments"]]
        likelihoods = [responses[0][0] for responses in entry["resps"]]
        answer = choices[likelihoods.index(max(likelihoods))]
        target = choices[target] if isinstance(target, int) else target
    name = entry["doc"].get("id", entry["doc_id"])
    return {"id": str(name), "prompt": prompt, "target": str(target), "answer": answer}


def _name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric}/{filter_name}"
